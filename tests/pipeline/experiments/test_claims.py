"""The rule that says whether a finding is seen."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.experiments import Claim, Experiment, compare
from pipeline.experiments.claims import Finding, judge, overall, t_interval
from pipeline.experiments.table import markdown_findings


def claim(threshold: float = 0.0) -> Claim:
    return Claim(text="a over b", margin=compare("x", "a", "b"), unit="", threshold=threshold)


def by_seed(differences: list[float]) -> dict:
    return {seed: {"a": {"x": 5.0 + d}, "b": {"x": 5.0}} for seed, d in enumerate(differences)}


def test_the_interval_is_that_of_an_independent_t_test() -> None:
    differences = [0.3, -0.1, 0.25, 0.4]
    expected = stats.ttest_1samp(np.array(differences), 0.0).confidence_interval(0.95)
    assert t_interval(differences) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_no_interval() -> None:
    assert t_interval([0.7]) == (-math.inf, math.inf)


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
    assert finding.differences == pytest.approx(differences)
    assert finding.mean == pytest.approx(np.mean(differences))


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [((0.5, 0.1, 0.9), "seen"), ((-0.5, -0.9, -0.1), "not seen"), ((0.5, -0.1, 0.9), "not decided")],
)
def test_a_claim_may_bring_its_own_estimate(estimate: tuple[float, float, float], verdict: str) -> None:
    finding = judge(Claim(text="a", unit="", estimate=lambda values: estimate), by_seed([9.0]))
    assert (finding.mean, finding.low, finding.high) == estimate
    assert finding.verdict == verdict and finding.differences == ()


def test_an_estimate_that_is_not_to_be_had_decides_nothing() -> None:
    finding = judge(Claim(text="a", unit="dB", estimate=lambda values: None), by_seed([9.0]))
    assert finding.verdict == "not decided" and math.isnan(finding.mean)
    assert "- *not decided*: a: unknown\n" in markdown_findings([finding])


def test_seeds_are_paired() -> None:
    values = {0: {"a": {"x": 10.0}, "b": {"x": 9.0}}, 1: {"a": {"x": 20.0}, "b": {"x": 18.9}}}
    finding = judge(claim(), values)
    assert finding.verdict == "seen"  # 1.0 and 1.1, though the seeds lie 10 apart


def test_a_relative_margin_is_a_share_of_the_smaller_variant() -> None:
    margin = compare("x", "a", "b", relative=True)
    assert margin({"a": {"x": 3.0}, "b": {"x": 2.0}}) == pytest.approx(0.5)


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
    findings = [
        Finding(claim=claim(), differences=(), mean=0.0, low=0.0, high=0.0, verdict=verdict) for verdict in verdicts
    ]
    assert overall(findings) == expected


def test_the_experiments_claims_take_numbers_of_their_variants(two_variants: Experiment) -> None:
    values = {0: {"slow": {"psnr_db": 31.0}, "fast": {"psnr_db": 30.0}}}
    assert judge(two_variants.claims[0], values).differences == (1.0,)
