"""Rates with intervals, and differences with tests and effect sizes. Called by the study's tables and guidelines.

The cells of one network are not independent: one search decided them all. So intervals come from resampling
architectures, not cells, and a test compares one number per architecture.

Legend: A architectures, K rates, M comparisons, N resamples.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05  # of p after correction for many tests
_BATCH = 250  # resamples in memory at once
_DECIMALS = 6  # probabilities come from float32; finer differences are rounding

Label = tuple[Any, ...]  # one column of `Counts`
_Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        num_resamples: draws of A architectures with replacement, at least 100.
        seed: equal seeds give equal intervals.

    Raises:
        ValueError: a number is out of range.
    """

    num_resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("num_resamples", 100), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"`{name}` must be an integer of at least {low}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numerators and denominators of K rates, per architecture.

    Attributes:
        numerator: (A, K), one row per key; the columns' levels name what a rate belongs to, for example part, operator.
        denominator: (A, K) with the same rows and columns; 0 where an architecture has no such cell.
    """

    numerator: pd.DataFrame
    denominator: pd.DataFrame

    @property
    def labels(self) -> list[Label]:
        """The columns, in order."""
        columns: Any = self.numerator.columns
        return list(columns)

    def of(self, keys: pd.Index) -> "Counts":
        """Return the rows of `keys`."""
        return Counts(numerator=self.numerator.loc[keys], denominator=self.denominator.loc[keys])

    def per_architecture(self) -> np.ndarray:
        """Return (A, K) rates, NaN where an architecture has no such cell."""
        return _divide(self.numerator.to_numpy(), self.denominator.to_numpy())

    def pooled(self, drawn: np.ndarray) -> np.ndarray:
        """Return the rates over all cells of the architectures `drawn`, (..., A) row numbers, as (K, ...)."""
        size = drawn.shape[-1]
        drawn = drawn.astype(np.int64)
        rows = np.arange(drawn.size // size).reshape(*drawn.shape[:-1], 1)
        times = np.bincount((drawn + size * rows).ravel(), minlength=drawn.size).reshape(drawn.shape)
        return np.moveaxis(_divide(times @ self.numerator.to_numpy(), times @ self.denominator.to_numpy()), -1, 0)


def sum_counts(rows: pd.DataFrame, columns: pd.MultiIndex, keys: pd.Index) -> Counts:
    """Sum `rows` to one numerator and denominator per architecture and rate.

    Args:
        rows: columns `key`, the levels of `columns`, `numerator` and `denominator`.
        columns: the rates, in order.
        keys: of all architectures, in order.
    """
    sums = rows.groupby(["key", *columns.names])[["numerator", "denominator"]].sum()

    def wide(name: str) -> pd.DataFrame:
        table = sums[name].unstack(list(columns.names))
        if not isinstance(table.columns, pd.MultiIndex):
            table.columns = pd.MultiIndex.from_arrays([table.columns], names=columns.names)
        return table.reindex(index=keys, columns=columns).fillna(0.0).astype(float)

    return Counts(numerator=wide("numerator"), denominator=wide("denominator"))


def rates(counts: Counts, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return one row per rate: its labels, the rate over all cells, and a percentile bootstrap interval.

    `num_architectures` have such cells; `out_of` is the sum of the denominators. An interval is empty (NaN) with fewer
    than two architectures, and where so few have such cells that a resample held none.
    """
    size = len(counts.numerator)
    low, high = _interval(counts.pooled, [size], bootstrap)
    table = counts.numerator.columns.to_frame(index=False)
    table["num_architectures"] = (counts.denominator.to_numpy() > 0).sum(axis=0)
    table["out_of"] = counts.denominator.to_numpy().sum(axis=0)
    table["rate"] = counts.pooled(np.arange(size)) if size else np.nan
    return table.assign(low=low, high=high)


