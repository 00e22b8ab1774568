from collections import Counter
from typing import Any

import pytest
import torch

from search_space import (
    DEFAULT_OPS,
    LEVELS,
    ArchParameters,
    Genotype,
    SearchSpace,
    derive,
    randomise_levels,
    sample_genotype,
    sample_part,
)
from search_space.space import max_kept


def draw(space: SearchSpace, seed: int, **settings: Any) -> Genotype:
    return sample_genotype(space, generator=torch.Generator().manual_seed(seed), **settings)


def test_equal_seeds_give_equal_genotypes(space: SearchSpace) -> None:
    assert draw(space, 0) == draw(space, 0)
    assert len({draw(space, seed).genotype_id for seed in range(20)}) == 20


def test_the_parts_are_independent_draws(space: SearchSpace) -> None:
    parts = draw(space, 0).parts
    assert len(set(parts)) == 3
    assert sample_part(space, generator=torch.Generator().manual_seed(0)) == parts[0]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8])
@pytest.mark.parametrize(("num_resolutions", "num_layers"), [(1, 1), (2, 3), (3, 6), (4, 9)])
def test_samples_lie_in_the_space_that_a_search_can_reach(
    num_resolutions: int, num_layers: int, threshold: float
) -> None:
    space = SearchSpace(num_channels=16, num_resolutions=num_resolutions, num_layers=num_layers)
    for seed in range(20):
        for part in draw(space, seed, threshold=threshold).parts:  # Genotype validates what it is built from
            for cell in part.cells:
                num_directions, num_layers = (
                    len(space.directions(cell.position)),
                    len(space.dense_layers(cell.position)),
                )
                assert 1 <= len(cell.resolution_pathways) <= max_kept(num_directions, threshold)
                assert bool(cell.dense_pathways) == bool(num_layers)
                assert len(cell.dense_pathways) <= (max_kept(num_layers, threshold) if num_layers else 0)
                assert sum(weight for _, weight in cell.resolution_pathways) == pytest.approx(1)


def test_the_threshold_decides_how_many_pathways_are_drawn(space: SearchSpace) -> None:
    def counts(**settings: float) -> set[int]:
        parts = [part for seed in range(20) for part in draw(space, seed, **settings).parts]
        return {len(cell.resolution_pathways) for part in parts for cell in part.cells}

    assert counts(threshold=0.8) == {1, 2, 3}
    assert counts() == {1, 2}
    assert counts(threshold=0.0) == {1}


def test_operators_widths_and_pathways_all_occur(space: SearchSpace) -> None:
    cells = [cell for seed in range(30) for part in draw(space, seed).parts for cell in part.cells]
    assert set(Counter(cell.op for cell in cells)) == set(DEFAULT_OPS)
    assert {cell.out_width for cell in cells} == {4, 5, 6, 7, 8}
    assert {direction for cell in cells for direction, _ in cell.resolution_pathways} == {"up", "same", "down"}
    assert {cell.position for cell in cells} == set(space.cells)


def test_operators_are_drawn_by_weight(space: SearchSpace) -> None:
    weights = {"conv_d1": 3.0, "skip": 1.0}
    cells = [cell for seed in range(40) for part in draw(space, seed, op_weights=weights).parts for cell in part.cells]
    counts = Counter(cell.op for cell in cells)
    assert set(counts) == {"conv_d1", "skip"}
    assert counts["conv_d1"] / len(cells) == pytest.approx(0.75, abs=0.05)


def test_a_level_at_random_is_decided_and_out_of_the_search(space: SearchSpace) -> None:
    arch = ArchParameters(space, generator=torch.Generator().manual_seed(0))
    before = {name: parameter.clone() for name, parameter in arch.named_parameters()}
    randomise_levels(arch, ("alpha", "beta"), generator=torch.Generator().manual_seed(1))
    assert {name for name, parameter in arch.named_parameters() if parameter.requires_grad} == {"gamma", "delta"}
    assert all(torch.equal(getattr(arch, name), before[name]) for name in ("gamma", "delta"))
    assert arch.probabilities()["alpha"].amax(dim=-1).min() > 0.999  # nothing is left to sample
    assert 0.3 < arch.probabilities()["beta"].amax(dim=-1).mean() < 0.9  # several pathways, unequally weighted


def test_levels_at_random_give_all_choices(space: SearchSpace) -> None:
    cells = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        arch = ArchParameters(space, generator=generator)
        randomise_levels(arch, LEVELS, generator=generator)
        cells += derive(arch).cells
    counts = Counter(cell.op for cell in cells)
    assert set(counts) == set(DEFAULT_OPS)
    assert max(counts.values()) < 2.5 * min(counts.values())
    assert {cell.out_width for cell in cells} == {4, 5, 6, 7, 8}
    assert {len(cell.resolution_pathways) for cell in cells} == {1, 2}


def test_an_unknown_level_is_named(space: SearchSpace) -> None:
    arch = ArchParameters(space, generator=torch.Generator())
    with pytest.raises(ValueError, match="`levels` must be among alpha, beta, gamma, delta, got 'epsilon'"):
        randomise_levels(arch, ("epsilon",), generator=torch.Generator())
