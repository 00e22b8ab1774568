from dataclasses import replace

import pytest
import torch

from search_space import CellGenotype, CellPosition, PartGenotype, SearchSpace, sample_genotype
from search_space.fold import Term, fold_skips, num_sums, source_weights

SPACE = SearchSpace(num_channels=16, num_resolutions=2, num_layers=4)
STEM = CellPosition(0, 0)


def cell(layer: int, op: str, in_width: int, out_width: int, *layers: int) -> CellGenotype:
    return CellGenotype(
        position=CellPosition(0, layer),
        op=op,
        in_width=in_width,
        out_width=out_width,
        resolution_pathways=(("same", 1.0),),
        dense_pathways=tuple((layer, 1 / len(layers)) for layer in layers),
    )


def test_a_source_that_two_pathways_keep_counts_once() -> None:
    both = replace(
        cell(5, "skip", 8, 8), resolution_pathways=(("up", 0.4), ("same", 0.6)), dense_pathways=((1, 0.3), (4, 0.7))
    )
    assert source_weights(both) == pytest.approx({"up": 0.2, 1: 0.15, 4: 0.65})
    alone = replace(both, resolution_pathways=(("same", 1.0),), dense_pathways=((4, 1.0),))
    assert source_weights(alone) == pytest.approx({4: 1.0})
    no_dense = replace(both, dense_pathways=())
    assert source_weights(no_dense) == pytest.approx({"up": 0.4, 4: 0.6})


@pytest.mark.parametrize("seed", range(10))
def test_weights_sum_to_one(seed: int) -> None:
    space = SearchSpace(num_channels=16)
    for part in sample_genotype(space, generator=torch.Generator().manual_seed(seed)).parts:
        for weights in fold_skips(part, space).values():
            assert sum(weights.values()) == pytest.approx(1)


def test_a_chain_of_skips_is_one_term() -> None:
    part = PartGenotype(
        cells=(
            cell(1, "skip", 8, 5, 0),
            cell(2, "skip", 5, 7, 0, 1),  # the stem and its own half-filled copy
            cell(3, "skip", 7, 4, 2),
            cell(4, "conv_r", 4, 8, 3),
        )
    )
    summed = fold_skips(part, SPACE)
    assert list(summed) == [CellPosition(0, 4)]
    assert summed[CellPosition(0, 4)] == pytest.approx({Term(STEM, 8): 1.0})


def test_terms_keep_the_narrowest_width_on_their_way() -> None:
    part = PartGenotype(
        cells=(
            cell(1, "conv_d1", 8, 8, 0),
            cell(2, "skip", 8, 4, 0, 1),
            cell(3, "conv_d2", 4, 8, 2),
            cell(4, "skip", 8, 8, 1, 3),
        )
    )
    first, third = CellPosition(0, 1), CellPosition(0, 3)
    assert fold_skips(part, SPACE) == {
        first: {Term(STEM, 16): 1.0},
        # "same" and the dense connection to layer 1 are one source of weight 3/4, the stem has 1/4.
        third: {Term(STEM, 8): 0.25, Term(first, 8): 0.75},
        CellPosition(0, 4): {Term(first, 16): 0.25, Term(third, 16): 0.75},  # the last cell is computed
    }


def test_a_sum_with_two_readers_is_done_once() -> None:
    def part(op: str) -> PartGenotype:
        return PartGenotype(
            cells=(
                cell(1, "conv_d1", 8, 8, 0),
                cell(2, op, 8, 8, 0, 1),
                cell(3, "conv_d1", 8, 8, 2),
                cell(4, "conv_d1", 8, 8, 2, 3),
            )
        )

    summed = fold_skips(part("skip"), SPACE)
    assert CellPosition(0, 2) in summed  # 1 + 1 sums; folded, it would be 1 + 2
    assert num_sums(summed.values()) == num_sums(fold_skips(part("conv_d3"), SPACE).values()) == 2
