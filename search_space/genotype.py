"""Genotype: one discrete architecture, as frozen records with JSON and a stable id.

Written by `derive` and `sample`, read by `network`, `complexity`, `draw` and the whole pipeline.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.files import write_atomically
from search_space.space import WIDTHS, CellPosition, Direction, Pathways, SearchSpace

SCHEMA_VERSION = 1
NUM_PARTS = 3
_MAX_FILE_BYTES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class CellGenotype:
    """One cell: its place, operator, widths and kept pathways.

    Attributes:
        position: resolution and layer.
        op: operator name.
        in_width: width of the cell's input in eighths of C.
        out_width: width of its output in eighths of C.
        resolution_pathways: kept directions with the renormalised softmax(beta), at least one.
        dense_pathways: kept earlier layers of the same resolution with the renormalised softmax(delta).
    """

    position: CellPosition
    op: str
    in_width: int
    out_width: int
    resolution_pathways: tuple[tuple[Direction, float], ...]
    dense_pathways: tuple[tuple[int, float], ...]

    @property
    def pathways(self) -> Pathways:
        """The kept pathways without their weights."""
        return Pathways(
            tuple(direction for direction, _ in self.resolution_pathways),
            tuple(layer for layer, _ in self.dense_pathways),
        )

    def structure(self) -> list[Any]:
        """Return what the id depends on: everything but the weights, which are only initial values of training."""
        return [
            *self.position, self.op, self.in_width, self.out_width,
            sorted(direction for direction, _ in self.resolution_pathways),
            sorted(layer for layer, _ in self.dense_pathways),
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "resolution": self.position.resolution,
            "layer": self.position.layer,
            "op": self.op,
            "in_width": self.in_width,
            "out_width": self.out_width,
            "resolution_pathways": [list(pathway) for pathway in self.resolution_pathways],
            "dense_pathways": [list(pathway) for pathway in self.dense_pathways],
        }


@dataclass(frozen=True, kw_only=True)
class PartGenotype:
    """The reachable cells of one part, in order of computation."""

    cells: tuple[CellGenotype, ...]


@dataclass(frozen=True, kw_only=True)
class Genotype:
    """One architecture: the grid's numbers and three parts.

    Attributes:
        num_channels: C.
        num_resolutions: R.
        num_layers: L.
        parts: three part genotypes.

    Raises:
        ValueError: the parts do not form a network of this grid; the message names part, cell and reason.
    """

    num_channels: int
    num_resolutions: int
    num_layers: int
    parts: tuple[PartGenotype, ...]

    def __post_init__(self) -> None:
        if len(self.parts) != NUM_PARTS:
            raise ValueError(f"a genotype must have {NUM_PARTS} parts, got {len(self.parts)}")
        for index, part in enumerate(self.parts):
            try:
                _validate_part(part, self.space)
            except ValueError as error:
                raise ValueError(f"part {index}: {error}") from None

    @classmethod
    def of(cls, space: SearchSpace, parts: Iterable[PartGenotype]) -> "Genotype":
        """Put three parts of `space` together."""
        return cls(
            num_channels=space.num_channels,
            num_resolutions=space.num_resolutions,
            num_layers=space.num_layers,
            parts=tuple(parts),
        )

    @property
    def space(self) -> SearchSpace:
        """The grid, with the operators that occur as its candidates."""
        names = sorted({cell.op for part in self.parts for cell in part.cells})
        return SearchSpace(
            num_channels=self.num_channels,
            num_resolutions=self.num_resolutions,
            num_layers=self.num_layers,
            candidate_ops=tuple(names),
        )

    @property
    def genotype_id(self) -> str:
        """Twelve hexadecimal digits of the structure's SHA-256: equal networks have equal ids on every machine.

        Pathway weights are left out: they are the initial values of scalars that retraining learns.
        """
        structure = [
            SCHEMA_VERSION, self.num_channels, self.num_resolutions, self.num_layers,
            [[cell.structure() for cell in part.cells] for part in self.parts],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(structure, separators=(",", ":")).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, the id among them for the reader's convenience."""
        return {
            "schema_version": SCHEMA_VERSION,
            "genotype_id": self.genotype_id,
            "num_channels": self.num_channels,
            "num_resolutions": self.num_resolutions,
            "num_layers": self.num_layers,
            "parts": [[cell.to_dict() for cell in part.cells] for part in self.parts],
        }

    def to_json(self) -> str:
        """Return JSON text with one cell per line, readable in a diff."""
        data = self.to_dict()
        parts = ",\n".join(
            "    [\n" + ",\n".join(f"      {json.dumps(cell)}" for cell in cells) + "\n    ]" for cells in data["parts"]
        )
        head = json.dumps({key: value for key, value in data.items() if key != "parts"}, indent=2)[:-2]
        return f'{head},\n  "parts": [\n{parts}\n  ]\n}}\n'

    def save(self, path: Path | str) -> None:
        """Write JSON beside `path`, then rename.

        Raises:
            OSError: the disk is full or the folder cannot be written; the message names `path`.
        """
        write_atomically(path, self.to_json())

    @classmethod
    def from_dict(cls, data: Any) -> "Genotype":
        """Build from what `to_dict` returns.

        Raises:
            ValueError: a key is missing or unknown, a value has the wrong type or is impossible.
        """
        _check_keys("genotype", data, set(cls.__annotations__) | {"schema_version", "genotype_id"}, {"genotype_id"})
        if type(data["schema_version"]) is not int or data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"`schema_version` must be {SCHEMA_VERSION}, got {data['schema_version']!r}")
        parts = data["parts"]
        if not isinstance(parts, list) or not all(isinstance(cells, list) for cells in parts):
            raise ValueError("`parts` must be a list of lists of cells")
        genotype = cls(
            num_channels=data["num_channels"],
            num_resolutions=data["num_resolutions"],
            num_layers=data["num_layers"],
            parts=tuple(PartGenotype(cells=tuple(_cell_from_dict(cell) for cell in cells)) for cells in parts),
        )
        if data.get("genotype_id", genotype.genotype_id) != genotype.genotype_id:
            raise ValueError(f"`genotype_id` {data['genotype_id']!r} does not belong to this architecture")
        return genotype

    @classmethod
    def load(cls, path: Path | str) -> "Genotype":
        """Read a JSON file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, or not a genotype; the message names the file and the reason.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"genotype {path} does not exist")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ValueError(f"genotype {path} is larger than {_MAX_FILE_BYTES} bytes")
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:  # what is no UTF-8 or no JSON raises a ValueError
            raise ValueError(f"genotype {path} cannot be read: {error}") from error


def _cell_from_dict(data: Any) -> CellGenotype:
    _check_keys(
        "cell", data,
        {"resolution", "layer", "op", "in_width", "out_width", "resolution_pathways", "dense_pathways"}, set(),
    )  # fmt: skip
    for key in ("resolution", "layer", "in_width", "out_width"):
        if type(data[key]) is not int:
            raise ValueError(f"`{key}` of a cell must be an integer, got {data[key]!r}")
    if not isinstance(data["op"], str):
        raise ValueError(f"`op` of a cell must be a string, got {data['op']!r}")
    return CellGenotype(
        position=CellPosition(data["resolution"], data["layer"]),
        op=data["op"],
        in_width=data["in_width"],
        out_width=data["out_width"],
        resolution_pathways=tuple(_pathways("resolution_pathways", data["resolution_pathways"], str)),
        dense_pathways=tuple(_pathways("dense_pathways", data["dense_pathways"], int)),
    )


def _pathways(name: str, data: Any, source_type: type) -> list[tuple[Any, float]]:
    if not isinstance(data, list):
        raise ValueError(f"`{name}` must be a list of [source, weight], got {data!r}")
    pathways = []
    for pathway in data:
        if not isinstance(pathway, list) or len(pathway) != 2 or type(pathway[0]) is not source_type:
            raise ValueError(f"`{name}` must be a list of [source, weight], got {pathway!r}")
        if type(pathway[1]) not in (int, float) or not abs(pathway[1]) <= sys.float_info.max:
            raise ValueError(f"the weight of a pathway must be a finite number, got {pathway[1]!r}")
        pathways.append((pathway[0], float(pathway[1])))
    return pathways


def _check_keys(what: str, data: Any, known: set[str], optional: set[str]) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"a {what} must be a JSON object, got {type(data).__name__}")
    missing, unknown = known - optional - set(data), set(data) - known
    if missing or unknown:
        raise ValueError(f"a {what} has missing keys {sorted(missing)} and unknown keys {sorted(unknown)}")


def _validate_part(part: PartGenotype, space: SearchSpace) -> None:
    cells = {cell.position: cell for cell in part.cells}
    if len(cells) != len(part.cells):
        raise ValueError("two cells at one position")
    order = [position for position in space.cells if position in cells]
    if order != [cell.position for cell in part.cells]:
        raise ValueError("cells must lie on the grid and be ordered by layer, then resolution")
    if space.last_cell not in cells:
        raise ValueError(f"the last cell {tuple(space.last_cell)} is missing")
    for cell in part.cells:
        where = f"cell {tuple(cell.position)}"
        for name, width in (("in_width", cell.in_width), ("out_width", cell.out_width)):
            if width not in WIDTHS:
                raise ValueError(f"{where}: `{name}` must be one of {WIDTHS}, got {width!r}")
        kept = [direction for direction, _ in cell.resolution_pathways]
        if not kept or len(set(kept)) != len(kept) or not set(kept) <= set(space.directions(cell.position)):
            raise ValueError(f"{where}: `resolution_pathways` must be distinct ones of "
                             f"{space.directions(cell.position)}, got {kept}")  # fmt: skip
        layers = [layer for layer, _ in cell.dense_pathways]
        if len(set(layers)) != len(layers) or not set(layers) <= set(space.dense_layers(cell.position)):
            raise ValueError(f"{where}: `dense_pathways` must be distinct ones of "
                             f"{space.dense_layers(cell.position)}, got {layers}")  # fmt: skip
        for source in space.sources(cell.position, cell.pathways):
            if source != (0, 0) and source not in cells:
                raise ValueError(f"{where}: its source {tuple(source)} is missing")


def keep_reachable(cells: list[CellGenotype], space: SearchSpace) -> PartGenotype:
    """Drop the cells that the last cell does not need, walking backward over kept pathways.

    Args:
        cells: one record for every cell of the grid.
        space: the grid.
    """
    by_position = {cell.position: cell for cell in cells}
    reached = space.reached({cell.position: cell.pathways for cell in cells})
    return PartGenotype(cells=tuple(by_position[position] for position in space.cells if position in reached))
