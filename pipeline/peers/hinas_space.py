"""Which networks HiNAS's space holds: cells of operators and a width for every layer, written down and drawn.

Read by `pipeline.peers.hinas`. Zhang et al., arXiv 1909.08228.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

OPS = ("conv3", "sep3", "sep5", "dil3", "dil5", "skip", "none")
NUM_INPUTS = 2  # of a cell: the layer before the last, and the last
EDGES_PER_NODE = 2  # kept in a derived cell
# Of every node, its kept edges: (source, operator). Sources 0 and 1 are the cell's inputs, 2 + n is node n.
CellEdges = tuple[tuple[tuple[int, str], ...], ...]


@dataclass(frozen=True, kw_only=True)
class HinasSpace:
    """Cells of `num_nodes` nodes in `num_layers` layers, each of one of `num_levels` widths.

    Attributes:
        num_channels: C of level 0; level w has C (1 + w / 2). Published: 10 in search, 20 in retraining.
        num_layers: L.
        num_levels: widths on offer; a layer is at most one level wider or narrower than the one before.
        num_nodes: nodes of every cell.

    Raises:
        ValueError: a number is impossible.
    """

    num_channels: int = 10
    num_layers: int = 3
    num_levels: int = 3
    num_nodes: int = 4

    def __post_init__(self) -> None:
        if self.num_channels < 2 or self.num_channels % 2:
            raise ValueError(f"`num_channels` must be even and at least 2, got {self.num_channels}")
        for name in ("num_layers", "num_levels", "num_nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Levels that every layer can have; the stem has level 0."""
        return tuple(tuple(range(min(layer + 2, self.num_levels))) for layer in range(self.num_layers))

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """All (node, source) of a cell."""
        return tuple((node, source) for node in range(self.num_nodes) for source in range(NUM_INPUTS + node))


@dataclass(frozen=True, kw_only=True)
class HinasGenotype:
    """One architecture.

    Attributes:
        num_channels: C of level 0.
        levels: width of every layer.
        cells: the kept edges of every layer's cell.

    Raises:
        ValueError: the levels make no path, the cells have no or different numbers of nodes, or an edge has an
            impossible source or operator.
    """

    num_channels: int
    levels: tuple[int, ...]
    cells: tuple[CellEdges, ...]

    def __post_init__(self) -> None:
        if not self.levels or any(abs(a - b) > 1 or b < 0 for a, b in pairwise((0, *self.levels))):
            raise ValueError(f"`levels` must start at 0 or 1 and change by one at most, got {self.levels}")
        if len(self.cells) != len(self.levels):
            raise ValueError(f"`cells` must be one per layer, {len(self.levels)}, got {len(self.cells)}")
        num_nodes = [len(nodes) for nodes in self.cells]
        if min(num_nodes) < 1 or len(set(num_nodes)) > 1:
            raise ValueError(f"`cells` must have one number of nodes, at least 1, got {num_nodes}")
        for nodes in self.cells:
            for node, edges in enumerate(nodes):
                for source, op in edges:
                    if not 0 <= source < NUM_INPUTS + node or op not in OPS[:-1]:
                        raise ValueError(f"node {node} cannot have the edge {(source, op)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        cells = [[[list(edge) for edge in edges] for edges in nodes] for nodes in self.cells]
        return {"num_channels": self.num_channels, "levels": list(self.levels), "cells": cells}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "HinasGenotype":
        """Build from what `to_dict` returns."""
        cells = tuple(tuple(tuple((source, op) for source, op in edges) for edges in nodes) for nodes in data["cells"])
        return cls(num_channels=data["num_channels"], levels=tuple(data["levels"]), cells=cells)