def compare(
    counts: Counts, pairs: Sequence[tuple[Label, Label | None]], *, control: Counts | None = None,
    reference: float = 0.0, bootstrap: Bootstrap,
) -> pd.DataFrame:  # fmt: skip
    """Compare rates: one row per pair, with difference, interval, test and effect size.

    Without `control`, the Wilcoxon signed-rank test of the differences within architectures; `effect` is its
    rank-biserial correlation. With it, the Mann-Whitney U test between the groups; `effect` is Cliff's delta. Both
    effects lie in [-1, 1].

    Args:
        counts: of one group of architectures.
        pairs: (plus, minus) columns; the difference is rate[plus] - rate[minus] - `reference`, without minus rate[plus]
            - `reference`.
        control: of another group, whose difference is subtracted.
        reference: a constant.
        bootstrap: how intervals are made.
    """
    samples = [counts] if control is None else [counts, control]
    chosen = [counts.labels.index(plus) for plus, _ in pairs]
    others = [counts.labels.index(minus or plus) for plus, minus in pairs]
    has_other = np.array([minus is not None for _, minus in pairs], dtype=bool)

    def contrast(pooled: np.ndarray) -> np.ndarray:  # (K, ...) -> (M, ...)
        shape = (-1,) + (1,) * (pooled.ndim - 1)
        return pooled[chosen] - np.where(has_other.reshape(shape), pooled[others], 0.0)

    def statistic(*drawn: np.ndarray) -> np.ndarray:
        terms = [contrast(sample.pooled(rows)) for sample, rows in zip(samples, drawn, strict=True)]
        return np.round(terms[0] - sum(terms[1:]) - reference, _DECIMALS)

    sizes = [len(sample.numerator) for sample in samples]
    difference = statistic(*map(np.arange, sizes)) if min(sizes) else np.full(len(pairs), np.nan)
    low, high = _interval(statistic, sizes, bootstrap)
    values = [np.round(contrast(sample.per_architecture().T) - reference, _DECIMALS) for sample in samples]
    tests = pd.DataFrame([_test(*rows) for rows in zip(*values, strict=True)], columns=["num_architectures",
                         "num_control", "effect", "p"])  # fmt: skip
    table = pd.DataFrame({"difference": difference, "low": low, "high": high})
    return pd.concat([tests[["num_architectures", "num_control"]], table, tests[["effect", "p"]]], axis=1)


def correct(table: pd.DataFrame) -> pd.DataFrame:
    """Add `p_corrected` (Benjamini-Hochberg over all rows) and `significant`, its comparison with SIGNIFICANCE."""
    corrected = pd.Series(np.nan, index=table.index, dtype=float)
    known = table["p"].notna()
    if known.any():
        corrected[known] = stats.false_discovery_control(table.loc[known, "p"].to_numpy(dtype=float))
    return table.assign(p_corrected=corrected, significant=corrected < SIGNIFICANCE)


def _interval(statistic: _Statistic, sizes: list[int], bootstrap: Bootstrap) -> tuple[Any, Any]:
    """Bootstrap `statistic`, which takes one array of row numbers (N, A) per group; NaN with fewer than two rows."""
    if min(sizes) < 2:
        return np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of resamples without such cells; they give NaN
        result = stats.bootstrap(
            [np.arange(size) for size in sizes], lambda *drawn, axis: statistic(*drawn), vectorized=True, batch=_BATCH,
            n_resamples=bootstrap.num_resamples, confidence_level=CONFIDENCE, method="percentile",
            rng=np.random.default_rng(bootstrap.seed),
        )  # fmt: skip
    return result.confidence_interval.low, result.confidence_interval.high


def _test(values: np.ndarray, control: np.ndarray | None = None) -> tuple[int, int, float, float]:
    """Return the sizes of both groups, the effect size, and p of the two-sided test."""
    values = values[~np.isnan(values)]
    if control is None:
        num_nonzero = np.count_nonzero(values)
        if num_nonzero == 0:
            return len(values), 0, *((0.0, 1.0) if len(values) else (np.nan, np.nan))
        p = stats.wilcoxon(values).pvalue
        sum_above = stats.wilcoxon(values, alternative="greater").statistic  # of the ranks of positive differences
        return len(values), 0, 4 * sum_above / (num_nonzero * (num_nonzero + 1)) - 1, p
    control = control[~np.isnan(control)]
    if not len(values) or not len(control):
        return len(values), len(control), np.nan, np.nan
    if np.ptp(np.concatenate([values, control])) == 0:
        return len(values), len(control), 0.0, 1.0
    result = stats.mannwhitneyu(values, control)
    return len(values), len(control), 2 * result.statistic / (len(values) * len(control)) - 1, result.pvalue


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
