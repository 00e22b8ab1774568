"""Which candidate a search ends with; what candidates do for a search is in `test_part_search.py`."""

import math
from collections.abc import Iterator

import pytest
import torch

from pipeline.candidates import find_candidate
from search_space import ArchParameters, CostModel, PartGenotype, SearchSpace, derive, op_num_parameters


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_a_candidate_whose_distance_is_not_finite_gives_way_to_one_whose_is(
    tiny_space: SearchSpace, first: float
) -> None:
    arch = ArchParameters(tiny_space, generator=torch.Generator().manual_seed(0))
    costs = CostModel(1, tiny_space, op_num_parameters, height=16, width=16)
    distances: Iterator[float] = iter([first, 3.0, math.nan, 2.0, 4.0])
    scored: list[PartGenotype] = []

    def l_dp(part: PartGenotype) -> float:
        scored.append(part)
        return next(distances)

    part = find_candidate(
        arch, costs, l_dp, budget=None, complexity_weight=0.0, num_candidates=5, threshold=0.5,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert scored[0] == derive(arch)
    assert part == scored[3]
