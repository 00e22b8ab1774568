"""SearchSpace: the grid of cells of one part, and what every cell chooses from.

Read by everything in this folder. "Denoising Designs-inherited Search Framework for Image Denoising", arXiv
2502.13359, Section III-B.

A part has `num_resolutions` rows (resolution r is 1 / 2^r of the image) and `num_layers` columns. A cell exists at
(resolution r, layer l) where r < l <= L - r, so every cell can be reached from the entry and reaches the exit. Layer 0
of resolution 0 is the output of the stem.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from ops import OpSpec, list_ops

Direction = Literal["up", "same", "down"]
# Where a cell's multi-resolution input comes from: up-sampled from the coarser resolution, the same resolution, or
# down-sampled from the finer one (Eq. 1; resolution s/2 is the coarser map, E11 of docs/paper.md).
DIRECTIONS: tuple[Direction, ...] = ("up", "same", "down")
# Numerators of the paper's R = [8/8, 7/8, 6/8, 5/8, 4/8].
WIDTHS: tuple[int, ...] = (8, 7, 6, 5, 4)
DEFAULT_OPS: tuple[str, ...] = ("conv_d1", "conv_d2", "conv_d3", "conv_r", "skip", "ib", "hin", "swin")

_MAX_CHANNELS = 1024  # far above any use; keeps a damaged file from allocating the machine away
_MAX_RESOLUTIONS = 6
_MAX_LAYERS = 64
_MAX_CELL_WEIGHTS = 2**22  # cells x C^2: C = 512 on the paper's grid, gigabytes of weights per part


class CellPosition(NamedTuple):
    """Place of a cell in the grid; layer 0 is the stem's output."""

    resolution: int
    layer: int


