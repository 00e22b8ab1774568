"""Fold skip cells into their readers: they only sum and cut, so a derived network need not compute them.

Called by `network`, for building and for pricing. A skip cell that sums three features for a reader that sums two costs
three passes over the features; summed at once, with the products of the weights, it costs two. Light networks are
mostly skip cells.
"""

from collections.abc import Iterable
from typing import NamedTuple

from search_space.genotype import CellGenotype, PartGenotype
from search_space.space import WIDTHS, CellPosition, Direction, SearchSpace

_FOLDED_OP = "skip"


class Term(NamedTuple):
    """The first `channels` channels of the feature at `position`."""

    position: CellPosition
    channels: int


Weights = dict[Direction | Term, float]  # of what a cell sums: resampled features and terms of its own resolution


def fold_skips(part: PartGenotype, space: SearchSpace) -> dict[CellPosition, Weights]:
    """Return what every cell of a part that is computed sums, with weights; folded cells are left out.

    A skip cell is folded if it has no resampled source, no resampler reads it, it is not the last one, and summing at
    its readers takes no more sums than summing once.
    """
    needed = {space.last_cell}
    for cell in part.cells:
        directions = [direction for direction, _ in cell.resolution_pathways if direction != "same"]
        needed.update(space.source(cell.position, direction) for direction in directions)
        if "up" in directions:
            needed.add(space.opened_from(cell.position))
    folded = {
        cell.position
        for cell in part.cells
        if cell.op == _FOLDED_OP and cell.position not in needed and set(dict(cell.resolution_pathways)) == {"same"}
    }
    summed = _fold(part, space, folded)
    for position in sorted(folded):
        other = _fold(part, space, folded - {position})
        if num_sums(other.values()) < num_sums(summed.values()):
            folded, summed = folded - {position}, other
    return summed


def num_sums(weights: Iterable[Weights]) -> int:
    """Return how often two features are added up."""
    return sum(len(terms) - 1 for terms in weights)


def _fold(part: PartGenotype, space: SearchSpace, folded: set[CellPosition]) -> dict[CellPosition, Weights]:
    stem = CellPosition(0, 0)
    terms: dict[CellPosition, Weights] = {stem: {Term(stem, space.channels(WIDTHS[0])): 1.0}}
    summed: dict[CellPosition, Weights] = {}
    for cell in part.cells:
        is_folded = cell.position in folded
        channels = space.channels(min(cell.in_width, cell.out_width) if is_folded else cell.in_width)
        own: Weights = {}
        for key, weight in source_weights(cell).items():
            if isinstance(key, str):
                own[key] = weight
                continue
            for term, share in terms[CellPosition(cell.position.resolution, key)].items():
                assert isinstance(term, Term)
                cut = Term(term.position, min(term.channels, channels))
                own[cut] = own.get(cut, 0.0) + weight * share
        if is_folded:
            terms[cell.position] = own
        else:
            summed[cell.position] = own
            terms[cell.position] = {Term(cell.position, space.channels(cell.out_width)): 1.0}
    return summed


def source_weights(cell: CellGenotype) -> dict[Direction | int, float]:
    """Return the weight of every source of a cell, O_RES and O_CONN averaged where both exist (see `MixedCell.gather`).

    The feature one layer before, which both may keep, appears once. Features of the cell's resolution are keyed by
    layer.
    """
    share = 0.5 if cell.dense_pathways else 1.0
    weights: dict[Direction | int, float] = {d: share * w for d, w in cell.resolution_pathways if d != "same"}
    for layer, weight in cell.dense_pathways:
        weights[layer] = share * weight
    for direction, weight in cell.resolution_pathways:
        if direction == "same":
            layer = cell.position.layer - 1
            weights[layer] = weights.get(layer, 0.0) + share * weight
    return weights
