"""How far two orders of the same architectures agree, with intervals; and how far they could, given chance in training.

Called by `proxies`. Architectures are resampled, the same ones in every seed; seeds are averaged.

Legend: K quantities, A architectures, N resamples.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.experiments.intervals import CONFIDENCE, Estimate

_NUM_RESAMPLES = 2000


def kendall_tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return tau-b of every row of `x` and `y`, both (N, A); 0 where one of them is constant."""
    signs_x, signs_y = (np.sign(rows[:, :, None] - rows[:, None, :]) for rows in (x, y))
    norm = np.sqrt((signs_x**2).sum((1, 2)) * (signs_y**2).sum((1, 2)))
    return np.divide((signs_x * signs_y).sum((1, 2)), norm, out=np.zeros(len(x)), where=norm > 0)


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the correlation of every row of `x` and `y`, both (N, A); 0 where one of them is constant."""
    x, y = (rows - rows.mean(axis=1, keepdims=True) for rows in (x, y))
    norm = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), norm, out=np.zeros(len(x)), where=norm > 0)


def estimate(seeds: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], *, random_seed: int = 0) -> Estimate:
    """Average a statistic over seeds, with its percentile bootstrap interval over architectures.

    Args:
        seeds: (K, A) quantities of the same architectures in every seed.
        statistic: from K arrays (N, A) to (N,).
        random_seed: of the resamples; the same draws of architectures serve all quantities and seeds.
    """
    generator = np.random.default_rng(random_seed)
    num_architectures = seeds[0].shape[1]
    draws = generator.integers(0, num_architectures, (_NUM_RESAMPLES, num_architectures))
    value = float(np.mean([statistic(*quantities[:, None, :])[0] for quantities in seeds]))
    resampled = np.mean([statistic(*quantities[:, draws]) for quantities in seeds], axis=0)  # of (K, N, A)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Estimate(value=value, low=float(low), high=float(high))


def attainable_tau(reliability: float, *, num_averaged: int = 1) -> float:
    """Return Kendall's tau of a proxy that knows what trainings come to on average with a mean of such trainings.

    Args:
        reliability: Pearson's correlation between two trainings of the same architectures that differ by chance alone;
            below 0 counts as 0.
        num_averaged: trainings in the mean (Spearman and Brown's formula gives its reliability).

    Returns:
        For normally distributed values, whose tau is 2 / pi arcsin(correlation).
    """
    r = max(0.0, reliability)
    averaged = num_averaged * r / (1 + (num_averaged - 1) * r)
    return 2 / math.pi * math.asin(math.sqrt(averaged))
