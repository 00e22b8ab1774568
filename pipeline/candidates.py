"""Choose a part among candidates that an undecided search thinks likely.

Called by `pipeline.part_search` at the end of a search, instead of the paper's argmax alone.

A short search leaves the softmaxes undecided, so their argmax is one of many likely parts, and its cost is not the
expected one. A quarter of the candidates are independent draws; every other one changes one choice of the best so far.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from search_space import LEVELS, ArchParameters, CostModel, PartGenotype, derive, perturb, redraw

_T = TypeVar("_T")
_TRIES_PER_CANDIDATE = 20  # draws at most for every candidate that is new and within the budget


def find_candidate(
    arch: ArchParameters,
    costs: CostModel,
    l_dp: Callable[[PartGenotype], float],
    *,
    budget: float | None,
    complexity_weight: float,
    num_candidates: int,
    threshold: float,
    generator: torch.Generator,
) -> PartGenotype:
    """Return the candidate within the budget that has the lowest `l_dp`; the derived part is the first candidate.

    Args:
        arch: architecture parameters at the end of the search.
        costs: what the budget counts.
        l_dp: distance between a part with inherited weights and the prior.
        budget: in the unit of `costs`; None weighs the cost as Eq. (13) does, in units of the uniform part's.
        complexity_weight: lambda of Eq. (13).
        num_candidates: to score.
        threshold: of the kept pathways.
        generator: source of randomness.

    Returns:
        A part; the cheapest one drawn where none is within the budget.
    """
    limit = math.inf if budget is None else budget
    weight = complexity_weight / costs.uniform_cost(arch) if budget is None else 0.0
    seen: dict[PartGenotype, float] = {}  # costs
    best, best_logits, best_score = None, arch, math.inf
    num_scored = 0
    for _ in range(_TRIES_PER_CANDIDATE * num_candidates):
        if num_scored >= num_candidates:
            break
        if not seen:
            logits = arch
        elif best is None or num_scored < num_candidates // 4:
            logits = perturb(arch, generator=generator)
        else:
            index = arch.space.cells.index(_pick(best.cells, generator).position)
            logits = redraw(best_logits, arch, index, _pick(LEVELS, generator), generator=generator)
        part = derive(logits, threshold=threshold)
        if part in seen:
            continue
        seen[part] = costs.of(part)
        if seen[part] > limit:
            continue
        num_scored += 1
        score = l_dp(part) + weight * seen[part]
        if not math.isfinite(score):
            score = math.inf  # nothing is below a NaN
        if best is None or score < best_score:
            best, best_logits, best_score = part, logits, score
    return best if best is not None else min(seen, key=lambda part: seen[part])


def _pick(options: Sequence[_T], generator: torch.Generator) -> _T:
    return options[int(torch.randint(len(options), (1,), generator=generator))]
