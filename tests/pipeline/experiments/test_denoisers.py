import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latency import DeviceInfo, LatencyTable, Timing
from pipeline.data.images import read_image, to_16_bit, write_image
from pipeline.evaluate import evaluate_denoiser, mean_score
from pipeline.experiments import CellJob, load_experiment
from pipeline.experiments.cells import FILES_FOLDER, cell_name
from pipeline.experiments.denoisers import _crops, _spread, front
from pipeline.search_inputs import space_of
from search_space import space_op_specs

SMALL = (
    "search.num_epochs=2", "search.num_patches=8", "retrain.num_epochs=1", "retrain.steps_per_epoch=2",
    "search.target_ms=null", "search.cost=macs",
)  # fmt: skip
TRAINED = {"psnr_db", "ssim", "num_parameters", "macs", "num_steps"}


def prices(job: CellJob) -> LatencyTable:
    size = job.config.latency.image_size
    timings = {
        spec: Timing(median_ms=1e-6 * spec.height * spec.width, iqr_ms=0.0, num_repeats=1)
        for spec in space_op_specs(space_of(job.config, 16), height=size, width=size)
    }
    return LatencyTable(DeviceInfo.current(torch.device("cpu"), num_threads=1), timings)


@pytest.mark.parametrize("variant", ["dncnn", "plain-unet", "nafnet", "mirnet", "searched"])
def test_networks_are_trained_scored_and_timed(make_job: Callable[..., CellJob], variant: str) -> None:
    experiment = load_experiment("denoisers")
    job = make_job(variant, *SMALL)
    job = replace(job, inputs=replace(job.inputs, table=prices(job)))
    values = experiment.run(job)
    assert values.keys() == TRAINED
    assert experiment.measure(job)["measured_ms"] > 0
    (path,) = job.folder.glob("crop*.png")
    with Image.open(path) as crop:
        assert crop.size == (32, 64)


