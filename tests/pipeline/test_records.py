"""Data sets of collections that come from others."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import records
from pipeline.records import ARCHITECTURES_FILE, read_dataset


def test_a_small_file_that_unpacks_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MAX_BYTES", 10_000_000)
    path = tmp_path / ARCHITECTURES_FILE
    pq.write_table(pa.table({"key": ["x" * 1_000_000] * 40}), path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match=f"{ARCHITECTURES_FILE} .*: its rows unpack to more than 10000000 bytes"):
        read_dataset(tmp_path)
