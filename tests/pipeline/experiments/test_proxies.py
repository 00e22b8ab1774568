import fcntl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency import DeviceInfo, LatencyTable, Timing
from pipeline.experiments import CellJob, load_experiment, proxies, random_architectures
from pipeline.experiments.claims import judge
from pipeline.experiments.proxies import PROXIES, TARGETS, advantage, agreement, reliability, summarise
from pipeline.experiments.random_architectures import shared_architectures
from pipeline.experiments.searches import search_inputs
from pipeline.priors import load_prior
from pipeline.search_inputs import predicted_ms, space_of
from search_space import space_op_specs

SMALL = (
    "search.num_patches=8", "retrain.num_epochs=1", "retrain.steps_per_epoch=2", "collect.shared_steps=2",
    "collect.shared_batch_size=2", "search.target_ms=null",
)  # fmt: skip


@pytest.fixture
def job(make_job: Callable[..., CellJob], monkeypatch: pytest.MonkeyPatch) -> CellJob:
    """The cell of architecture 1, with invented prices: a pixel and a channel cost as much everywhere."""
    monkeypatch.setattr(random_architectures, "_NUM_DRAWS", 40)
    job = make_job("01", *SMALL)
    size = job.config.latency.image_size
    timings = {
        spec: Timing(median_ms=1e-6 * spec.height * spec.width * spec.in_channels, iqr_ms=0.0, num_repeats=1)
        for spec in space_op_specs(space_of(job.config, 16), height=size, width=size)
    }
    table = LatencyTable(DeviceInfo.current(torch.device("cpu"), num_threads=1), timings)
    return replace(job, inputs=replace(job.inputs, table=table))


def test_a_cell_has_every_proxy_and_target_and_repeats_itself(job: CellJob) -> None:
    values = proxies.run(job)
    assert values.keys() >= {*PROXIES, *(key for _, key in TARGETS.values())}
    assert values["num_steps"] == 2
    assert all(np.isfinite(value) for value in values.values())
    assert values["distance"] == pytest.approx(sum(values[f"distance_part{i}"] for i in range(3)))
    again = replace(job, folder=job.folder.parent / "repeated")  # finds the supernets and architectures of the first
    again.folder.mkdir()
    assert proxies.run(again) == values


