"""Random architectures of a space: the control of every statement about searched ones.

Called by benchmarks and collections.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from search_space.derive import DEFAULT_THRESHOLD
from search_space.genotype import NUM_PARTS, CellGenotype, Genotype, PartGenotype, keep_reachable
from search_space.space import WIDTHS, CellPosition, SearchSpace, max_kept

_T = TypeVar("_T")


def sample_genotype(
    space: SearchSpace, *, generator: torch.Generator, op_weights: Mapping[str, float] | None = None
) -> Genotype:
    """Draw three independent random parts.

    Args:
        space: the search space.
        generator: source of randomness.
        op_weights: relative frequency of every operator; equal by default.
    """
    parts = [sample_part(space, generator=generator, op_weights=op_weights) for _ in range(NUM_PARTS)]
    return Genotype.of(space, parts)


def sample_part(
    space: SearchSpace, *, generator: torch.Generator, op_weights: Mapping[str, float] | None = None
) -> PartGenotype:
    """Draw one part: operators by weight, widths and sets of pathways uniformly, pathway weights equal.

    The sets are those that `derive` can keep, so random parts lie in the space that a search can reach.

    Raises:
        ValueError: `op_weights` names an operator that the space lacks.
    """
    unknown = sorted(set(op_weights or ()) - set(space.candidate_ops))
    if unknown:
        raise ValueError(f"`op_weights` names {unknown[0]!r}, which is not among {', '.join(space.candidate_ops)}")
    weights = [1.0 if op_weights is None else op_weights.get(name, 0.0) for name in space.candidate_ops]
    ops = torch.multinomial(torch.tensor(weights), len(space.cells), replacement=True, generator=generator).tolist()
    indices = torch.randint(len(WIDTHS), (len(space.cells),), generator=generator).tolist()
    out_widths = {cell: WIDTHS[i] for cell, i in zip(space.cells, indices, strict=True)}
    out_widths[CellPosition(0, 0)] = WIDTHS[0]
    cells = [
        CellGenotype(
            position=cell,
            op=space.candidate_ops[ops[n]],
            in_width=out_widths[space.input_width_source(cell)],
            out_width=out_widths[cell],
            resolution_pathways=_random_subset(space.directions(cell), generator),
            dense_pathways=_random_subset(space.dense_layers(cell), generator),
        )
        for n, cell in enumerate(space.cells)
    ]
    return keep_reachable(cells, space)


def _random_subset(options: Sequence[_T], generator: torch.Generator) -> tuple[tuple[_T, float], ...]:
    if not options:
        return ()
    limit = max_kept(len(options), DEFAULT_THRESHOLD)
    masks = [mask for mask in range(1, 2 ** len(options)) if mask.bit_count() <= limit]
    mask = masks[int(torch.randint(len(masks), (1,), generator=generator))]
    kept = [option for i, option in enumerate(options) if mask >> i & 1]
    return tuple((option, 1 / len(kept)) for option in kept)
