"""ONNX files of found networks and baselines, read by ONNX Runtime and by the evaluation."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

from pipeline.baselines import build_baseline, save_baseline
from pipeline.checkpoint import save_weights
from pipeline.cli import main
from pipeline.denoise import denoise_image
from pipeline.evaluation.models import open_model
from pipeline.models import load_denoiser
from pipeline.onnx_export import export_onnx
from search_space import SearchSpace, build_network, network_macs, num_parameters, sample_genotype

SIZE = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it, with weights that give more than the identity."""
    folder = tmp_path_factory.mktemp("run")
    space = SearchSpace(num_channels=16, num_resolutions=2, num_layers=3, candidate_ops=("conv_d2", "hin", "ib"))
    genotype = sample_genotype(space, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    network = build_network(genotype)
    for parameter in network.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    genotype.save(folder / "genotype.json")
    save_weights(folder / "model.safetensors", network.state_dict())
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    target = run / "exported" / "model.onnx"
    assert main(["export", str(run), "--output", str(target), "--size", str(SIZE)]) == 0
    return target


def test_onnx_runtime_computes_what_torch_does(run: Path, exported: Path) -> None:
    network = load_denoiser(run)
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    for seed in (1, 2):
        noisy = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            expected = network(noisy)
        assert (expected - noisy).abs().max() > 1e-3  # no identity
        (denoised,) = session.run(["denoised"], {"noisy": noisy.numpy()})
        torch.testing.assert_close(torch.from_numpy(denoised), expected, rtol=0, atol=1e-5)
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]


def test_the_evaluation_takes_images_of_other_sizes_and_knows_the_costs(run: Path, exported: Path) -> None:
    network, model = load_denoiser(run), open_model(str(exported), device="cpu")
    assert model.tile_size == SIZE
    assert model.costs.num_parameters == num_parameters(network)
    assert model.costs.macs == network_macs(network, height=256, width=256)
    for height, width in ((SIZE, SIZE), (70, 41), (19, 23)):
        noisy = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))
        # Instance norms see a tile, not the image; what is smaller than a tile is padded with its border.
        padded = F.pad(noisy, (0, max(0, SIZE - width), 0, max(0, SIZE - height)), mode="replicate")
        expected = denoise_image(network, padded, tile_size=SIZE, tile_overlap=SIZE // 4, device="cpu")
        torch.testing.assert_close(model.for_noise(None)(noisy), expected[..., :height, :width], rtol=0, atol=1e-5)


def test_a_convolutional_network_in_tiles_is_the_network_away_from_their_edges(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_baseline("dncnn", num_channels=8, num_layers=3).eval()
    save_baseline(network, tmp_path / "model.safetensors")
    export_onnx(network, tmp_path / "dncnn.onnx", size=SIZE)
    noisy = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(noisy)
    denoised = open_model(str(tmp_path / "dncnn.onnx"), device="cpu").for_noise(None)(noisy)
    inner = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(denoised[inner], expected[inner], rtol=0, atol=1e-5)


def test_a_size_that_a_graph_does_not_bear_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    offset = helper.make_tensor("offset", TensorProto.FLOAT, (1, 3, 8, 8), [0.5] * 192)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, "height", "width"))  # says more than it can
        for name in ("noisy", "denoised")
    ]
    graph = helper.make_graph([helper.make_node("Add", ["noisy", "offset"], ["denoised"])], "add", ends[:1], ends[1:],
                              [offset])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "add.onnx").write_bytes(model.SerializeToString())
    opened = open_model(str(tmp_path / "add.onnx"), device="cpu")
    assert (opened.costs.num_parameters, opened.costs.macs) == (None, None)  # not a file of `export`
    noisy = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(opened.for_noise(None)(noisy), noisy + 0.5)
    with pytest.raises(RuntimeError, match="add.onnx fails on an image of 7x9: "):
        opened.for_noise(None)(torch.rand(1, 3, 9, 7))


@pytest.mark.parametrize(
    ("text", "expected"), [("12", 12), ("-3", None), ("1e6", None), ("", None), ("9" * 5000, None)]
)
def test_costs_that_are_no_numbers_are_unknown(tmp_path: Path, exported: Path, text: str, expected: int | None) -> None:
    model = onnx.load(exported)
    for entry in model.metadata_props:
        entry.value = text
    onnx.save(model, tmp_path / "model.onnx")
    costs = open_model(str(tmp_path / "model.onnx"), device="cpu").costs
    assert (costs.num_parameters, costs.macs) == (expected, expected)


def test_a_network_that_onnx_runtime_computes_otherwise_is_not_written(tmp_path: Path) -> None:
    class Fickle(nn.Module):
        """Answers otherwise at every call, so that no export can agree with it."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.num_calls = 0

        def forward(self, noisy: Tensor) -> Tensor:
            self.num_calls += 1
            return noisy * self.scale * self.num_calls

    with pytest.raises(ValueError, match="ONNX Runtime differs from torch by .* so nothing was written"):
        export_onnx(Fickle(), tmp_path / "fickle.onnx", size=8)
    assert list(tmp_path.iterdir()) == []


def test_impossible_exports_give_one_line(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["export", str(run), "--output", str(tmp_path / "model.pt")]) == 2
    assert "`--output` must name an .onnx file" in capsys.readouterr().err
    assert main(["export", str(run), "--output", str(tmp_path / "a.onnx"), "--size", "0"]) == 2
    assert "`size` must be at least 1, got 0" in capsys.readouterr().err
