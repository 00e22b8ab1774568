"""From trained architecture parameters to a PartGenotype, and from a PartGenotype back to fixed choices.

Called at the end of a part search. The paper says "decode": arXiv 2502.13359, Section III-B.
"""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from search_space.arch_parameters import ArchParameters, Choices
from search_space.estimators import Selection, gumbel_noise
from search_space.genotype import CellGenotype, PartGenotype, keep_reachable
from search_space.space import DIRECTIONS, WIDTHS, CellPosition, Pathways, SearchSpace

DEFAULT_THRESHOLD = 0.5


def keep_pathways(probabilities: Tensor, threshold: float) -> list[tuple[int, float]]:
    """Return the smallest prefix of the sorted probabilities whose sum exceeds `threshold`, renormalised.

    At 0.5, one of two or at most two of three pathways stay (E7): the two largest of three always sum to 2/3 or more.

    Args:
        probabilities: (K,) softmax values; zeros are pathways that do not exist.
        threshold: in [0, 1).

    Returns:
        Pairs of index and weight in order of index, weights summing to 1; empty if nothing exists.
    """
    values = probabilities.detach().double().cpu()
    order = [i for i in values.argsort(descending=True, stable=True).tolist() if values[i] > 0]
    kept: list[int] = []
    total = 0.0
    for index in order:
        kept.append(index)
        total += values[index].item()
        if total > threshold:
            break
    return [(index, values[index].item() / total) for index in sorted(kept)]


def derive(arch: ArchParameters, *, threshold: float = DEFAULT_THRESHOLD) -> PartGenotype:
    """Decide every choice: argmax of alpha and gamma, thresholded beta and delta, reachable cells only.

    Args:
        arch: architecture parameters of one part.
        threshold: pathways are kept until their sum exceeds it.

    Raises:
        ValueError: `threshold` outside [0, 1).
    """
    return derive_probabilities(arch.probabilities(), arch.space, threshold=threshold)


def derive_probabilities(p: Mapping[str, Tensor], space: SearchSpace, *, threshold: float) -> PartGenotype:
    """Decide as `derive` does from what `ArchParameters.probabilities` gave, to the last bit.

    Raises:
        ValueError: `threshold` outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"`threshold` must lie in [0, 1), got {threshold}")
    out_widths = {cell: WIDTHS[int(p["gamma"][n].argmax())] for n, cell in enumerate(space.cells)}
    out_widths[CellPosition(0, 0)] = WIDTHS[0]
    cells = [
        CellGenotype(
            position=cell,
            op=space.candidate_ops[int(p["alpha"][n].argmax())],
            in_width=out_widths[space.input_width_source(cell)],
            out_width=out_widths[cell],
            resolution_pathways=tuple((DIRECTIONS[i], w) for i, w in keep_pathways(p["beta"][n], threshold)),
            dense_pathways=tuple(keep_pathways(p["delta"][n], threshold)),
        )
        for n, cell in enumerate(space.cells)
    ]
    return keep_reachable(cells, space)


def perturb(arch: ArchParameters, *, generator: torch.Generator) -> ArchParameters:
    """Return a copy with Gumbel noise on every logit, of which `derive` is a draw from what the search believes in.

    Operators and widths are then samples of their softmax (the Gumbel-max trick of Eq. (5)), pathways are kept by the
    threshold rule of a perturbed softmax.
    """
    noisy = copy.deepcopy(arch)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(gumbel_noise(parameter.shape, generator).to(parameter))
    return noisy


def redraw(
    noisy: ArchParameters, arch: ArchParameters, index: int, level: str, *, generator: torch.Generator
) -> ArchParameters:
    """Return a copy of `noisy`, made from `arch` by `perturb`, with new noise on one choice.

    Args:
        noisy: perturbed architecture parameters.
        arch: those of the search.
        index: of the cell.
        level: alpha, beta, gamma or delta.
        generator: source of randomness.
    """
    other = copy.deepcopy(noisy)
    with torch.no_grad():
        logits = getattr(arch, level)[index]
        getattr(other, level)[index] = logits + gumbel_noise(logits.shape, generator).to(logits)
    return other


def choices_of(part: PartGenotype, space: SearchSpace) -> Choices:
    """Return the choices that make a supernet of `space` compute `part`.

    Cells that the part lacks get no operator and no pathways, so they are not run; their widths are those that their
    readers expect.

    Raises:
        ValueError: no supernet of the space computes the part: it lacks an operator, a cell expects another width than
            its source has, or the weights of a cell's pathways do not sum to 1.
    """
    out_widths = _out_widths(part, space)
    ops: list[tuple[int, ...]] = [()] * len(space.cells)
    pathways = [Pathways()] * len(space.cells)
    resolution_weights = torch.zeros(len(space.cells), len(DIRECTIONS))
    dense_weights = torch.zeros(len(space.cells), space.num_layers)
    for cell in part.cells:
        n = space.cells.index(cell.position)
        ops[n], pathways[n] = (space.candidate_ops.index(cell.op),), cell.pathways
        for direction, weight in cell.resolution_pathways:
            resolution_weights[n, DIRECTIONS.index(direction)] = weight
        for layer, weight in cell.dense_pathways:
            dense_weights[n, layer] = weight
    return Choices(
        ops=Selection(active=tuple(ops), factors=None),
        widths=tuple(WIDTHS.index(out_widths.get(position, WIDTHS[0])) for position in space.cells),
        width_factors=None,
        pathways=tuple(pathways),
        resolution_weights=resolution_weights,
        dense_weights=dense_weights,
    )


def _out_widths(part: PartGenotype, space: SearchSpace) -> dict[CellPosition, int]:
    """Return the widths of the part's features, and those that its cells expect of features that it lacks.

    Raises:
        ValueError: as `choices_of`.
    """
    out_widths = {CellPosition(0, 0): WIDTHS[0]} | {cell.position: cell.out_width for cell in part.cells}
    for cell in part.cells:
        where = f"cell {tuple(cell.position)}"
        if cell.op not in space.candidate_ops:
            raise ValueError(f"operator {cell.op!r} of {where} is not in the space")
        source = space.input_width_source(cell.position)
        if out_widths.setdefault(source, cell.in_width) != cell.in_width:
            raise ValueError(
                f"the `in_width` of {where} must be the width {out_widths[source]} of cell {tuple(source)}, "
                f"got {cell.in_width}"
            )
        for name in ("resolution_pathways", "dense_pathways"):
            weights = [weight for _, weight in getattr(cell, name)]
            if weights and not math.isclose(sum(weights), 1, abs_tol=1e-6):
                raise ValueError(f"the weights of `{name}` of {where} must sum to 1, got {weights}")
    return out_widths
