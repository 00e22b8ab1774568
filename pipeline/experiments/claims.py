"""Is a finding of the paper seen here? Decided by one rule, from paired differences over seeds.

Called by `report`. Both networks of a pair have the same seed, so the same patches, noise and steps; what is left
between them is the variant and chance. The 95 % interval of the mean difference is Student's, with n - 1 degrees of
freedom, unless the claim brings its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy import stats

from pipeline.experiments.experiment import Claim, Values

CONFIDENCE = 0.95
RULE = (
    "A claim is seen where the 95 % interval of the mean paired difference over seeds (Student's t) lies wholly above "
    "its threshold, 0 where none is given; not seen where it lies wholly below; not decided otherwise, and with one "
    "seed. A claim about the order of many architectures has a bootstrap interval over these instead. The finding is "
    "seen if all its claims are, not seen if one is not, and not decided otherwise; controls that the paper lacks do "
    "not count."
)
Verdict = Literal["seen", "not seen", "not decided"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a claim.

    Attributes:
        claim: the claim.
        differences: per seed, in order of seeds; none where the claim brings its own estimate.
        mean: of the differences, or the estimate; NaN where there is none.
        low: of the interval of the mean; minus infinity with one seed.
        high: likewise.
        verdict: by `RULE`.
    """

    claim: Claim
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    verdict: Verdict


def judge(claim: Claim, values: Mapping[int, Mapping[str, Values]]) -> Finding:
    """Judge a claim.

    Args:
        claim: what to judge.
        values: by seed, then by variant.
    """
    differences: tuple[float, ...] = ()
    if claim.margin is not None:
        differences = tuple(claim.margin(of_seed) for _, of_seed in sorted(values.items()))
        mean, (low, high) = fmean(differences), t_interval(differences)
    else:
        assert claim.estimate is not None, "a claim has a margin or an estimate"
        mean, low, high = claim.estimate(values) or (math.nan, -math.inf, math.inf)
    verdict: Verdict = "not decided"
    if low > claim.threshold:
        verdict = "seen"
    elif high < claim.threshold:
        verdict = "not seen"
    return Finding(claim=claim, differences=differences, mean=mean, low=low, high=high, verdict=verdict)


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `differences`; the whole line for fewer than two."""
    n = len(differences)
    if n < 2:
        return -math.inf, math.inf
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * stdev(differences) / math.sqrt(n)
    return fmean(differences) - half, fmean(differences) + half


def overall(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict on the finding that several claims make up."""
    verdicts = {finding.verdict for finding in findings if finding.claim.is_papers}
    if verdicts == {"seen"}:
        return "seen"
    return "not seen" if "not seen" in verdicts else "not decided"
