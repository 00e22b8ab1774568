"""A number with its 95 % interval: what a claim is judged by.

Made by `experiment.compare` and the experiments from numbers per seed, and by `rank_correlation` over architectures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, the mean over seeds, and the ends of its interval."""

    value: float
    low: float
    high: float


def mean_estimate(differences: Sequence[float]) -> Estimate:
    """Return the mean over seeds with Student's interval of n - 1 degrees of freedom; the whole line for one seed."""
    n, mean = len(differences), fmean(differences)
    if n < 2:
        return Estimate(value=mean, low=-math.inf, high=math.inf)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * stdev(differences) / math.sqrt(n)
    return Estimate(value=mean, low=mean - half, high=mean + half)


def share_estimate(log_ratios: Sequence[float]) -> Estimate:
    """Return by what share one number exceeds another, from the logarithm of their ratio for every seed.

    The mean and its interval are those of the logarithms, so that "a exceeds b" and "b exceeds a" say the same, and no
    share is below -1.
    """
    mean = mean_estimate(log_ratios)
    return Estimate(value=math.expm1(mean.value), low=math.expm1(mean.low), high=math.expm1(mean.high))