class Pathways(NamedTuple):
    """What a cell reads: directions of Eq. (1) and earlier layers of Eq. (2); a cell without directions is not run."""

    directions: tuple[Direction, ...] = ()
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Which parts exist: R resolutions, L layers, C channels, the candidate operations and widths.

    Attributes:
        num_channels: C, full width of every cell and width of the boundaries between parts; a multiple of 16.
        num_resolutions: R; resolution r has 1 / 2^r of the image's height and width.
        num_layers: L, at least 2 R - 1 so that the coarsest resolution has a cell.
        candidate_ops: names of registered operators.

    Raises:
        ValueError: a number is impossible or an operator unknown.
    """

    num_channels: int = 64
    num_resolutions: int = 3
    num_layers: int = 6
    candidate_ops: tuple[str, ...] = DEFAULT_OPS

    def __post_init__(self) -> None:
        _check_range("num_channels", self.num_channels, 16, _MAX_CHANNELS)
        if self.num_channels % 16:
            raise ValueError(f"`num_channels` must be a multiple of 16, got {self.num_channels}")
        _check_range("num_resolutions", self.num_resolutions, 1, _MAX_RESOLUTIONS)
        _check_range("num_layers", self.num_layers, 2 * self.num_resolutions - 1, _MAX_LAYERS)
        if len(self.cells) * self.num_channels**2 > _MAX_CELL_WEIGHTS:
            raise ValueError(
                f"`num_channels` must be smaller for a grid of {len(self.cells)} cells (cells x channels^2 at most "
                f"{_MAX_CELL_WEIGHTS}), got {self.num_channels}"
            )
        if not self.candidate_ops:
            raise ValueError("`candidate_ops` must name at least one operator, got none")
        if len(set(self.candidate_ops)) != len(self.candidate_ops):
            raise ValueError(f"`candidate_ops` must not repeat, got {self.candidate_ops}")
        unknown = [name for name in self.candidate_ops if name not in list_ops()]
        if unknown:
            raise ValueError(f"`candidate_ops` must be among {', '.join(list_ops())}, got {', '.join(unknown)}")

    @cached_property
    def cells(self) -> tuple[CellPosition, ...]:
        """All cells in an order in which they can be computed: by layer, then resolution."""
        return tuple(
            CellPosition(resolution, layer)
            for layer in range(1, self.num_layers + 1)
            for resolution in range(self.num_resolutions)
            if resolution < layer <= self.num_layers - resolution
        )

    @property
    def last_cell(self) -> CellPosition:
        """The cell whose output the tail takes."""
        return CellPosition(0, self.num_layers)

    def has_feature(self, position: CellPosition) -> bool:
        """Tell whether there is a cell, or the stem, at `position`."""
        return position == (0, 0) or position in self.cells

    def source(self, cell: CellPosition, direction: Direction) -> CellPosition:
        """Return the feature that `direction` brings to `cell`, one layer before (Eq. 1)."""
        step = {"up": 1, "same": 0, "down": -1}[direction]
        return CellPosition(cell.resolution + step, cell.layer - 1)

    def directions(self, cell: CellPosition) -> tuple[Direction, ...]:
        """Return the directions from which `cell` can receive features."""
        return tuple(d for d in DIRECTIONS if self.has_feature(self.source(cell, d)))

    def dense_layers(self, cell: CellPosition) -> tuple[int, ...]:
        """Return the earlier layers with a feature of the resolution of `cell` (Eq. 2)."""
        resolution = cell.resolution
        return tuple(layer for layer in range(cell.layer) if self.has_feature(CellPosition(resolution, layer)))

    def pathways(self, cell: CellPosition) -> Pathways:
        """Return all that `cell` can read."""
        return Pathways(self.directions(cell), self.dense_layers(cell))

    def sources(self, cell: CellPosition, pathways: Pathways) -> list[CellPosition]:
        """Return every feature that `cell` reads over `pathways`, x_{s,m} of an up-sampling included."""
        sources = [self.source(cell, direction) for direction in pathways.directions]
        sources += [CellPosition(cell.resolution, layer) for layer in pathways.layers]
        if "up" in pathways.directions:
            sources.append(self.opened_from(cell))
        return sources

    def reached(self, pathways: Mapping[CellPosition, Pathways]) -> set[CellPosition]:
        """Return what the last cell needs over the `pathways` of every cell: itself, cells, perhaps the stem."""
        reached = {self.last_cell}
        for cell in reversed(self.cells):  # a cell's readers come after it
            if cell in reached:
                reached.update(self.sources(cell, pathways[cell]))
        return reached

    def opened_from(self, cell: CellPosition) -> CellPosition:
        """Return x_{s,m} of Eq. (1): the cell from which the branch coarser than `cell` was opened."""
        return CellPosition(cell.resolution, cell.resolution + 1)

    def input_width_source(self, cell: CellPosition) -> CellPosition:
        """Return the feature whose width `cell` takes as its input width: the newest one of its resolution.

        For the first cell of a resolution this is the feature it is down-sampled from.
        """
        return self.source(cell, "same" if self.dense_layers(cell) else "down")

    def channels(self, width: int) -> int:
        """Return the number of channels at `width` eighths."""
        return self.num_channels * width // 8

    def op_spec(
        self, name: str, in_channels: int, out_channels: int, *, resolution: int = 0, height: int, width: int
    ) -> OpSpec:
        """Return the call of an operator on features of `resolution` of an image; stride 2 rounds up.

        Args:
            name: of the operator.
            in_channels: of its input.
            out_channels: of its output.
            resolution: 0 is the image's own.
            height: of the image in pixels.
            width: of the image in pixels.
        """
        scale = 2**resolution
        return OpSpec(
            name=name, in_channels=in_channels, out_channels=out_channels, base_channels=self.num_channels,
            height=-(-height // scale), width=-(-width // scale),
        )  # fmt: skip

    def log10_size(self, *, threshold: float = 0.5) -> float:
        """Count the settings of one part's choices, as log10.

        Every cell has operators x widths x sets of resolution pathways x sets of dense pathways; sets are those that
        `derive` can keep at `threshold` (the smallest prefix of the sorted probabilities with a sum above it). Settings
        that differ only in unreachable cells are counted apart. The paper's 1e1800 does not follow from its space.
        """
        total = 0.0
        for cell in self.cells:
            total += math.log10(len(self.candidate_ops) * len(WIDTHS))
            total += math.log10(_num_kept_sets(len(self.directions(cell)), threshold))
            total += math.log10(_num_kept_sets(len(self.dense_layers(cell)), threshold))
        return total


def max_kept(num_pathways: int, threshold: float) -> int:
    """Return how many of `num_pathways` the threshold rule can keep: k where (k - 1) / n < threshold, ties left out.

    At least 1, the most likely one, which is all that threshold 0 keeps.
    """
    return max((k for k in range(1, num_pathways + 1) if (k - 1) / num_pathways < threshold), default=1)


def _num_kept_sets(num_pathways: int, threshold: float) -> int:
    if num_pathways == 0:
        return 1
    return sum(math.comb(num_pathways, k) for k in range(1, max_kept(num_pathways, threshold) + 1))


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"`{name}` must be an integer from {low} to {high}, got {value!r}")