def test_cells_that_need_supernets_at_the_same_time_train_different_parts(
    job: CellJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody is at part 0, the others are trained, and then it is waited for."""
    trained: list[int] = []
    train = random_architectures.train_shared_supernet
    theirs = open(job.folder.parent / "supernet-0-part0.lock", "w")
    fcntl.flock(theirs, fcntl.LOCK_EX)

    def record(index: int, *args: Any, **settings: Any) -> dict[str, torch.Tensor]:
        trained.append(index)
        if index == 2:
            theirs.close()  # they were killed: nothing was written
        return train(index, *args, **settings)

    monkeypatch.setattr(random_architectures, "train_shared_supernet", record)
    proxies.run(job)
    assert trained == [1, 2, 0]


@pytest.mark.parametrize("features", ["cached", "live"])
def test_features_are_kept_whatever_the_preset_says(job: CellJob, features: str) -> None:
    """The paper's presets compute them live; L_dp of all architectures is over the same patches all the same."""
    values = proxies.run(replace(job, config=job.config.with_settings({"search.prior_features": features})))
    assert values["distance"] == pytest.approx(proxies.run(job)["distance"], rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_scores_as_a_processor_does(job: CellJob) -> None:
    on_gpu = replace(job, config=job.config.with_settings({"device": "cuda"}), folder=job.folder.parent / "01-gpu")
    on_gpu.folder.mkdir()
    expected, found = proxies.run(job), proxies.run(on_gpu)
    for key in ("distance", "assembled_psnr_db", "tuned_psnr_db"):
        assert found[key] == pytest.approx(expected[key], rel=0.01)


def test_seeds_share_architectures_but_no_training(job: CellJob) -> None:
    other = replace(job, config=job.config.with_settings({"seed": 1}), folder=job.folder.parent / "01-seed1")
    other.folder.mkdir()
    one, two = proxies.run(job), proxies.run(other)
    for key in ("macs", "num_parameters", "predicted_ms"):
        assert one[key] == two[key]
    for key in ("distance", "assembled_psnr_db", "psnr_db", "inherited_psnr_db"):
        assert one[key] != two[key]


def test_trainings_have_a_length_of_their_own(job: CellJob) -> None:
    longer = replace(job, config=job.config.with_settings({"experiment.proxy_epochs": 3}))
    assert proxies.run(longer)["num_steps"] == 6


def test_architectures_cost_about_the_same(job: CellJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_architectures, "_NUM_DRAWS", 400)
    config, size = job.config, job.config.latency.image_size
    space, prior = space_of(config, 16), load_prior(config.prior.weights)
    inputs = search_inputs(job, config, prior)

    def drawn(name: str, target_ms: float | None) -> list[float]:
        cell = replace(job, folder=job.folder.parent / name / "01")
        cell.folder.mkdir(parents=True)
        settings = config.with_settings({"search.target_ms": target_ms})
        genotypes, _ = shared_architectures(cell, settings, space, inputs, num=20)
        assert len({genotype.genotype_id for genotype in genotypes}) == 20
        return [predicted_ms(job.table, genotype, size) for genotype in genotypes]

    median = drawn("median", None)
    assert max(median) < 1.1 * min(median)
    impossible = drawn("impossible", 1e-9)  # the fastest of all would span from nothing but skips to several operators
    assert max(impossible) < min(median)
    assert drawn("impossible-2", 1e-8) == impossible


def test_architectures_keep_what_the_threshold_of_the_search_allows(job: CellJob) -> None:
    config = job.config.with_settings({"search.threshold": 0.8})
    space = space_of(config, 16)
    inputs = search_inputs(job, config, load_prior(config.prior.weights))
    genotypes, _ = shared_architectures(job, config, space, inputs, num=5)
    cells = [cell for genotype in genotypes for part in genotype.parts for cell in part.cells]
    assert {len(cell.resolution_pathways) for cell in cells} == {1, 2}


def made_up(
    sign: int, num: int = 30, *, chance: float = 0.0, num_seeds: int = 3
) -> dict[int, dict[str, dict[str, float]]]:
    """Seeds whose distances order the architectures as, or against, what trainings make of them by and large."""
    rng = np.random.default_rng(0)
    seeds: dict[int, dict[str, dict[str, float]]] = {}
    for seed in range(num_seeds):
        seeds[seed] = {}
        for i in range(num):
            psnr = {key: 30 + 0.1 * i + seed + chance * rng.normal() for key in ("psnr_db", "inherited_psnr_db")}
            others = {key: float(rng.normal()) for key in PROXIES if key != "distance"}
            seeds[seed][f"{i:02}"] = others | psnr | {"distance": 1.0 - 0.01 * sign * i, "num_steps": 2.0}
    return seeds


def test_tau_is_signed_so_that_one_is_the_best() -> None:
    for target in TARGETS:
        assert agreement(made_up(1), "distance", target).value == pytest.approx(1)  # small distances, good networks
        assert agreement(made_up(-1), "distance", target).value == pytest.approx(-1)
    better = advantage(made_up(1), "distance", "macs", "scratch")
    assert better.value == pytest.approx(1 - agreement(made_up(1), "macs", "scratch").value)


def test_a_proxy_of_each_seed_is_held_against_the_mean_training_of_all() -> None:
    """Chance in trainings averages out over seeds, a proxy that is chance in two of three seeds does not."""
    one, nine = (agreement(made_up(1, chance=1.0, num_seeds=n), "distance", "scratch").value for n in (1, 9))
    assert one < 0.7 < nine
    values = made_up(1)
    rng = np.random.default_rng(1)
    for seed in (1, 2):
        for cell in values[seed].values():
            cell["distance"] = float(rng.normal())
    assert 0.2 < agreement(values, "distance", "scratch").value < 0.5


def test_reliability_falls_with_chance_and_takes_two_seeds() -> None:
    for target in TARGETS:
        exact, noisy = (reliability(made_up(1, chance=chance), target) for chance in (0.0, 1.0))
        assert exact is not None and noisy is not None
        assert [found.value for found in exact] == pytest.approx([1, 1])
        assert 0.2 < noisy[0].value < 0.8
        assert reliability(made_up(1, num_seeds=1), target) is None


def test_chance_is_what_neither_seed_nor_architecture_explains() -> None:
    values = made_up(1, num=400, chance=0.3)
    psnr = np.array([[cell["psnr_db"] for cell in of_seed.values()] for of_seed in values.values()])
    assert proxies._chance(psnr) == pytest.approx(0.3, rel=0.1)
    assert proxies._chance(psnr[:1].repeat(3, axis=0) + np.arange(3)[:, None]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_architectures_decide_a_claim(num_seeds: int) -> None:
    first, *_, last = load_experiment("proxies").claims
    assert judge(first, made_up(1, num_seeds=num_seeds)).verdict == "seen"
    assert judge(first, made_up(-1, num_seeds=num_seeds)).verdict == "not seen"
    assert judge(first, made_up(1, num=4, chance=3.0, num_seeds=num_seeds)).verdict == "not decided"
    assert judge(last, made_up(1, num_seeds=num_seeds)).verdict == ("seen" if num_seeds > 1 else "not decided")


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_summary_has_a_number_for_every_proxy_and_target(num_seeds: int) -> None:
    summary = summarise(made_up(1, chance=0.5, num_seeds=num_seeds))
    rows = summary.frame.set_index(["proxy", "target"])
    assert set(rows.index) >= {(proxy, target) for proxy in PROXIES for target in TARGETS}
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    assert all(f"| {label} | " in summary.markdown for label, _ in PROXIES.values())
    assert f"the mean PSNR of {num_seeds} trainings of 2 steps" in summary.markdown
    assert ("one seed does not tell" in summary.markdown) == (num_seeds == 1)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_figure_is_drawn(num_seeds: int, tmp_path: Path) -> None:
    (path,) = load_experiment("proxies").draw(made_up(1, num=10, chance=0.5, num_seeds=num_seeds), tmp_path)
    assert path == tmp_path / "figures" / "rank_correlations.png"
    assert path.stat().st_size > 10_000
