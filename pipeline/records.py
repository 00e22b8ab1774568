"""Architecture records: what a collection keeps of every architecture, as JSON files and as a Parquet data set.

Written by `pipeline.collect`, one JSON file per architecture at the moment its trial ends; read by `pipeline.study`.
The JSON files are the truth: Parquet and MLflow are made from them and can be made again.

A data set is a folder with two files, which pandas and pyarrow read without this package. Their columns are
`ARCHITECTURE_COLUMNS` and `CELL_COLUMNS`; both files carry `schema_version` in their Parquet metadata.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latency.parquet import bounded_batches
from ops.files import read_text, write_atomically, written_beside
from search_space import DIRECTIONS, LEVELS, NUM_PARTS, WIDTHS, Genotype, SearchSpace, cell_op_specs, op_macs

RECORD_SCHEMA_VERSION = 1
ORIGINS = ("searched", "random")
PARTS = tuple(range(NUM_PARTS))
_MAX_ROWS, _MAX_BYTES = 10_000_000, 2 * 1024**3
ARCHITECTURES_FILE, CELLS_FILE = "architectures.parquet", "cells.parquet"

_PER_PART = [(f"{name}_part{part}", kind) for name, kind in
             (("macs", pa.int64()), ("num_parameters", pa.int64()), ("predicted_ms", pa.float64()))
             for part in PARTS]  # fmt: skip

# One row per architecture. Costs of whole network and parts; null where a number does not apply.
ARCHITECTURE_COLUMNS = pa.schema(
    [
        ("key", pa.string()),  # of the record: origin, index and a hash of all settings with the seed
        ("origin", pa.string()),  # searched | random
        ("index", pa.int64()),  # 0 .. within the origin
        ("seed", pa.int64()),  # of the search, or of the draw
        ("genotype_id", pa.string()),  # equal for equal networks
        ("genotype", pa.string()),  # JSON, as `Genotype.from_dict` reads it
        ("varied", pa.string()),  # JSON: the settings that this trial was given
        ("complexity_weight", pa.float64()),  # lambda of Eq. (13); null for random
        ("cost", pa.string()),  # latency | parameters | macs: what lambda weighs; null for random
        ("target_ms", pa.float64()),
        ("candidate_ops", pa.list_(pa.string())),  # operators on offer
        ("weights", pa.string()),  # warm: the search began from the shared supernets; independent: from scratch
        ("macs", pa.int64()),  # multiply-adds at `image_size`
        ("num_parameters", pa.int64()),
        ("predicted_ms", pa.float64()),  # sum of the latency table at `image_size`
        ("image_size", pa.int64()),  # pixels, height and width
        *_PER_PART,
        ("proxy_psnr_db", pa.float64()),  # weights of the shared supernets; comparable over all records
        ("own_psnr_db", pa.float64()),  # weights of the trial's own supernets; null for random
        ("retrained_psnr_db", pa.float64()),  # after `retrain_steps`; null without
        ("retrain_steps", pa.int64()),
        *((f"l_dp_part{part}", pa.float64()) for part in PARTS),  # of the last epoch on D_w; null for random
        *((f"entropy_{name}", pa.float64()) for name in LEVELS),  # mean over parts
        ("search_seconds", pa.float64()),  # wall time of the three part searches; since it went on, if it was killed
        ("score_seconds", pa.float64()),
        ("cpu_seconds", pa.float64()),  # of part searches and scoring together; likewise
        ("finished_at", pa.string()),  # ISO 8601, UTC
    ]
)

# One row per cell of the grid of every part: reachable cells, and those that the derivation dropped.
CELL_COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("origin", pa.string()),
        ("genotype_id", pa.string()),
        ("part", pa.int64()),
        ("resolution", pa.int64()),  # 0 full, 1 half, 2 quarter
        ("layer", pa.int64()),  # 1 .. L
        ("reachable", pa.bool_()),  # False: not part of the network; operator, widths and pathways are null
        ("operator", pa.string()),
        ("in_width", pa.int64()),  # eighths of C
        ("out_width", pa.int64()),
        ("resolution_pathways", pa.list_(pa.string())),  # kept: up (from coarser), same, down (from finer)
        ("dense_layers", pa.list_(pa.int64())),  # kept dense connections: earlier layers of the same resolution
        ("num_dense_options", pa.int64()),  # how many there were to choose from
        ("macs", pa.int64()),  # operator, resamplers and sums of the cell at the record's image_size
        ("alpha", pa.map_(pa.string(), pa.float64())),  # softmax by operator; null for random
        ("beta", pa.map_(pa.string(), pa.float64())),  # softmax by direction; only existing directions
        ("gamma", pa.map_(pa.string(), pa.float64())),  # softmax by width in eighths of C
        ("delta", pa.map_(pa.string(), pa.float64())),  # softmax by earlier layer
    ]
)


Record = dict[str, Any]


def cell_rows(
    genotype: Genotype, space: SearchSpace, probabilities: Sequence[dict[str, list[list[float]]]] | None, *, size: int
) -> list[dict[str, Any]]:
    """Describe every cell of the grid of the three parts, in `CELL_COLUMNS` without the first three.

    Args:
        genotype: the architecture.
        space: the space it was searched in or drawn from.
        probabilities: per part the softmax of alpha, beta, gamma, delta, one row per cell; None for a random one.
        size: image height and width for multiply-adds.
    """
    rows = []
    for part_index, part in enumerate(genotype.parts):
        by_position = {cell.position: cell for cell in part.cells}
        calls = cell_op_specs(part, space, height=size, width=size)
        for n, position in enumerate(space.cells):
            cell = by_position.get(position)
            row: dict[str, Any] = {
                "part": part_index,
                "resolution": position.resolution,
                "layer": position.layer,
                "reachable": cell is not None,
                "num_dense_options": len(space.dense_layers(position)),
            }
            if cell is not None:
                row |= {
                    "operator": cell.op,
                    "in_width": cell.in_width,
                    "out_width": cell.out_width,
                    "resolution_pathways": [direction for direction, _ in cell.resolution_pathways],
                    "dense_layers": [layer for layer, _ in cell.dense_pathways],
                    "macs": sum(map(op_macs, calls[position])),
                }
            if probabilities is not None:
                p = {name: values[n] for name, values in probabilities[part_index].items()}
                row |= {
                    "alpha": dict(zip(space.candidate_ops, p["alpha"], strict=True)),
                    "beta": {d: p["beta"][DIRECTIONS.index(d)] for d in space.directions(position)},
                    "gamma": {str(width): value for width, value in zip(WIDTHS, p["gamma"], strict=True)},
                    "delta": {str(layer): p["delta"][layer] for layer in space.dense_layers(position)},
                }
            rows.append(row)
    return rows


def write_record(folder: Path, record: Record) -> Path:
    """Write one architecture with its cells to `FOLDER/KEY.json`; a partial file never has that name."""
    path = folder / f"{record['key']}.json"
    write_atomically(path, json.dumps({"schema_version": RECORD_SCHEMA_VERSION} | record, allow_nan=False) + "\n")
    return path


def read_records(folder: Path) -> list[Record]:
    """Read all records of `folder`, in order of origin and index.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is damaged or of another schema version; the message names it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no collection in {folder.parent}: it has no folder {folder.name!r}")
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(read_text(path))
            version = record.pop("schema_version")
            if version != RECORD_SCHEMA_VERSION:
                raise ValueError(f"schema version {version!r}, this program reads {RECORD_SCHEMA_VERSION}")
            if record["key"] != path.stem or record["origin"] not in ORIGINS or type(record["index"]) is not int:
                raise ValueError("key, origin or index are not those of a record")
            _rows_table(ARCHITECTURE_COLUMNS, [record])  # checks the types
            _rows_table(CELL_COLUMNS, record["cells"])
        except Exception as error:  # pyarrow raises nearly every kind for values of other types
            raise ValueError(f"record {path} cannot be read: {error}") from error
        records.append(record)
    return sorted(records, key=lambda record: (ORIGINS.index(record["origin"]), record["index"]))


