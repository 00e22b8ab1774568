"""The paper's three guidelines, each as claims that a collection can support or contradict.

Called by `pipeline.study.analyze`. "Denoising Designs-inherited Search Framework for Image Denoising", arXiv
2502.13359, end of Section IV-F.

A claim is one signed difference. It is supported where its interval lies above 0 and its test, corrected over the
claims of all guidelines, is significant with an effect above 0; contradicted where all of this lies below 0. Both are
asked since they weigh differently: the interval is of the rate over all cells, the test of one rate per architecture. A
guideline is the conjunction of its claims: supported if all are, contradicted if one is, otherwise not decided; and not
decided if a claim cannot be examined, because a group or an operator is missing or has too few architectures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from pipeline.records import PARTS
from pipeline.study.estimates import Bootstrap, Counts, Label, compare, correct, sum_counts
from pipeline.study.selection import Collection
from pipeline.study.tables import macs_counts, pathway_counts, reachable_cells, special_operators
from search_space import DIRECTIONS

SUPPORTED, CONTRADICTED, NOT_DECIDED = "supported", "contradicted", "not decided"
MIN_ARCHITECTURES = 10  # of every group that a claim speaks of, counting those that have such cells
WIDE_OPERATORS = ("swin", "conv_d2", "conv_d3")  # "'SWIN' or 'dilated convolution'"
_OTHERS = "1 and 2"

_GUIDELINES = {
    1: (
        "wide receptive field in the front",
        "The front should learn more, with operators of a wide receptive field such as swin or dilated convolutions.",
        f"The rate of {', '.join(WIDE_OPERATORS)} together is higher in part 0 than in part 1 and than in part 2, and "
        "the lead of part 0 over the others is larger than in random architectures.",
    ),
    2: (
        "context for swin and hin",
        "swin and hin prefer feature maps with more contextual information.",
        "Where a cell can choose among three inputs, swin and hin each give the down-sampled one, which the paper says "
        "has more context, more than a third of softmax(beta).",
    ),
    3: (
        "complexity by model size",
        "Large models should spend more on front and rear, small models on middle and rear.",
        "Part 0 and part 2 of large models, part 1 and part 2 of small ones, have a larger share of the multiply-adds "
        "than the remaining part, and lead it by more than in random architectures.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the collection says of one guideline.

    Attributes:
        number: 1 to 3, as in the paper.
        title: a few words.
        guideline: what the paper advises.
        hypothesis: what is tested.
        verdict: supported, contradicted or not decided.
        explanation: one sentence per claim with its numbers, or why there is no answer.
    """

    number: int
    title: str
    guideline: str
    hypothesis: str
    verdict: str
    explanation: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """rate[plus] - rate[minus] of `group` is above 0, or above `reference`, or above that of random architectures."""

    guideline: int
    statement: str
    group: str
    counts: Counts
    plus: Label
    minus: Label | None = None
    reference: float = 0.0
    has_control: bool = False
    missing: str = ""  # why it cannot be examined


def claim_table(collection: Collection, bootstrap: Bootstrap) -> pd.DataFrame:
    """Examine every claim: rates, difference, interval, test, verdict, and the reason where it cannot be examined."""
    rows = pd.concat([_examine(collection, claim, bootstrap) for claim in _claims(collection)], ignore_index=True)
    rows.loc[rows["reason"] != "", "p"] = np.nan  # takes no part in the correction
    rows = correct(rows)
    is_above = (rows["low"] > 0) & (rows["effect"] > 0)
    is_below = (rows["high"] < 0) & (rows["effect"] < 0)
    verdicts = np.select(
        [rows["significant"] & is_above, rows["significant"] & is_below], [SUPPORTED, CONTRADICTED], NOT_DECIDED
    )
    return rows.drop(columns="significant").assign(verdict=verdicts)


def answer_guidelines(claims: pd.DataFrame) -> tuple[Answer, ...]:
    """Answer the three guidelines from the table of claims."""
    answers = []
    for number, (title, guideline, hypothesis) in _GUIDELINES.items():
        own = claims[claims["guideline"] == number]
        verdict, explanation = _verdict(own)
        answers.append(
            Answer(
                number=number,
                title=title,
                guideline=guideline,
                hypothesis=hypothesis,
                verdict=verdict,
                explanation=explanation,
            )  # fmt: skip
        )
    return tuple(answers)


def _verdict(claims: pd.DataFrame) -> tuple[str, tuple[str, ...]]:
    reasons = list(dict.fromkeys(reason for reason in claims["reason"] if reason))
    if reasons:
        return NOT_DECIDED, tuple(f"It cannot be examined: {reason}." for reason in reasons)
    found = set(claims["verdict"])
    verdict = next(kind for kind in (CONTRADICTED, NOT_DECIDED, SUPPORTED) if kind in found)
    return verdict, tuple(_sentence(claim) for _, claim in claims.iterrows())


