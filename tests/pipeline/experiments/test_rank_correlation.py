"""Rank correlations against scipy, and what chance in training leaves attainable against a simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.experiments.rank_correlation import attainable_tau, estimate, kendall_tau, pearson


def test_correlations_are_those_of_scipy() -> None:
    x, y = np.random.default_rng(0).integers(0, 6, (2, 5, 12)).astype(float)  # with ties
    assert kendall_tau(x, y) == pytest.approx([stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert pearson(x, y) == pytest.approx([stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert kendall_tau(np.ones((1, 4)), np.arange(4.0)[None]) == [0]
    assert pearson(np.ones((1, 4)), np.arange(4.0)[None]) == [0]


def test_an_interval_is_narrow_where_orders_agree_and_holds_the_value() -> None:
    order = np.arange(30.0)
    found = estimate([np.stack([order, 2 * order])] * 2, kendall_tau)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    few, many = (estimate([np.random.default_rng(1).normal(size=(2, num))], kendall_tau) for num in (15, 60))
    assert few.low < few.value < few.high
    assert few.high - few.low > many.high - many.low > 0.2


def test_seeds_that_say_the_same_narrow_no_interval() -> None:
    quantities = np.random.default_rng(4).normal(size=(2, 20))
    assert estimate([quantities] * 3, kendall_tau) == estimate([quantities], kendall_tau)


def test_seeds_are_averaged_and_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    seeds = [rng.normal(size=(2, 20)) for _ in range(4)]
    together, alone = estimate(seeds, kendall_tau), estimate(seeds[:1], kendall_tau)
    assert together.value == pytest.approx(np.mean([estimate([one], kendall_tau).value for one in seeds]))
    assert together.high - together.low < 0.8 * (alone.high - alone.low)


@pytest.mark.parametrize("num_averaged", [1, 2])
def test_the_attainable_tau_is_that_of_the_truth(num_averaged: int) -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=2000)
    trainings = truth + 0.8 * rng.normal(size=(4, 2000))
    r = float(pearson(trainings[:1], trainings[1:2])[0])
    expected = stats.kendalltau(truth, trainings[:num_averaged].mean(axis=0)).statistic
    assert attainable_tau(r, num_averaged=num_averaged) == pytest.approx(expected, abs=0.03)


def test_trainings_that_agree_or_not_at_all_are_the_ends() -> None:
    assert attainable_tau(1.0) == pytest.approx(1)
    assert attainable_tau(-0.3, num_averaged=2) == 0
    assert math.isclose(attainable_tau(0.25), 1 / 3)  # correlation 1/2, arcsin of which is pi / 6
