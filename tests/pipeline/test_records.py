"""Data sets of collections that come from others."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import records
from pipeline.records import ARCHITECTURE_COLUMNS, ARCHITECTURES_FILE, read_dataset, write_dataset


def write_architectures(path: Path, rows: list[dict[str, str]]) -> None:
    schema = ARCHITECTURE_COLUMNS.with_metadata({"schema_version": "1"})
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def test_a_small_file_that_unpacks_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MAX_BYTES", 10_000_000)
    path = tmp_path / ARCHITECTURES_FILE
    write_architectures(path, [{"key": "x" * 1_000_000}] * 40)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match=f"{ARCHITECTURES_FILE} .*: its rows unpack to more than 10000000 bytes"):
        read_dataset(tmp_path)


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MAX_ROWS", 2)
    write_architectures(tmp_path / ARCHITECTURES_FILE, [{}] * 3)
    with pytest.raises(ValueError, match=f"{ARCHITECTURES_FILE} has 3 rows, more than 2"):
        read_dataset(tmp_path)


def test_other_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / ARCHITECTURES_FILE
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(ValueError, match=f"{ARCHITECTURES_FILE} is of schema version none, this program reads 1"):
        read_dataset(tmp_path)
    table = pa.table({"key": ["a"]}).replace_schema_metadata({"schema_version": "1"})
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=f"{ARCHITECTURES_FILE} lacks the column 'origin'"):
        read_dataset(tmp_path)
    write_dataset(tmp_path, [])
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "key", pa.array([], pa.int64())), path)
    with pytest.raises(ValueError, match=f"{ARCHITECTURES_FILE} has a column 'key' of another type"):
        read_dataset(tmp_path)


def test_columns_of_others_are_left_out(tmp_path: Path) -> None:
    write_dataset(tmp_path, [])
    path = tmp_path / ARCHITECTURES_FILE
    pq.write_table(pq.read_table(path).append_column("mine", pa.array([], pa.binary())), path)
    assert read_dataset(tmp_path)[0].column_names == ARCHITECTURE_COLUMNS.names