def _sentence(claim: pd.Series) -> str:
    names = ("rate", "against", "difference", "low", "high")
    rate, against, difference, low, high = (100 * claim[name] for name in names)
    return (
        f"{claim['verdict'].capitalize()}: {claim['claim']}, {rate:.1f} % against {against:.1f} %, "
        f"difference {difference:+.1f} points [{low:+.1f}, {high:+.1f}]."
    )


def _claims(collection: Collection) -> Iterator[_Claim]:
    wide = _wide_counts(collection)
    missing = "" if set(WIDE_OPERATORS) & set(collection.operators) else f"none of {', '.join(WIDE_OPERATORS)} on offer"
    front = partial(_Claim, guideline=1, group="searched", counts=wide, plus=(0,), missing=missing)
    yield front(statement="wide operators, part 0 above part 1", minus=(1,))
    yield front(statement="wide operators, part 0 above part 2", minus=(2,))
    yield front(statement="lead of part 0 in wide operators above random's", minus=(_OTHERS,), has_control=True)

    pathways = pathway_counts(collection)
    for operator in ("swin", "hin"):
        missing = "" if operator in special_operators(collection) else f"{operator} is not on offer"
        yield _Claim(
            guideline=2, statement=f"down-sampled input of {operator} above a third", group="searched",
            counts=pathways, plus=(operator, "down"), reference=1 / len(DIRECTIONS), missing=missing,
        )  # fmt: skip

    shares = macs_counts(collection)
    for group, preferred, rest in (("large", (0, 2), 1), ("small", (1, 2), 0)):
        for part in preferred:
            pair = partial(_Claim, guideline=3, group=group, counts=shares, plus=(part,), minus=(rest,))
            yield pair(statement=f"{group} models, multiply-adds of part {part} above part {rest}")
            yield pair(
                statement=f"{group} models, lead of part {part} over part {rest} above random's", has_control=True
            )


def _wide_counts(collection: Collection) -> Counts:
    """Count operators of a wide receptive field over the reachable cells of each part, and of parts 1 and 2 pooled."""
    cells = reachable_cells(collection)
    rows = cells[["key", "part"]].assign(
        numerator=cells["operator"].isin(WIDE_OPERATORS).astype(float), denominator=1.0
    )
    rows = pd.concat([rows.astype({"part": object}), rows[rows["part"] != 0].assign(part=_OTHERS)])
    columns = pd.MultiIndex.from_arrays([[*PARTS, _OTHERS]], names=["part"])
    return sum_counts(rows, columns, collection.selected.index)


def _examine(collection: Collection, claim: _Claim, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return one row without verdict."""
    head = pd.DataFrame({"guideline": [claim.guideline], "claim": [claim.statement], "group": [claim.group]})
    if claim.missing:
        empty = dict.fromkeys(("rate", "against", "difference", "low", "high", "effect", "p"), np.nan)
        return head.assign(num_architectures=0, num_control=0, **empty, reason=claim.missing)
    own = claim.counts.of(collection.keys(claim.group))
    control = claim.counts.of(collection.keys("random")) if claim.has_control else None
    row = compare(
        own, [(claim.plus, claim.minus)], control=control, reference=claim.reference, bootstrap=bootstrap
    )  # fmt: skip
    rate, against = _sides(claim, own, control)
    reason = _too_few(claim.group, row["num_architectures"].item())
    if claim.has_control:
        reason = reason or _too_few("random", row["num_control"].item())
    return pd.concat([head, row], axis=1).assign(rate=rate, against=against, reason=reason)


def _sides(claim: _Claim, own: Counts, control: Counts | None) -> tuple[float, float]:
    """Return what the claim compares: two rates, a rate and a constant, or the leads of two groups."""

    def rate(counts: Counts, label: Label | None) -> float:
        if label is None or counts.numerator.empty:
            return np.nan
        pooled = counts.pooled(np.arange(len(counts.numerator)))
        return float(pooled[counts.labels.index(label)])

    if control is not None:
        return rate(own, claim.plus) - rate(own, claim.minus), rate(control, claim.plus) - rate(control, claim.minus)
    return rate(own, claim.plus), rate(own, claim.minus) if claim.minus else claim.reference


def _too_few(group: str, number: int) -> str:
    """Return why `number` architectures of `group` are too few, or nothing."""
    if number >= MIN_ARCHITECTURES:
        return ""
    if number == 0:
        return f"no {group} architectures with such cells"
    return f"only {number} {group} architectures with such cells, fewer than {MIN_ARCHITECTURES}"