def test_the_noisy_input_and_further_sets(make_job: Callable[..., CellJob], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("mine/a", "pairs/clean/a", "pairs/noisy/a"):
        path = tmp_path / "sets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, rng.integers(60, 190, (32, 32, 3), dtype=np.uint8))
    sets = f"[{tmp_path}/sets/mine, {tmp_path}/sets/pairs]"
    job = make_job("noisy", *SMALL, f"experiment.data={sets}", "experiment.noise=[awgn:25]")
    experiment = load_experiment("denoisers")
    values = experiment.run(job)
    assert values.keys() == {
        f"{metric}{where}" for metric in ("psnr_db", "ssim") for where in ("", " mine awgn:25", " pairs pairs")
    }
    assert values["psnr_db mine awgn:25"] == pytest.approx(20 * np.log10(255 / 25), abs=0.4)
    scores = evaluate_denoiser(torch.nn.Identity(), job.inputs.validation_images, sigma=25 / 255, device="cpu")
    assert values["psnr_db"] == pytest.approx(mean_score(scores).psnr_db)
    assert experiment.measure(job) == {}


def test_crops_are_kept_of_every_set_with_the_last_noise_of_every_kind(
    make_job: Callable[..., CellJob], tmp_path: Path
) -> None:
    write_image(tmp_path / "mine" / "a.png", np.random.default_rng(0).integers(60, 190, (32, 32, 3), dtype=np.uint8))
    noise = "experiment.noise=[awgn:15, awgn:50, niid:1]"
    job = make_job("noisy", *SMALL, f"experiment.data=[{tmp_path}/mine]", noise)
    cell = tmp_path / "experiment" / FILES_FOLDER / cell_name("noisy", 0)
    load_experiment("denoisers").run(replace(job, folder=cell))
    first, *rows = _crops(tmp_path / "experiment", 0)
    assert first in job.inputs.validation_images
    assert rows == ["mine awgn-50", "mine niid-1"]


def test_pairs_are_trained_on_and_scored_as_they_are(make_job: Callable[..., CellJob], tmp_path: Path) -> None:
    write_image(tmp_path / "mine" / "a.png", np.random.default_rng(0).integers(60, 190, (32, 32, 3), dtype=np.uint8))
    job = make_job("plain-unet", *SMALL, "noise.model=pairs", f"experiment.data=[{tmp_path}/mine]",
                   "experiment.noise=[awgn:25]")  # fmt: skip
    pairs = {
        kind: {name: np.concatenate([image, 255 - image], axis=2) for name, image in images.items()}
        for kind, images in
        (("training_images", job.inputs.training_images), ("validation_images", job.inputs.validation_images))
    }  # fmt: skip
    job = replace(job, inputs=replace(job.inputs, **pairs))
    values = load_experiment("denoisers").run(job)
    assert values.keys() == TRAINED | {"psnr_db mine awgn:25", "ssim mine awgn:25"}


def test_block_matching_is_not_told_a_sigma_of_pairs(
    make_job: Callable[..., CellJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    sigmas = []

    class Recorder(torch.nn.Identity):
        def __init__(self, *, sigma: float | None) -> None:
            super().__init__()
            sigmas.append(sigma)

    stand_in = types.ModuleType("pipeline.evaluation.block_matching")
    stand_in.BM3D = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    for model in ("awgn", "pairs"):
        load_experiment("denoisers").run(make_job("bm3d", *SMALL, f"noise.model={model}"))
    assert sigmas == [25 / 255, None]


def test_every_set_of_table_v_has_the_papers_figures() -> None:
    variants = {variant.name: variant.paper for variant in load_experiment("denoisers").variants}
    assert variants["searched"]["psnr_db Set5 niid:3"] == 30.13
    assert variants["bm3d"]["psnr_db CBSD68 niid:1"] == 26.51
    assert all(len(variants[name]) == 12 for name in ("bm3d", "dncnn", "mirnet", "searched"))


def test_crops_of_deep_images_keep_their_bits(make_job: Callable[..., CellJob], tmp_path: Path) -> None:
    experiment, folder = load_experiment("denoisers"), tmp_path / "experiment"
    job = make_job("noisy", *SMALL)
    cell = folder / FILES_FOLDER / cell_name("noisy", 0)
    deep = {name: to_16_bit(image) for name, image in job.inputs.validation_images.items()}
    experiment.run(replace(job, folder=cell, inputs=replace(job.inputs, validation_images=deep)))
    (path,) = cell.glob("crop*.png")
    assert read_image(path).dtype == np.uint16
    (row,) = _crops(folder, 0).values()
    (denoised, decibels), (clean, _) = row["noisy"], row["clean"]
    assert decibels == pytest.approx(-20 * np.log10((denoised / 65535 - clean / 65535).std()), abs=0.5)


def test_the_front_holds_what_nothing_beats() -> None:
    points = {"slow": (9.0, 31.0), "fast": (1.0, 29.0), "poor": (2.0, 28.0), "late": (10.0, 31.0), "mid": (3.0, 30.0)}
    assert front(points) == ["fast", "mid", "slow"]


def test_figures(make_job: Callable[..., CellJob], tmp_path: Path) -> None:
    experiment = load_experiment("denoisers")
    folder = tmp_path / "experiment"
    job = make_job("noisy", *SMALL)
    cell = folder / FILES_FOLDER / cell_name("noisy", 0)
    cell.mkdir(parents=True)
    experiment.run(replace(job, folder=cell))
    values = {0: {variant.name: {"psnr_db": 30.0 + i, "measured_ms": 1.0 + i} if i > 1 else {"psnr_db": 20.0}
                  for i, variant in enumerate(experiment.variants)}}  # fmt: skip
    paths = experiment.draw(values, folder)
    assert [path.name for path in paths] == ["front.png", "crops.png"]
    assert all(path.stat().st_size > 5_000 for path in paths)


def test_images_of_a_set_are_taken_at_equal_distances() -> None:
    assert list(_spread(iter(range(68)), 68, 12)) == list(range(0, 68, 6))
    assert list(_spread(iter(range(5)), 5, 12)) == list(_spread(iter(range(5)), 5, None)) == list(range(5))
