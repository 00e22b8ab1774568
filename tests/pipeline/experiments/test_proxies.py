from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from latency import DeviceInfo, LatencyTable, Timing
from pipeline.experiments import CellJob, load_experiment, proxies
from pipeline.experiments.proxies import PROXIES, intervals, rank_correlation
from pipeline.search import space_of
from search_space import space_op_specs

SMALL = (
    "search.num_patches=8", "retrain.num_epochs=1", "retrain.steps_per_epoch=2", "collect.shared_steps=2",
    "collect.shared_batch_size=2", "search.target_ms=null",
)  # fmt: skip


@pytest.fixture
def job(make_job: Callable[..., CellJob], monkeypatch: pytest.MonkeyPatch) -> CellJob:
    """The cell of architecture 1, with invented prices: a pixel and a channel cost as much everywhere."""
    monkeypatch.setattr(proxies, "_NUM_DRAWS", 40)
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
    assert values.keys() >= {*PROXIES, *proxies.TARGETS, "again_psnr_db"}
    assert all(np.isfinite(value) for value in values.values())
    assert values["distance"] == pytest.approx(sum(values[f"distance_part{i}"] for i in range(3)))
    assert values["again_psnr_db"] != values["psnr_db"]
    again = replace(job, folder=job.folder.parent / "repeated")  # finds the supernets and architectures of the first
    again.folder.mkdir()
    assert proxies.run(again) == values


def made_up(tau_sign: int, num: int = 30) -> dict[str, dict[str, float]]:
    """Architectures whose distances order them exactly as, or against, their PSNR."""
    return {
        f"{i:02}": {"distance": 1.0 - 0.01 * tau_sign * i, "psnr_db": 30 + 0.1 * i, "macs": float((i * 7) % num)}
        for i in range(num)
    }


def test_tau_is_signed_so_that_one_is_the_best() -> None:
    assert rank_correlation(made_up(1), "distance", "psnr_db") == pytest.approx(1)  # small distances, good networks
    assert rank_correlation(made_up(-1), "distance", "psnr_db") == pytest.approx(-1)
    assert abs(rank_correlation(made_up(1), "macs", "psnr_db")) < 0.3


def test_kendalls_tau_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 5, 12)).astype(float)  # with ties
    expected = [kendalltau(one, other).statistic for one, other in zip(x, y, strict=True)]
    assert proxies.kendall_tau(x, y) == pytest.approx(expected)
    assert proxies.kendall_tau(np.ones((1, 4)), np.arange(4.0)[None]) == [0]


def test_intervals_hold_the_mean_and_are_narrow_where_orders_agree() -> None:
    mean, low, high = intervals({0: made_up(1), 1: made_up(1)}, "distance", "psnr_db")
    assert (mean, low, high) == pytest.approx((1, 1, 1))
    mean, low, high = intervals({0: made_up(1)}, "macs", "psnr_db")
    assert low < mean < high
    assert high - low > 0.2


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = [*PROXIES, *proxies.TARGETS, "again_psnr_db"]
    values = {0: {f"{i:02}": {key: float(rng.normal()) for key in keys} for i in range(10)}}
    (path,) = load_experiment("proxies").draw(values, tmp_path)
    assert path == tmp_path / "figures" / "rank_correlations.png"
    assert path.stat().st_size > 10_000
