"""The command line without Ray: help, one clear line for what a user gets wrong, and denoising files."""

import json
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from scipy.io import loadmat

from pipeline.cli import main
from pipeline.config import load_config
from pipeline.data.images import decode_image, read_image, to_16_bit, white_level, write_image
from pipeline.priors import MIRNet, load_prior, save_prior
from pipeline.run import claimed, locked, open_run

COMMANDS = (
    "run", "latency build", "prior train", "baseline train", "search", "derive", "retrain", "evaluate", "denoise",
    "dnd", "export",
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder: relative outputs land there."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def model(tmp_path: Path, small_mirnet: MIRNet) -> str:
    save_prior(small_mirnet, tmp_path / "prior.safetensors")
    return str(tmp_path / "prior.safetensors")


@pytest.fixture
def photograph(tmp_path: Path, images: list[np.ndarray]) -> str:
    write_image(tmp_path / "photograph.png", images[0][:37, :31])
    return str(tmp_path / "photograph.png")


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail; return its one line."""
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("denoise-nas: error: ")
    assert error.count("\n") == 1 and error.endswith("\n")
    return error


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: denoise-nas {command}".strip() in text
    if not command:
        assert all(name.split()[0] in text for name in COMMANDS)


def test_help_does_not_load_ray_mlflow_or_torchs_rivals() -> None:
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'ray', 'mlflow', 'optuna'} & set(sys.modules)))"
    )
    folder = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_command_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "search", "retrain", "derive"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serach.num_epochs=3"], "unknown key `serach`; known here are "),
        (["search.num_epochs=few"], "`search.num_epochs` must be of type int, got 'few'"),
        (["search.patch_size=50"], "`search.patch_size` must be a multiple of 4, got 50"),
        (["--config", "quik"], "configuration 'quik' is neither a file nor a preset; presets are "),
        (["data.training=nowhere"], "image folder nowhere does not exist"),
        (["prior.weights=nobody"], "prior 'nobody' is neither a file nor a shipped prior; shipped are mirnet16"),
        (["space.num_layers=2"], "`num_layers` must be an integer from 5 to 64, got 2"),
        (["space.candidate_ops=[conv_d1, magic]"], "`candidate_ops` must be among "),
        (["space.op_files=[mine.py]"], "operator file mine.py does not exist"),
        (["device=cuda"], "`device` is cuda, but torch sees no CUDA device"),
    ],
)
def test_a_wrong_setting_gives_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: Path,
    command: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in fail(capsys, command, *arguments)
    assert list(elsewhere.iterdir()) == []  # nothing was begun


def test_images_too_small_for_a_patch_give_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, images: list[np.ndarray]
) -> None:
    (tmp_path / "data").mkdir()
    write_image(tmp_path / "data" / "small.png", images[0][:20])
    line = fail(capsys, "search", "--config", "quick", f"data.training={tmp_path / 'data'}")
    assert re.search(r"image .*small\.png must have at least 48 pixels on both sides, got 64x20", line)


def test_test_sets_of_an_experiment_are_read_before_it_begins(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, images: list[np.ndarray]
) -> None:
    write_image("set/grey.png", images[0][..., 0])
    line = fail(capsys, "experiment", "denoisers", "--config", "tiny", "experiment.data=[set]")
    assert "image set/grey.png must be RGB, got grey" in line
    assert [path.name for path in elsewhere.iterdir()] == ["set"]


def test_an_excluded_image_that_is_not_there_gives_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, images: list[np.ndarray]
) -> None:
    (tmp_path / "data").mkdir()
    write_image(tmp_path / "data" / "a.png", images[0])
    line = fail(capsys, "run", "--config", "tiny", f"data.training={tmp_path / 'data'}", "data.exclude=[b]")
    assert "`data.exclude` names 'b', which is not in" in line


@pytest.mark.parametrize(
    ("command", "setting"),
    [("run", "data.validation"), ("collect", "data.validation"), ("denoisers", "experiment.data")],
)
def test_images_that_are_trained_on_are_not_scored(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, images: list[np.ndarray], command: str, setting: str
) -> None:
    write_image("mine/a.png", images[0])
    words = ["experiment", "denoisers"] if command == "denoisers" else [command]
    line = fail(capsys, *words, "--config", "tiny", "data.training=mine", f"{setting}=[mine]")
    assert (
        f"`data.training` and `{setting}` must have no image in common, got 1 files in both, such as {elsewhere}"
        in line
    )
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]


def test_a_folder_of_another_run_gives_one_line(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    load_config("tiny", ["output=mine"]).save(elsewhere / "mine" / "config.yaml")
    line = fail(capsys, "search", "--config", "tiny", "--output", "mine", "seed=1")
    assert "mine holds a run of other settings" in line


WORKS = ("run", "baseline", "collection", "experiment")


@pytest.mark.parametrize("work", WORKS)
def test_a_folder_is_for_one_kind_of_work(elsewhere: Path, work: str) -> None:
    run = open_run(load_config("tiny", ["output=mine"]))
    for kind in (None, work, work, None):  # prices may be part of any
        with claimed(run, kind):
            pass
    for other in set(WORKS) - {work}:
        with pytest.raises(ValueError, match=f"mine is of the kind '{work}', this is '{other}'; choose another"):
            with claimed(run, other):
                pass


@pytest.mark.parametrize(
    ("work", "mark"), [("run", "summary.json"), ("baseline", "baseline.json"), ("collection", "collection.json")]
)
def test_a_folder_of_an_earlier_version_is_for_what_it_holds(elsewhere: Path, work: str, mark: str) -> None:
    run = open_run(load_config("tiny", ["output=mine"]))
    run.config.save(run.path("config.yaml"))
    run.path(mark).write_text("{}")
    with pytest.raises(ValueError, match=f"mine is of the kind '{work}', this is 'experiment'"):
        with claimed(run, "experiment"):
            pass
    with claimed(run, work):
        pass


def test_deriving_without_a_search_gives_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = fail(capsys, "derive", "--config", "tiny", "--output", "mine")
    assert "mine holds no finished search; run `denoise-nas search` first" in line
    assert not Path("mine").exists()


@pytest.mark.parametrize("command", ["denoise", "evaluate"])
def test_a_missing_model_gives_one_line(
    capsys: pytest.CaptureFixture[str], photograph: str, elsewhere: Path, command: str
) -> None:
    rest = [photograph, "--output", "out"] if command == "denoise" else []
    assert "prior 'nobody' is neither a file nor a shipped prior" in fail(capsys, command, "nobody", *rest)
    (elsewhere / "empty").mkdir()
    assert "empty holds no `model.safetensors`" in fail(capsys, command, "empty", *rest)
    (elsewhere / "text.pth").write_text("no checkpoint")
    assert "text.pth is damaged or not weights-only" in fail(capsys, command, "text.pth", *rest)


def test_an_unreadable_image_gives_one_line(
    capsys: pytest.CaptureFixture[str], model: str, photograph: str, elsewhere: Path
) -> None:
    (elsewhere / "broken.png").write_bytes(Path(photograph).read_bytes()[:100])
    line = fail(capsys, "denoise", model, photograph, "broken.png", "--output", "out")
    assert "image broken.png cannot be decoded" in line
    assert not (elsewhere / "out").exists()  # nothing half done
    assert "image none.png does not exist" in fail(capsys, "denoise", model, "none.png", "--output", "out")
    assert main(["denoise", model, "broken.png", photograph, "none.png", "--output", "out"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "image broken.png cannot be decoded" in first and "image none.png does not exist" in second


def test_denoise_holds_few_images_at_a_time(
    monkeypatch: pytest.MonkeyPatch, model: str, images: list[np.ndarray], elsewhere: Path
) -> None:
    names = [f"{index}.png" for index in range(5)]
    for name in names:
        write_image(name, images[0])
    decoded: list[weakref.ref[np.ndarray]] = []
    most = 0

    def decode(path: str, *, allow_grey: bool) -> np.ndarray:
        nonlocal most
        image = decode_image(path, allow_grey=allow_grey)
        decoded.append(weakref.ref(image))
        most = max(most, sum(reference() is not None for reference in decoded))
        return image

    monkeypatch.setattr("pipeline.data.images.decode_image", decode)
    monkeypatch.setattr("pipeline.data.loading.decode_image", decode, raising=False)
    assert main(["denoise", model, *names, "--output", "out"]) == 0
    assert len(list((elsewhere / "out").iterdir())) == 5
    assert most <= 2  # an image, and the next one while it is decoded


def test_an_output_that_is_not_finite_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str, photograph: str, elsewhere: Path
) -> None:
    monkeypatch.setattr(MIRNet, "forward", lambda self, noisy: noisy * torch.nan)
    line = fail(capsys, "denoise", model, photograph, "--output", "out")
    assert f"the denoiser's output for image {photograph} is not finite" in line
    assert list((elsewhere / "out").iterdir()) == []


def test_unusable_images_of_both_sets_are_named_together(
    capsys: pytest.CaptureFixture[str], photograph: str, elsewhere: Path
) -> None:
    for folder in ("mine", "yours"):
        (elsewhere / folder).mkdir()
        (elsewhere / folder / f"broken-{folder}.png").write_bytes(Path(photograph).read_bytes()[:100])
    settings = ["data.training=mine", "data.validation=yours"]
    assert main(["run", "--config", "tiny", "--output", "out", *settings]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "broken-mine.png cannot be decoded" in first and "broken-yours.png cannot be decoded" in second
    assert not (elsewhere / "out").exists()


def test_an_impossible_tile_gives_one_line(capsys: pytest.CaptureFixture[str], model: str, photograph: str) -> None:
    line = fail(capsys, "denoise", model, photograph, "--output", "out", "--tile-size", "0")
    assert "`tile_size` must be at least 1, got 0" in line


def test_an_impossible_sigma_gives_one_line(capsys: pytest.CaptureFixture[str], model: str) -> None:
    assert "`--sigma-255` must lie in [0, 255], got 300" in fail(capsys, "evaluate", model, "--sigma-255", "300")


def test_an_unknown_device_gives_one_line(capsys: pytest.CaptureFixture[str], model: str, photograph: str) -> None:
    line = fail(capsys, "denoise", model, photograph, "--output", "out", "--device", "gpu")
    assert "`--device` must be cpu or cuda, got 'gpu'" in line


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["denoise", "mirnet16", "none.png", "--output", "out", "--device", "cuda"], "--device"),
        (["dnd", "mirnet16", "nowhere", "--output", "out", "--device", "cuda"], "--device"),
        (["prior", "train", "--images", "nowhere", "--to", "mine.safetensors", "device=cuda"], "device"),
        (["baseline", "train", "dncnn", "--config", "tiny", "device=cuda", "data.training=nowhere",
          "ray.address='10.0.0.1:6379'", "ray.gpus_per_part=1"], "device"),
    ],
)  # fmt: skip
def test_a_missing_gpu_gives_one_line_before_images_are_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, elsewhere: Path, arguments: list[str],
    name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert f"`{name}` is cuda, but torch sees no CUDA device" in fail(capsys, *arguments)
    assert list(elsewhere.iterdir()) == []


def test_images_of_odd_size_are_denoised_as_the_model_does(model: str, photograph: str, elsewhere: Path) -> None:
    assert main(["denoise", model, photograph, "--output", "new/out"]) == 0
    result = read_image(elsewhere / "new" / "out" / "photograph.png")
    assert result.shape == (37, 31, 3)
    assert not np.array_equal(result, read_image(photograph))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_images_of_16_bits_are_denoised_to_16(
    model: str, images: list[np.ndarray], elsewhere: Path, suffix: str
) -> None:
    """The 8-bit file has the same picture: results agree up to its rounding, and fill the bits below."""
    deep = to_16_bit(images[0])
    (elsewhere / "deep").mkdir()
    tifffile.imwrite("deep/deep.tif", deep, photometric="rgb", compression="lzw")
    write_image("deep/deep.png", deep)
    write_image("shallow.png", images[0])
    assert main(["denoise", model, f"deep/deep{suffix}", "shallow.png", "--output", "out"]) == 0
    found, shallow = read_image("out/deep.png"), read_image("out/shallow.png")
    assert (found.dtype, shallow.dtype) == (np.uint16, np.uint8)
    assert np.abs(found / 257 - shallow).max() < 0.501
    assert len(np.unique(found % 257)) > 200


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_images_are_denoised_to_grey_on_request(
    capsys: pytest.CaptureFixture[str], model: str, images: list[np.ndarray], elsewhere: Path, dtype: type
) -> None:
    grey = images[0][..., 0].astype(dtype) * dtype(white_level(np.empty(0, dtype)) // 255)
    write_image("grey.png", grey)
    write_image("rgb.png", np.repeat(grey[..., np.newaxis], 3, axis=2))
    line = fail(capsys, "denoise", model, "rgb.png", "grey.png", "--output", "out")
    assert "image grey.png must be RGB, got grey; `data.promote_grey=true` (`--promote-grey` of denoise and" in line
    assert not (elsewhere / "out").exists()
    assert main(["denoise", model, "rgb.png", "grey.png", "--output", "out", "--promote-grey"]) == 0
    found, rgb = decode_image("out/grey.png", allow_grey=True), read_image("out/rgb.png")
    assert (found.shape, found.dtype) == (grey.shape, dtype)
    inside = (rgb.min(axis=2) > 0) & (rgb.max(axis=2) < white_level(rgb))  # elsewhere, the channels are clipped first
    assert inside.mean() > 0.5
    assert np.abs(found - rgb.mean(axis=2))[inside].max() <= 1


@pytest.mark.parametrize(("tile_size", "most"), [("16", 8), ("32", 3), ("36", 3)])
def test_tiles_give_nearly_the_same(model: str, photograph: str, elsewhere: Path, tile_size: str, most: float) -> None:
    assert main(["denoise", model, photograph, "--output", "whole"]) == 0
    assert main(["denoise", model, photograph, "--output", "tiles", "--tile-size", tile_size]) == 0
    whole, tiles = (read_image(elsewhere / name / "photograph.png").astype(int) for name in ("whole", "tiles"))
    assert np.abs(whole - tiles).mean() < most


def test_denoise_overwrites_nothing_unless_told_to(
    capsys: pytest.CaptureFixture[str], model: str, photograph: str, elsewhere: Path
) -> None:
    (elsewhere / "out").mkdir()
    target = elsewhere / "out" / "photograph.png"
    target.write_text("mine")
    line = fail(capsys, "denoise", model, photograph, "--output", "out")
    assert "photograph.png exist already; give --overwrite or another --output" in line
    assert target.read_text() == "mine"
    assert main(["denoise", model, photograph, "--output", "out", "--overwrite"]) == 0
    assert read_image(target).shape == (37, 31, 3)


def test_denoise_does_not_replace_its_own_input(
    capsys: pytest.CaptureFixture[str], model: str, photograph: str
) -> None:
    before = Path(photograph).read_bytes()
    fail(capsys, "denoise", model, photograph, "--output", str(Path(photograph).parent))
    assert Path(photograph).read_bytes() == before


def test_images_of_the_same_name_are_refused(
    capsys: pytest.CaptureFixture[str], model: str, photograph: str, elsewhere: Path
) -> None:
    Image.open(photograph).save(elsewhere / "photograph.bmp")
    assert "same name" in fail(capsys, "denoise", model, photograph, "photograph.bmp", "--output", "out")


def test_a_prior_is_trained_and_resumed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, elsewhere: Path, images: list[np.ndarray]
) -> None:
    (tmp_path / "data").mkdir()
    for index, image in enumerate(images):
        write_image(tmp_path / "data" / f"{index}.png", image)
    numbers = {"num_channels": 8, "patch_size": 16, "batch_size": 2, "num_steps": 2, "checkpoint_every": 1}
    settings = [f"prior_train.{name}={value}" for name, value in numbers.items()]
    command = ["prior", "train", "--images", str(tmp_path / "data"), *settings]
    assert main([*command, "--to", "mine.safetensors"]) == 0
    assert load_prior("mine.safetensors").num_channels == 8
    first = (elsewhere / "mine.safetensors").read_bytes()
    assert main([*command, "--to", "mine.safetensors"]) == 0  # goes on from the finished checkpoint
    assert (elsewhere / "mine.safetensors").read_bytes() == first
    assert "`--to` must name a .safetensors file" in fail(capsys, *command, "--to", "mine.pth")
    assert "was made by" in fail(capsys, *command, "--to", "mine.safetensors", "prior_train.seed=5")
    shutil.copytree(tmp_path / "data", tmp_path / "more")
    line = fail(capsys, *command, "--images", str(tmp_path / "more"), "--to", "mine.safetensors")
    assert "was made by" in line and "'images': '4, fingerprint" in line


@pytest.mark.slow
def test_latency_build_prints_prices_per_operator_and_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["latency", "build", "--config", "tiny", "--output", "mine"]) == 0
    text = capsys.readouterr().out
    rows = [re.split(r"\s*│\s*", line.strip("│ ")) for line in text.splitlines() if line.startswith("│")]
    assert [row[:3] for row in rows if row[0] == "conv_d1"] == [
        ["conv_d1", "32x32", "26"],  # 25 pairs of widths and the first stem, 3 -> C
        ["conv_d1", "16x16", "25"],
    ]
    for row in rows:
        low, middle, high = map(float, row[3:])
        assert 0 <= low <= middle <= high
    assert (elsewhere / "mine" / "latency.parquet").exists()
    assert "saved in mine/latency.parquet" in text


def test_verbose_shows_the_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        main(["search", "--config", "quik", "--verbose"])


def test_ctrl_c_exits_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str, photograph: str
) -> None:
    def interrupt(path: str, *, allow_grey: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.data.images.decode_image", interrupt)
    assert main(["denoise", model, photograph, "--output", "out"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_the_saved_configuration_is_the_resolved_one(elsewhere: Path) -> None:
    config = load_config("tiny", ["output=mine", "seed=4"])
    with claimed(open_run(config)):
        assert load_config("mine/config.yaml") == config
    assert "seed: 4" in (elsewhere / "mine" / "config.yaml").read_text()


HOLD = """
import sys, time
from pathlib import Path
from pipeline.run import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_command_in_a_folder_is_refused_until_the_first_is_gone_however_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = ["search", "--config", "tiny", "--output", str(folder)]
    folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        assert main(command) == 2
        assert f"another process is working in {folder}; wait for it or choose another" in capsys.readouterr().err
        assert not (folder / "config.yaml").exists()  # it is not the second one's
    finally:
        holder.kill()
        holder.communicate()
    with locked(folder):
        pass


def test_memory_that_runs_out_is_one_line(
    monkeypatch: pytest.MonkeyPatch, model: str, photograph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network asks for more than there can be."""

    def greedy(self: MIRNet, noisy: torch.Tensor) -> torch.Tensor:
        return noisy + torch.from_numpy(np.empty(2**61, np.uint8))

    monkeypatch.setattr(MIRNet, "forward", greedy)
    assert main(["denoise", model, photograph, "--output", "out"]) == 2
    assert "denoise-nas: error: out of memory: Unable to allocate 2.00 EiB" in capsys.readouterr().err


def test_a_library_that_does_not_speak_of_memory_is_helped(
    monkeypatch: pytest.MonkeyPatch, model: str, photograph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: MIRNet, noisy: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(MIRNet, "forward", fails)
    assert main(["denoise", model, photograph, "--output", "out"]) == 2
    line = "denoise-nas: error: could not create a primitive; there may be too little memory"
    assert line in capsys.readouterr().err


def test_bm3d_that_is_missing_is_said_before_the_experiment_begins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    elsewhere: Path,
) -> None:  # fmt: skip
    def warnings(name: str) -> int:
        caplog.clear()
        fail(capsys, "experiment", name, "--config", "tiny", "data.training=missing")  # ends before any work
        return caplog.text.count("the package bm3d is not installed: row bm3d is left empty")

    monkeypatch.setitem(sys.modules, "bm3d", None)  # what a missing package looks like to an import
    assert warnings("denoisers") == 1
    assert warnings("resampling") == 0
    monkeypatch.setitem(sys.modules, "bm3d", sys.modules[__name__])
    assert warnings("denoisers") == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 0}', '{"genotype_id": "a", "seed": 0, "psnr_db": 3, "ssim": 3}'])
def test_a_damaged_summary_is_named(capsys: pytest.CaptureFixture[str], elsewhere: Path, text: str) -> None:
    (elsewhere / "out").mkdir()
    (elsewhere / "out" / "summary.json").write_text(text)
    line = fail(capsys, "run", "--config", "tiny", "--output", "out")
    assert "out/summary.json is damaged: " in line and "remove it, and the same command writes it again" in line


def test_a_run_on_a_server_is_seen_at_its_address(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"latency_image_size": 64, "macs_image_size": 64, "num_parameters": 1, "macs": 1, "seconds": {"total": 1}}
    times = {"measured_latency_ms": 1, "predicted_latency_ms": None}
    prior = {"prior_latency_ms": 1, "prior_num_parameters": 1, "prior_macs": 1}
    quality = dict.fromkeys(("psnr_db", "ssim"), dict.fromkeys(("noisy", "prior", "denoised"), 1))
    summary = {"genotype_id": "a017", "seed": 0} | quality | sizes | times | prior
    (elsewhere / "out").mkdir()
    (elsewhere / "out" / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9/")
    assert main(["run", "--config", "tiny", "--output", "out"]) == 0
    assert "everything is in out; see it at http://127.0.0.1:9\n" in capsys.readouterr().out


@pytest.fixture
def received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a collection from another machine, whose settings name a database; its study is made up."""
    from pipeline.study import Study

    folder = tmp_path / "received" / "first"
    folder.mkdir(parents=True)
    load_config("tiny", [f"tracking.uri=sqlite:///{tmp_path}/elsewhere/mlflow.db"]).save(folder / "config.yaml")
    (folder / "mlflow_run_id").write_text("0123\n")
    (folder / "records").mkdir()
    summary = pd.DataFrame({"quantity": ["PSNR"], "searched": ["1"], "random": ["2"], "paper": ["3"]})
    study = Study(summary=summary, answers=(), tables={}, files=())
    monkeypatch.setattr("pipeline.study.analyze", lambda *_, **__: study)
    monkeypatch.setattr("pipeline.records.write_dataset", lambda *_: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def test_a_report_needs_no_tracking_server(
    received: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["analyze", str(received)]) == 0
    assert f"report: {received / 'study' / 'report.html'}" in capsys.readouterr().out
    database = received.parent / "mlflow.db"
    missing = f"the report is not in MLflow: database {database} does not exist, it should hold run 0123"
    assert caplog.text.count(missing) == 1
    assert main(["analyze", str(received), "tracking.uri=http://127.0.0.1:9"]) == 0
    assert "the report is not in MLflow: no MLflow server answers at http://127.0.0.1:9" in caplog.text


def test_a_received_folder_does_not_say_where_to_record(
    received: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    named = (
        f"config.yaml names the tracking server or database 'sqlite:///{tmp_path}/elsewhere/mlflow.db', which is not"
    )
    assert main(["analyze", str(received)]) == 0
    assert caplog.text.count(named) == 1
    line = fail(capsys, "track", str(received))
    assert f"database {received.parent / 'mlflow.db'} does not exist, it should hold run 0123" in line
    assert caplog.text.count(named) == 2
    (received / "mlflow_run_id").unlink()
    assert main(["track", str(received)]) == 0
    assert f"0 of 0 records sent to sqlite:///{received.parent / 'mlflow.db'}" in capsys.readouterr().out
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def dnd(tmp_path: Path) -> Path:
    """A set of DND's form: 50 images of 16 x 16, 20 boxes of 8 x 8 in each."""
    folder = tmp_path / "DND"
    (folder / "images_srgb").mkdir(parents=True)
    with h5py.File(folder / "info.mat", "w") as file:
        file["box"] = np.tile([[1.0], [1.0], [8.0], [8.0]], 20)
        references = np.full((1, 50), file["box"].ref, dtype=h5py.ref_dtype)
        file["info/boundingboxes"] = references
    for index in range(1, 51):
        with h5py.File(folder / "images_srgb" / f"{index:04}.mat", "w") as file:
            file["InoisySRGB"] = np.full((3, 16, 16), index / 51)
    return folder


def test_a_submission_to_dnd_is_of_one_model(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, tmp_path: Path, dnd: Path, model: str
) -> None:
    assert main(["dnd", model, str(dnd), "--output", "s"]) == 0
    assert "50 files in s" in capsys.readouterr().out
    names = [f"{index:04}.mat" for index in range(1, 51)]
    assert sorted(path.name for path in (elsewhere / "s").iterdir()) == names
    crop = loadmat(elsewhere / "s" / "0007.mat")["Idenoised"].reshape(-1)[3]
    noisy = torch.full((1, 3, 8, 8), 7 / 51)
    with torch.no_grad():
        expected = load_prior(model)(noisy)[0].clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(crop, expected, atol=1e-5)

    (elsewhere / "s" / "0050.mat").unlink()  # it goes on with the same model alone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_prior(MIRNet(num_channels=8, num_blocks=1), tmp_path / "other.safetensors")
    line = fail(capsys, "dnd", str(tmp_path / "other.safetensors"), str(dnd), "--output", "s")
    assert re.search(
        rf"{elsewhere}/s holds a submission of another model or tile size \(fingerprint \w+, this is \w+\)", line
    )
    line = fail(capsys, "dnd", model, str(dnd), "--output", "s", "--tile-size", "6")
    assert re.search(r"this is \w+-tile6\)", line)
    assert not (elsewhere / "s" / "0050.mat").exists()
    assert main(["dnd", model, str(dnd), "--output", "s"]) == 0
    (elsewhere / "s.model").unlink()
    assert "of another model or tile size (fingerprint unknown, this is" in fail(
        capsys, "dnd", model, str(dnd), "--output", "s"
    )


def test_files_of_dnd_are_checked_before_the_work(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, dnd: Path, model: str
) -> None:
    with h5py.File(dnd / "images_srgb" / "0050.mat", "w") as file:
        file["raw"] = 1
    line = fail(capsys, "dnd", model, str(dnd), "--output", "s")
    assert "images_srgb/0050.mat must hold `InoisySRGB`, got raw" in line
    (dnd / "images_srgb" / "0050.mat").write_bytes(b"damaged")
    assert "0050.mat cannot be read as a MATLAB" in fail(capsys, "dnd", model, str(dnd), "--output", "s")
    assert list(elsewhere.iterdir()) == []
