"""The rule that says whether a finding is seen."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from pipeline.experiments import Claim, Experiment, compare, load_experiment
from pipeline.experiments.claims import Finding, judge, overall
from pipeline.experiments.intervals import Estimate, mean_estimate
from pipeline.experiments.table import markdown_findings


def claim(threshold: float = 0.0) -> Claim:
    return Claim(text="a over b", estimate=compare("x", "a", "b"), unit="", threshold=threshold)


def by_seed(differences: list[float]) -> dict:
    return {seed: {"a": {"x": 5.0 + d}, "b": {"x": 5.0}} for seed, d in enumerate(differences)}


def test_the_interval_is_that_of_an_independent_t_test() -> None:
    differences = [0.3, -0.1, 0.25, 0.4]
    expected = stats.ttest_1samp(np.array(differences), 0.0).confidence_interval(0.95)
    found = mean_estimate(differences)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_no_interval() -> None:
    assert mean_estimate([0.7]) == Estimate(value=0.7, low=-math.inf, high=math.inf)


@pytest.mark.parametrize(
    ("differences", "threshold", "verdict"),
    [
        ([0.5, 0.52, 0.48], 0.0, "seen"),
        ([-0.5, -0.52, -0.48], 0.0, "not seen"),
        ([0.5, -0.1, 0.3], 0.0, "not decided"),  # the mean is positive, three seeds do not say more
        ([0.5, 0.52, 0.48], 1.0, "not seen"),  # too small to count
        ([0.5, 0.5, 0.5], 0.0, "seen"),
        ([0.0, 0.0, 0.0], 0.0, "not decided"),
        ([9.0], 0.0, "not decided"),
    ],
)
def test_a_claim_is_judged_by_the_interval(differences: list[float], threshold: float, verdict: str) -> None:
    finding = judge(claim(threshold), by_seed(differences))
    assert finding.verdict == verdict
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(np.mean(differences))


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [((0.5, 0.1, 0.9), "seen"), ((-0.5, -0.9, -0.1), "not seen"), ((0.5, -0.1, 0.9), "not decided")],
)
def test_a_claim_may_bring_its_own_estimate(numbers: tuple[float, float, float], verdict: str) -> None:
    value, low, high = numbers
    estimate = Estimate(value=value, low=low, high=high)
    finding = judge(Claim(text="a", unit="", estimate=lambda values: estimate), by_seed([9.0]))
    assert finding.estimate == estimate
    assert finding.verdict == verdict


def test_an_estimate_that_is_not_to_be_had_decides_nothing() -> None:
    finding = judge(Claim(text="a", unit="dB", estimate=lambda values: None), by_seed([9.0]))
    assert finding.verdict == "not decided" and finding.estimate is None
    assert "- *not decided*: a: unknown\n" in markdown_findings([finding])


def test_seeds_are_paired() -> None:
    values = {0: {"a": {"x": 10.0}, "b": {"x": 9.0}}, 1: {"a": {"x": 20.0}, "b": {"x": 18.9}}}
    finding = judge(claim(), values)
    assert finding.verdict == "seen"  # 1.0 and 1.1, though the seeds lie 10 apart


def _ratios(ratios: Sequence[float]) -> dict:
    return {seed: {"a": {"x": 5.0 * ratio}, "b": {"x": 5.0}} for seed, ratio in enumerate(ratios)}


def test_a_relative_difference_is_a_share_of_the_second_variant() -> None:
    estimate = compare("x", "a", "b", relative=True)
    assert estimate(_ratios([1.5])).value == pytest.approx(0.5)


def test_shares_agree_whichever_variant_they_are_of() -> None:
    """By the mean of raw shares, a is larger than b by 0.25, and b is larger than a by as much."""
    values = _ratios([2.0, 0.5])
    assert compare("x", "a", "b", relative=True)(values).value == pytest.approx(0)
    values = _ratios([3.0, 0.6, 2.0])
    one, other = compare("x", "a", "b", relative=True)(values), compare("x", "b", "a", relative=True)(values)
    assert (1 + one.value) * (1 + other.value) == pytest.approx(1)
    assert (1 + one.low) * (1 + other.high) == pytest.approx(1)


def test_no_number_is_less_than_nothing_of_another() -> None:
    found = compare("x", "a", "b", relative=True)(_ratios([12.0, 0.5, 0.9]))
    expected = stats.ttest_1samp(np.log([12.0, 0.5, 0.9]), 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((np.expm1(expected.low), np.expm1(expected.high)))
    assert found.low > -1


def test_levels_are_compared_in_pairs_so_that_chance_favours_none() -> None:
    """The worst of three equal levels is below the fourth by chance alone; its mean over seeds says nothing."""
    generator = np.random.default_rng(0)
    names = ("resolution", "dense", "operator", "width", "searched", "random")
    values = {seed: {name: {"psnr_db": 30 + 0.2 * generator.standard_normal()} for name in names}
              for seed in range(100)}  # fmt: skip
    claims = [claim for claim in load_experiment("levels").claims if claim.text.startswith("resolutions matter")]
    assert len(claims) == 3
    assert {judge(claim, values).verdict for claim in claims} == {"not decided"}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["seen", "seen"], "seen"),
        (["seen", "not decided"], "not decided"),
        (["seen", "not seen", "not decided"], "not seen"),
        (["not decided"], "not decided"),
    ],
)
def test_the_finding_is_seen_if_all_claims_are(verdicts: list, expected: str) -> None:
    findings = [Finding(claim=claim(), estimate=None, verdict=verdict) for verdict in verdicts]
    assert overall(findings) == expected


def test_the_experiments_claims_take_numbers_of_their_variants(two_variants: Experiment) -> None:
    values = {0: {"slow": {"psnr_db": 31.0}, "fast": {"psnr_db": 30.0}}}
    assert two_variants.claims[0].estimate(values).value == 1.0
