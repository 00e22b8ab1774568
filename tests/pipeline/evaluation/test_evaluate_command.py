"""The table of `denoise-nas evaluate` against numbers computed here from the files alone."""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from pipeline.baselines import build_baseline, save_baseline
from pipeline.cli import main
from pipeline.data.images import write_image
from pipeline.tracking import MlflowClient, MlflowException
from search_space import Genotype, SearchSpace, sample_genotype

COLUMNS = ("model", "dataset", "noise", "psnr_db", "ssim", "num_parameters", "macs", "seconds_per_image")
SIZES = {"a": (40, 32), "b": (33, 47)}
NUMBERS = ("psnr_db", "ssim", "num_parameters", "macs", "seconds_per_image")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clean images, pairs, and a network of known size with random weights."""
    folder = tmp_path_factory.mktemp("work")
    random = np.random.default_rng(0)
    for name in ("set", "pairs/clean", "pairs/noisy"):
        (folder / name).mkdir(parents=True)
    for name, (height, width) in SIZES.items():
        ramp = np.linspace(30, 220, height * width * 3).reshape(height, width, 3)
        clean = np.round(ramp + random.uniform(-9, 9, ramp.shape)).astype(np.uint8)
        noisy = np.clip(clean + random.integers(-20, 21, clean.shape), 0, 255).astype(np.uint8)
        for target, image in (("set", clean), ("pairs/clean", clean), ("pairs/noisy", noisy)):
            Image.fromarray(image).save(folder / target / f"{name}.png")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_baseline(build_baseline("plain_unet", num_channels=8), folder / "net" / "model.safetensors")
    return folder


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def evaluate(work: Path, *arguments: str) -> int:
    """Run the command with one MLflow database for all tests: to create one takes seconds."""
    return main(["evaluate", *arguments, "--tracking-uri", f"sqlite:///{work / 'mlflow.db'}"])


@pytest.fixture(scope="module")
def table(work: Path) -> Path:
    arguments = ["noisy", str(work / "net"), "--data", str(work / "set"), "--noise", "awgn:10", "awgn:25"]
    assert evaluate(work, *arguments, "--output", str(work / "out")) == 0
    return work / "out"


def test_the_table_has_every_model_with_every_noise(table: Path, work: Path) -> None:
    rows = read(table / "evaluation.csv")
    assert set(COLUMNS) <= rows[0].keys()
    models = ("noisy", str(work / "net"))
    assert [(row["model"], row["dataset"], row["noise"]) for row in rows] == [
        (model, "set", noise) for model in models for noise in ("awgn:10", "awgn:25")
    ]
    assert all(float(row["seconds_per_image"]) > 0 for row in rows)


def test_quality_is_that_of_an_independent_implementation(table: Path, work: Path) -> None:
    network = build_baseline("plain_unet", num_channels=8)
    network.load_state_dict(load_file(work / "net" / "model.safetensors"))
    images = {(row["model"], row["noise"], row["image"]): row for row in read(table / "images.csv")}
    assert len(images) == 2 * 2 * len(SIZES)
    for row in read(table / "evaluation.csv"):
        qualities = []
        for name, (height, width) in SIZES.items():
            clean = np.asarray(Image.open(work / "set" / f"{name}.png"))
            sigma = float(row["noise"].partition(":")[2]) / 255
            noisy = (clean / 255 + np.random.RandomState(0).normal(0, sigma, clean.shape)).astype(np.float32)
            output = noisy
            if row["model"] != "noisy":
                with torch.no_grad():
                    output = network.eval()(torch.from_numpy(noisy.transpose(2, 0, 1))[None])[0].numpy()
                output = output.transpose(1, 2, 0)
            rounded = np.clip(np.round(np.clip(output, 0, 1) * 255), 0, 255).astype(np.uint8)
            expected = {
                "psnr_db": peak_signal_noise_ratio(clean, rounded),
                "psnr_unrounded_db": peak_signal_noise_ratio(
                    clean / 255, output.astype(np.float64).clip(0, 1), data_range=1
                ),
                "ssim": structural_similarity(
                    clean, rounded, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
                ),
            }
            image = images[row["model"], row["noise"], name]
            assert (int(image["height"]), int(image["width"])) == (height, width)
            for key, value in expected.items():
                assert float(image[key]) == pytest.approx(value, abs=2e-4), key
            qualities.append(expected)
        for key in expected:
            assert float(row[key]) == pytest.approx(np.mean([quality[key] for quality in qualities]), abs=2e-4)


def count_macs(network: nn.Module) -> int:
    """Add up the convolutions of one pass at 256x256, from their kernels and output sizes."""
    macs = []

    def count(layer: nn.Conv2d, inputs: object, output: torch.Tensor) -> None:
        macs.append(layer.weight.numel() * output.shape[2] * output.shape[3])

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 256, 256))
    return sum(macs)


def test_costs_are_counted_by_layer_at_256x256_and_seconds_add_up(table: Path, work: Path) -> None:
    images = read(table / "images.csv")
    for row in read(table / "evaluation.csv"):
        seconds = sum(float(i["seconds"]) for i in images if (i["model"], i["noise"]) == (row["model"], row["noise"]))
        assert float(row["seconds_per_image"]) == pytest.approx(seconds / 2)
        assert float(row["seconds_per_megapixel"]) == pytest.approx(seconds / (40 * 32 + 33 * 47) * 1e6)
        if row["model"] == "noisy":
            assert (row["num_parameters"], row["macs"], row["peak_memory_mb"]) == ("0", "0", "")
            continue
        weights = load_file(work / "net" / "model.safetensors")
        assert int(row["num_parameters"]) == sum(tensor.numel() for tensor in weights.values())
        network = build_baseline("plain_unet", num_channels=8)
        assert int(row["macs"]) == count_macs(network)
        assert float(row["peak_memory_mb"]) > 4e-6 * (3 + 2 * 8) * 256 * 256  # image and two feature maps at least


def test_the_page_shows_the_numbers_of_the_table(table: Path) -> None:
    page = (table / "evaluation.md").read_text()
    for row in read(table / "evaluation.csv"):
        section = page.split(f"### set, {row['noise']} (2 images)")[1].split("###")[0]
        (line,) = (line for line in section.splitlines() if line.startswith(f"| {row['model']} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        titles = [cell.strip() for cell in section.strip().splitlines()[0].strip("|").split("|")]
        assert titles[1:3] == ["PSNR (rounded), dB", "PSNR (unrounded), dB"]
        assert cells[1] == f"{float(row['psnr_db']):.2f}" and cells[2] == f"{float(row['psnr_unrounded_db']):.2f}"
        assert cells[3] == f"{float(row['ssim']):.4f}" and cells[4] == f"{float(row['ssim_3d']):.4f}"
        assert cells[6] == f"{int(row['macs']) / 1e9:.2f}"


def test_mlflow_holds_every_row_once(table: Path, work: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{work / 'mlflow.db'}")
    parent = client.get_run((table / "mlflow_run_id").read_text().strip())
    assert parent.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "evaluation.csv", "evaluation.md", "images.csv",
    }  # fmt: skip
    query = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    runs = client.search_runs([parent.info.experiment_id], query)
    found = {(run.data.params["model"], run.data.params["noise"]): run.data.metrics for run in runs}
    rows = read(table / "evaluation.csv")
    assert len(runs) == len(rows)
    for row in rows:
        for name in NUMBERS:
            assert found[row["model"], row["noise"]][name] == pytest.approx(float(row[name]))


def test_a_failing_model_loses_nothing_and_the_next_attempt_goes_on(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(work / "net", tmp_path / "bad")
    weights = tmp_path / "bad" / "model.safetensors"
    network = build_baseline("plain_unet", num_channels=8)
    with torch.no_grad():
        network.up.bias.fill_(torch.nan)
    save_baseline(network, weights)
    arguments = [str(work / "net"), str(tmp_path / "bad"), "noisy", "--data", str(work / "set")]
    arguments += ["--output", str(tmp_path / "out")]
    assert evaluate(work, *arguments) == 2
    error = capsys.readouterr().err
    assert f"model {tmp_path / 'bad'} on set with awgn:25: the denoiser's output for image 'a' is not finite" in error
    (first,) = read(tmp_path / "out" / "evaluation.csv")
    assert len(read(tmp_path / "out" / "images.csv")) == 2
    save_baseline(build_baseline("plain_unet", num_channels=8), weights)
    assert evaluate(work, *arguments) == 0
    rows = read(tmp_path / "out" / "evaluation.csv")
    assert rows[0] == first  # the same seconds: it was not measured again
    assert [row["model"] for row in rows] == [arguments[0], arguments[1], "noisy"]
    save_baseline(build_baseline("plain_unet", num_channels=16), weights)  # another network under the same name
    assert evaluate(work, *arguments) == 0
    changed = {row["model"]: row for row in read(tmp_path / "out" / "evaluation.csv")}[arguments[1]]
    assert len(read(tmp_path / "out" / "evaluation.csv")) == 3
    assert int(changed["num_parameters"]) > int(rows[1]["num_parameters"])


def test_changed_images_and_another_folder_of_equal_names_are_measured_again(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def psnr_db(folder: Path) -> str:
        assert (
            evaluate(work, "noisy", "--data", str(folder), "--noise", "pairs", "--output", str(tmp_path / "out")) == 0
        )
        (row,) = read(tmp_path / "out" / "evaluation.csv")
        return row["psnr_db"]

    shutil.copytree(work / "pairs", tmp_path / "one" / "pairs")
    shutil.copytree(work / "pairs", tmp_path / "two" / "pairs")
    first = psnr_db(tmp_path / "one" / "pairs")
    capsys.readouterr()
    assert psnr_db(tmp_path / "one" / "pairs") == first
    assert "noisy on pairs, pairs: in" in capsys.readouterr().out
    shutil.copy(tmp_path / "one" / "pairs" / "clean" / "a.png", tmp_path / "one" / "pairs" / "noisy" / "a.png")
    assert psnr_db(tmp_path / "one" / "pairs") != first
    assert psnr_db(tmp_path / "two" / "pairs") == first
    assert "already" not in capsys.readouterr().out


def test_a_server_that_is_away_costs_an_evaluation_nothing(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the server went away")

    command = ["noisy", "--data", str(work / "pairs"), "--output", str(tmp_path / "out")]
    # At the end, in the middle of a row; when the command is given again, too.
    for methods in (("log_batch", "set_terminated"), ("search_runs",), ("get_experiment_by_name",)):
        with monkeypatch.context() as away:
            for method in methods:
                away.setattr(MlflowClient, method, refuse)
            assert evaluate(work, *command) == 0
        assert "| noisy |" in capsys.readouterr().out
        (warning,) = caplog.messages
        assert warning.startswith("MLflow fails; the table stays in")
        caplog.clear()
    assert evaluate(work, *command) == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{work / 'mlflow.db'}")
    parent = client.get_run((tmp_path / "out" / "mlflow_run_id").read_text().strip())
    assert parent.info.status == "FINISHED" and "| noisy |" in parent.data.tags["mlflow.note.content"]


def test_mlflow_tracking_uri_is_followed(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://elsewhere/db")
    line = fail(capsys, "noisy", "--data", str(work / "pairs"), "--output", str(tmp_path / "out"))
    assert "got 'postgresql://elsewhere/db'" in line


def test_pairs_keep_their_own_noise(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "noisy", "--data", str(work / "pairs")]) == 0
    page = capsys.readouterr().out
    values = []
    for name in SIZES:
        clean, noisy = (np.asarray(Image.open(work / "pairs" / part / f"{name}.png")) for part in ("clean", "noisy"))
        values.append(peak_signal_noise_ratio(clean, noisy))
    assert "### pairs, pairs (2 images)" in page
    assert f"| noisy | {np.mean(values):.2f} |" in page


def test_deep_images_are_scored_with_all_their_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    clean = random.integers(10_000, 50_000, (40, 32, 3)).astype(np.uint16)
    noisy = clean + random.integers(0, 60, clean.shape).astype(np.uint16)  # less than a grey level of 8 bits
    write_image(tmp_path / "pairs" / "clean" / "a.png", clean)
    write_image(tmp_path / "pairs" / "noisy" / "a.png", noisy)
    assert main(["evaluate", "noisy", "--data", str(tmp_path / "pairs")]) == 0
    assert f"| noisy | {peak_signal_noise_ratio(clean, noisy, data_range=65535):.2f} |" in capsys.readouterr().out


def test_grey_images_are_scored_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = np.random.default_rng(0).integers(80, 170, (40, 32), dtype=np.uint8)
    for name in ("a", "b"):
        write_image(tmp_path / "set" / f"{name}.png", grey)
    arguments = ["evaluate", "noisy", "--data", str(tmp_path / "set"), "--noise", "awgn:10"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert [Path(line.partition("image ")[2].split()[0]).name for line in error.splitlines()] == ["a.png", "b.png"]
    assert (
        error.count("must be RGB, got grey; `data.promote_grey=true` (`--promote-grey` of denoise and evaluate)") == 2
    )
    assert main([*arguments, "--promote-grey"]) == 0
    assert "### set, awgn:10 (2 images)" in capsys.readouterr().out


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail; return its one line."""
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("denoise-nas: error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(("name", "key"), [("mirnet", "state_dict"), ("nafnet", "params")])
def test_checkpoints_with_published_names_are_models(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, key: str
) -> None:
    sizes = {"num_blocks": 1} if name == "mirnet" else {
        "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)
    }  # fmt: skip
    network = build_baseline(name, num_channels=8, **sizes)
    torch.save({key: {f"module.{k}": tensor for k, tensor in network.state_dict().items()}}, tmp_path / "net.pth")
    assert main(["evaluate", str(tmp_path / "net.pth"), "--data", str(work / "set")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "net.pth |" in line)
    assert f"| {sum(p.numel() for p in network.parameters()) / 1e6:.3f} |" in line


def test_what_cannot_be_evaluated_gives_one_line_before_work_starts(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = ["--data", str(work / "set")], ["--output", str(tmp_path / "out")]
    assert "noise" in fail(capsys, "noisy", *data, *out, "--noise", "awgn:300")
    assert "noise" in fail(capsys, "noisy", *data, *out, "--noise", "rain")
    assert "pairs" in fail(capsys, "noisy", *data, *out, "--noise", "pairs")
    assert "distinct" in fail(capsys, "noisy", "noisy", *data, *out)
    assert "`--device` must be cpu or cuda, got 'gpu'" in fail(capsys, "noisy", *data, *out, "--device", "gpu")
    assert "`--tile-size` must be at least 1, got 0" in fail(capsys, "noisy", *data, *out, "--tile-size", "0")
    assert "give either `--noise`" in fail(capsys, "noisy", *data, *out, "--noise", "awgn:5", "--sigma-255", "5")
    assert "nobody" in fail(capsys, "noisy", "nobody", *data, *out)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch sees no CUDA device" in fail(capsys, "noisy", *data, *out, "--device", "cuda")
    (tmp_path / "text.onnx").write_text("no model")
    assert "text.onnx cannot be read" in fail(capsys, "noisy", str(tmp_path / "text.onnx"), *data, *out)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_give_one_line_with_file_and_reason(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = SearchSpace(num_channels=16, num_resolutions=2, num_layers=3, candidate_ops=("conv_d1", "skip"))
    genotype: Genotype = sample_genotype(space, generator=torch.Generator().manual_seed(0))
    genotype.save(tmp_path / "genotype.json")
    save_file({"other.weight": torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    for name in (tmp_path, tmp_path / "genotype.json"):
        line = fail(capsys, "noisy", str(name), "--data", str(work / "set"))
        assert f"{tmp_path / 'model.safetensors'} do not belong to genotype {genotype.genotype_id}: missing" in line
        assert "unknown ['other.weight']" in line
    torch.save({"conv.weight": torch.zeros(3, 3, 3, 3)}, tmp_path / "other.pth")
    line = fail(capsys, str(tmp_path / "other.pth"), "--data", str(work / "set"))
    assert "other.pth is no MIRNet and no NAFNet" in line and "conv.weight" in line


def test_a_table_of_other_columns_is_not_overwritten(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.csv").write_text("mine\n1\n")
    line = fail(capsys, "noisy", "--data", str(work / "set"), "--output", str(tmp_path))
    assert "evaluation.csv cannot be read: it must have the columns model, dataset" in line and "['mine']" in line
    assert (tmp_path / "evaluation.csv").read_text() == "mine\n1\n"


def test_bm3d_without_its_package_tells_how_to_get_it(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bm3d", None)  # what a missing package looks like to an import
    monkeypatch.delitem(sys.modules, "pipeline.evaluation.block_matching", raising=False)
    line = fail(capsys, "bm3d", "--data", str(work / "set"))
    assert "model bm3d needs the package bm3d" in line and "pip install 'denoise-nas[bm3d]'" in line