def write_dataset(folder: Path, records: Iterable[Record]) -> None:
    """Write `architectures.parquet` and `cells.parquet` into `folder`."""
    records = list(records)
    cells = [
        {name: record[name] for name in ("key", "origin", "genotype_id")} | cell
        for record in records
        for cell in record["cells"]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema, rows in (
        (ARCHITECTURES_FILE, ARCHITECTURE_COLUMNS, records),
        (CELLS_FILE, CELL_COLUMNS, cells),
    ):
        schema = schema.with_metadata({"schema_version": str(RECORD_SCHEMA_VERSION)})
        table = _rows_table(schema, rows)
        with written_beside(folder / name) as beside:
            pq.write_table(table, beside, compression="zstd")


def _rows_table(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{column: row.get(column) for column in schema.names} for row in rows], schema)


def read_dataset(folder: Path) -> tuple[pa.Table, pa.Table]:
    """Read the architectures and the cells of a data set.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no Parquet, lacks a column, or is of another schema version.
    """
    tables = []
    for name, schema in ((ARCHITECTURES_FILE, ARCHITECTURE_COLUMNS), (CELLS_FILE, CELL_COLUMNS)):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"data set {folder} holds no {name}")
        with _naming(path), pq.ParquetFile(path) as file:
            found, num_rows = file.schema_arrow, file.metadata.num_rows
        _check_columns(path, found, schema)
        if num_rows > _MAX_ROWS:
            raise ValueError(f"{path} has {num_rows} rows, more than {_MAX_ROWS}")
        known = pa.schema([field for field in found if field.name in schema.names], found.metadata)
        with _naming(path):
            table = pa.Table.from_batches(bounded_batches(path, known, max_bytes=_MAX_BYTES), schema=known)
            table.validate(full=True)  # texts of a damaged file need not be Unicode
        tables.append(table)
    return tables[0], tables[1]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into one error that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error


def _check_columns(path: Path, found: pa.Schema, schema: pa.Schema) -> None:
    """Raise unless the columns and their version are those of `schema`."""
    version = (found.metadata or {}).get(b"schema_version", b"none").decode(errors="replace")
    if version != str(RECORD_SCHEMA_VERSION):
        raise ValueError(f"{path} is of schema version {version}, this program reads {RECORD_SCHEMA_VERSION}")
    missing = [column for column in schema.names if column not in found.names]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]!r}")
    wrong = [
        field.name for field in found if field.name in schema.names and field.type != schema.field(field.name).type
    ]
    if wrong:
        raise ValueError(f"{path} has a column {wrong[0]!r} of another type")
