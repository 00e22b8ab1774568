"""build_network: from a Genotype to a standalone denoiser, with its own or inherited weights.

Used by retraining, evaluation and `denoise-nas denoise`.

Legend: B batch, C channels, H height, W width.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ops import OpSpec, create_op, load_prefix
from search_space.fold import Term, Weights, fold_skips
from search_space.genotype import NUM_PARTS, CellGenotype, Genotype, PartGenotype
from search_space.part import PartFrame, frame_specs, mix
from search_space.space import WIDTHS, CellPosition, Direction, SearchSpace
from search_space.supernet import MixedCell, PartSupernet, cell_key


class _Cell(nn.Module):
    """One operator and the sum that it reads; the weights are learnable scalars where several are summed (E8)."""

    def __init__(
        self, cell: CellGenotype, weights: Weights, space: SearchSpace, out_widths: dict[CellPosition, int]
    ) -> None:
        super().__init__()
        self.position = cell.position
        self.in_channels = space.channels(cell.in_width)
        specs = _cell_specs(cell, weights, space, out_widths, height=1, width=1)
        self.op = create_op(specs["op"])
        self.up = create_op(specs["up"]) if "up" in specs else None
        self.down = create_op(specs["down"]) if "down" in specs else None
        self.sources = {key: space.source(cell.position, key) for key in weights if not isinstance(key, Term)}
        self.opened_from = space.opened_from(cell.position)
        self.summed = tuple(weights)
        self.source_weights = nn.Parameter(torch.tensor(list(weights.values()))) if len(weights) > 1 else None

    def forward(self, features: dict[CellPosition, Tensor]) -> Tensor:
        weights: Sequence[Tensor | float] = (1.0,) if self.source_weights is None else self.source_weights.unbind()
        return self.op(mix([self._source(key, features) for key in self.summed], weights, self.in_channels))

    def _source(self, key: Direction | Term, features: dict[CellPosition, Tensor]) -> Tensor:
        if isinstance(key, Term):
            feature = features[key.position]
            return feature if feature.shape[1] == key.channels else feature[:, : key.channels]
        if key == "up":
            assert self.up is not None
            return self.up(features[self.sources[key]], features[self.opened_from], self.in_channels)
        assert self.down is not None
        return self.down(features[self.sources[key]], self.in_channels)


class PartNetwork(PartFrame):
    """One part of a derived network; same input and output as `PartSupernet`, without its candidates."""

    def __init__(self, part_index: int, part: PartGenotype, space: SearchSpace) -> None:
        super().__init__(part_index, space, space.channels(part.cells[-1].out_width))
        self.part = part
        out_widths, summed = _out_widths(part), fold_skips(part, space)
        self.cells = nn.ModuleDict(
            {
                cell_key(cell.position): _Cell(cell, summed[cell.position], space, out_widths)
                for cell in part.cells
                if cell.position in summed
            }
        )
        self.last_cell = space.last_cell

    def forward(self, x: Tensor) -> Tensor:
        """Run the part.

        Args:
            x: (B, 3, H, W) noisy image for part 0, (B, C, H, W) features for parts 1 and 2; any height and width.

        Returns:
            (B, C, H, W) features, or the (B, 3, H, W) residual image for part 2.
        """
        stem = self.stem(x)
        features = {CellPosition(0, 0): stem}
        for cell in self.cells.values():
            assert isinstance(cell, _Cell)
            features[cell.position] = cell(features)
        return self.close(x, stem, features[self.last_cell])


class DenoisingNetwork(nn.Module):
    """The three parts of a genotype in a row: denoised = noisy + residual."""

    def __init__(self, genotype: Genotype) -> None:
        super().__init__()
        self.genotype = genotype
        self.parts = nn.ModuleList(PartNetwork(i, part, genotype.space) for i, part in enumerate(genotype.parts))

    def features(self, noisy: Tensor) -> list[Tensor]:
        """Return the outputs of the three parts for `noisy` (B, 3, H, W).

        Returns:
            (B, C, H, W) features twice, then the (B, 3, H, W) residual image.
        """
        outputs = []
        x = noisy
        for part in self.parts:
            x = part(x)
            outputs.append(x)
        return outputs

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W) images of any size, in [0, 1] plus noise; the result is not clamped."""
        return noisy + self.features(noisy)[-1]


