"""Random architectures of a space: the control of every statement about searched ones.

Called by benchmarks and collections.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F

from search_space.arch_parameters import LEVELS, ArchParameters
from search_space.derive import DEFAULT_THRESHOLD
from search_space.estimators import gumbel_noise
from search_space.genotype import NUM_PARTS, CellGenotype, Genotype, PartGenotype, keep_reachable
from search_space.space import WIDTHS, CellPosition, SearchSpace, max_kept

_T = TypeVar("_T")
_DECIDED = 100.0  # a logit that leaves the others nothing


def sample_genotype(
    space: SearchSpace,
    *,
    generator: torch.Generator,
    op_weights: Mapping[str, float] | None = None,
    threshold: float = DEFAULT_THRESHOLD,
) -> Genotype:
    """Draw three independent random parts.

    Args:
        space: the search space.
        generator: source of randomness.
        op_weights: relative frequency of every operator; equal by default.
        threshold: of the kept pathways, that of the search which the genotype is compared with.
    """
    parts = [
        sample_part(space, generator=generator, op_weights=op_weights, threshold=threshold) for _ in range(NUM_PARTS)
    ]
    return Genotype.of(space, parts)


def sample_part(
    space: SearchSpace,
    *,
    generator: torch.Generator,
    op_weights: Mapping[str, float] | None = None,
    threshold: float = DEFAULT_THRESHOLD,
) -> PartGenotype:
    """Draw one part: operators by weight, widths and sets of pathways uniformly, pathway weights equal.

    The sets are those that `derive` can keep at `threshold`, so random parts lie in the space that a search can reach.

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
            resolution_pathways=_random_subset(space.directions(cell), threshold, generator),
            dense_pathways=_random_subset(space.dense_layers(cell), threshold, generator),
        )
        for n, cell in enumerate(space.cells)
    ]
    return keep_reachable(cells, space)


def randomise_levels(arch: ArchParameters, levels: Sequence[str], *, generator: torch.Generator) -> None:
    """Decide some levels at random and take them out of the search, as Table VI does with one of them.

    Operators (alpha) and widths (gamma) become one uniformly drawn choice per cell. Pathways (beta, delta) get random
    weights, of which `derive` keeps random sets.

    Args:
        arch: changed in place; its parameters of `levels` no longer ask for gradients.
        levels: among alpha, beta, gamma, delta.
        generator: source of randomness.

    Raises:
        ValueError: an unknown level.
    """
    for level in levels:
        if level not in LEVELS:
            raise ValueError(f"`levels` must be among {', '.join(LEVELS)}, got {level!r}")
        parameter: torch.nn.Parameter = getattr(arch, level)
        gumbel = gumbel_noise(parameter.shape, generator)
        if level in ("alpha", "gamma"):
            gumbel = _DECIDED * F.one_hot(gumbel.argmax(dim=-1), gumbel.shape[-1])
        parameter.requires_grad_(False).copy_(gumbel)


def _random_subset(options: Sequence[_T], threshold: float, generator: torch.Generator) -> tuple[tuple[_T, float], ...]:
    if not options:
        return ()
    limit = max_kept(len(options), threshold)
    masks = [mask for mask in range(1, 2 ** len(options)) if mask.bit_count() <= limit]
    mask = masks[int(torch.randint(len(masks), (1,), generator=generator))]
    kept = [option for i, option in enumerate(options) if mask >> i & 1]
    return tuple((option, 1 / len(kept)) for option in kept)
