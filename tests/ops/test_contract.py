"""What every candidate operation promises, as plain functions that are run for each one in the registry.

`test_operator_of_another_module_keeps_the_contract` runs the same functions on an operator that is no part of `ops`.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ops import OpSpec, create_op, list_ops, load_prefix, registry

BASE_CHANNELS = 16
WIDTHS = (16, 14, 12, 10, 8)
WIDTH_PAIRS = [(in_channels, out_channels) for in_channels in WIDTHS for out_channels in WIDTHS]
SIZES = ((16, 16), (37, 31), (5, 3), (8, 20), (1, 1))  # whole windows, odd, below a window, one window high, a pixel


def make_spec(name: str, in_channels: int, out_channels: int, size: tuple[int, int] = (11, 9)) -> OpSpec:
    return OpSpec(
        name=name,
        in_channels=in_channels,
        out_channels=out_channels,
        base_channels=BASE_CHANNELS,
        height=size[0],
        width=size[1],
    )


def make_op(spec: OpSpec, *, slimmable: bool = False, seed: int = 0) -> nn.Module:
    """An operator with every parameter random: zero-initialised ones would hide what they multiply."""
    op = create_op(spec, slimmable=slimmable)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in op.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return op


def make_input(spec: OpSpec, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, spec.in_channels, spec.height, spec.width, generator=generator)


def shape_is_kept_at_every_width_pair(name: str) -> None:
    wide = create_op(make_spec(name, BASE_CHANNELS, BASE_CHANNELS), slimmable=True)
    for in_channels, out_channels in WIDTH_PAIRS:
        spec = make_spec(name, in_channels, out_channels)
        x = make_input(spec)
        assert wide(x, out_channels).shape == (2, out_channels, spec.height, spec.width)
        assert create_op(spec)(x).shape == (2, out_channels, spec.height, spec.width)


def any_height_and_width_and_one_image_will_do(name: str) -> None:
    for size in SIZES:
        spec = make_spec(name, 14, 12, size)
        output = make_op(spec)(make_input(spec, batch=1))
        assert output.shape == (1, 12, *size)
        assert output.isfinite().all()


def images_of_a_batch_do_not_mix(name: str) -> None:
    spec = make_spec(name, 14, 12, (19, 17))
    op = make_op(spec)
    x = make_input(spec, batch=3)
    torch.testing.assert_close(op(x)[1:2], op(x[1:2]), rtol=1e-5, atol=1e-5)


def gradients_are_finite(name: str) -> None:
    for in_channels, out_channels in ((16, 16), (14, 8), (8, 14)):
        spec = make_spec(name, in_channels, out_channels, (13, 11))
        op = create_op(spec)  # as initialised
        x = make_input(spec).requires_grad_()
        op(x).square().mean().backward()
        assert x.grad is not None and x.grad.isfinite().all()
        for parameter_name, parameter in op.named_parameters():
            assert parameter.grad is not None, f"{parameter_name} is not used"
            assert parameter.grad.isfinite().all(), parameter_name


def narrow_operator_is_a_prefix_of_the_wide_one(name: str) -> None:
    wide = make_op(make_spec(name, BASE_CHANNELS, BASE_CHANNELS), slimmable=True)
    for in_channels, out_channels in WIDTH_PAIRS:
        spec = make_spec(name, in_channels, out_channels)
        narrow = create_op(spec)
        load_prefix(narrow, wide)
        x = make_input(spec)
        torch.testing.assert_close(narrow(x), wide(x, out_channels), rtol=1e-6, atol=1e-6)


def channels_last_gives_the_same_numbers(name: str) -> None:
    spec = make_spec(name, 14, 12, (19, 17))
    op = make_op(spec)
    x = make_input(spec)
    expected = op(x)
    channels_last = op.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, expected, rtol=1e-5, atol=1e-5)
    assert channels_last.stride(1) == 1  # still channels innermost, though perhaps a view of more channels or pixels


def input_is_left_alone(name: str) -> None:
    spec = make_spec(name, 16, 16)
    x = make_input(spec)
    before = x.clone()
    make_op(spec)(x)
    assert torch.equal(x, before)


def same_seed_gives_the_same_operator(name: str) -> None:
    spec = make_spec(name, 14, 12)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(create_op(spec)(make_input(spec)))
    assert torch.equal(*outputs)


CONTRACT = (
    shape_is_kept_at_every_width_pair,
    any_height_and_width_and_one_image_will_do,
    images_of_a_batch_do_not_mix,
    gradients_are_finite,
    narrow_operator_is_a_prefix_of_the_wide_one,
    channels_last_gives_the_same_numbers,
    input_is_left_alone,
    same_seed_gives_the_same_operator,
)


@pytest.mark.parametrize("claim", CONTRACT, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("name", list_ops())
def test_candidate(name: str, claim: Callable[[str], None]) -> None:
    claim(name)


FOREIGN_OPERATOR = """
import torch
from torch import nn

from ops import OpSpec, SlimmableConv2d, register_op


class Scaled1x1(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(in_channels))
        self.mix = SlimmableConv2d(in_channels, out_channels, 1)

    def forward(self, x, out_channels=None):
        return self.mix(x * self.scale[: x.shape[1]].view(1, -1, 1, 1), out_channels)


@register_op("scaled_1x1")
def build(spec: OpSpec) -> nn.Module:
    return Scaled1x1(spec.in_channels, spec.out_channels)
"""


@pytest.fixture
def foreign_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an operator that a temporary module registers; the registry is as before afterwards."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    path = tmp_path / "foreign_operator.py"
    path.write_text(FOREIGN_OPERATOR)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None
    module_spec.loader.exec_module(importlib.util.module_from_spec(module_spec))
    return "scaled_1x1"


def test_operator_of_another_module_keeps_the_contract(foreign_operator: str) -> None:
    assert list_ops()[-1] == foreign_operator
    for claim in CONTRACT:
        claim(foreign_operator)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list_ops())
def test_candidate_moves_to_a_gpu_and_back(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    spec = make_spec(name, 14, 12, (19, 17))
    op, x = make_op(spec).double(), make_input(spec).double()  # in double, so that TF32 plays no part
    expected = op(x)
    torch.testing.assert_close(op.cuda()(x.cuda()).cpu(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(op.cpu()(x), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # torch.export copies its own deprecated LeafSpec
@pytest.mark.parametrize("widths", [(16, 16), (14, 10)], ids=["full", "narrow"])
@pytest.mark.parametrize("name", list_ops())
def test_candidate_exports_to_onnx(name: str, widths: tuple[int, int], tmp_path: Path) -> None:
    import onnxruntime

    spec = make_spec(name, *widths, size=(19, 17))
    op, x = make_op(spec).eval(), make_input(spec, batch=1)
    path = tmp_path / "op.onnx"
    torch.onnx.export(op, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), op(x).detach(), rtol=1e-4, atol=1e-4)