def build_network(genotype: Genotype) -> DenoisingNetwork:
    """Build the denoiser of `genotype` with freshly initialised weights."""
    return DenoisingNetwork(genotype)


def inherit_weights(part: PartNetwork, supernet: PartSupernet) -> None:
    """Copy into `part` the weights that `supernet` has for its operators, widths and resamplers.

    Raises:
        KeyError: the supernet lacks one of the part's operators.
    """
    load_prefix(part.stem, supernet.stem)
    load_prefix(part.tail, supernet.tail)
    if part.image is not None and supernet.image is not None:
        load_prefix(part.image, supernet.image)
    for key, cell in part.cells.items():
        mixed = supernet.cells[key]
        assert isinstance(cell, _Cell) and isinstance(mixed, MixedCell)
        op = next(c.op for c in part.part.cells if c.position == cell.position)
        if op not in mixed.ops:
            raise KeyError(f"the supernet has no operator {op!r} in cell {key}")
        load_prefix(cell.op, mixed.ops[op])
        for resampler, source in ((cell.up, mixed.up), (cell.down, mixed.down)):
            if resampler is not None and source is not None:
                load_prefix(resampler, source)


def part_op_specs(part_index: int, part: PartGenotype, space: SearchSpace, *, height: int, width: int) -> list[OpSpec]:
    """List every operator call of a part on a `height` x `width` image: what a latency table prices."""
    last_channels = space.channels(part.cells[-1].out_width)
    specs = list(frame_specs(part_index, space, last_channels, height=height, width=width).values())
    for calls in cell_op_specs(part, space, height=height, width=width).values():
        specs += calls
    return specs


def cell_op_specs(
    part: PartGenotype, space: SearchSpace, *, height: int, width: int
) -> dict[CellPosition, list[OpSpec]]:
    """Return the operator calls of every cell: its operator, resamplers and sums; none for a folded skip cell."""
    out_widths, summed = _out_widths(part), fold_skips(part, space)
    calls: dict[CellPosition, list[OpSpec]] = {cell.position: [] for cell in part.cells}
    for cell in part.cells:
        if cell.position in summed:
            specs = _cell_specs(cell, summed[cell.position], space, out_widths, height=height, width=width)
            calls[cell.position] = list(specs.values())
    return calls


def genotype_op_specs(genotype: Genotype, *, height: int, width: int) -> list[list[OpSpec]]:
    """Return `part_op_specs` of each of the three parts."""
    return [part_op_specs(i, genotype.parts[i], genotype.space, height=height, width=width) for i in range(NUM_PARTS)]


def _out_widths(part: PartGenotype) -> dict[CellPosition, int]:
    return {CellPosition(0, 0): WIDTHS[0]} | {cell.position: cell.out_width for cell in part.cells}


def _cell_specs(
    cell: CellGenotype,
    weights: Weights,
    space: SearchSpace,
    out_widths: dict[CellPosition, int],
    *,
    height: int,
    width: int,
) -> dict[str, OpSpec]:
    """Return the OpSpec of the operator, of each resampler and of each sum, keyed `op`, `up`, `down`, `add1` .."""
    in_channels, resolution = space.channels(cell.in_width), cell.position.resolution
    spec = partial(space.op_spec, height=height, width=width)
    specs = {"op": spec(cell.op, in_channels, space.channels(cell.out_width), resolution=resolution)}
    for direction, _ in cell.resolution_pathways:
        if direction != "same":
            source = space.source(cell.position, direction)
            source_channels = space.channels(out_widths[source])
            specs[direction] = spec(direction, source_channels, in_channels, resolution=source.resolution)
    for index in range(1, len(weights)):  # every source beyond the first is added
        specs[f"add{index}"] = spec("add", in_channels, in_channels, resolution=resolution)
    return specs
