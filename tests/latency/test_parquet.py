"""Parquet files that are small on disk and large in memory."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latency.parquet import bounded_batches

TEXT = "x" * 1_000_000
COLUMNS = {
    "a text": pa.array([TEXT] * 300),
    "texts in lists": pa.array([[TEXT, TEXT]] * 150),
    "texts in maps": pa.array([[(TEXT, 1.0)]] * 300, pa.map_(pa.string(), pa.float64())),
    "a list": pa.array([[7] * 40_000_000]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_what_unpacks_to_more_than_the_bound_is_refused_before_it_is_allocated(tmp_path: Path, kind: str) -> None:
    """In a process of its own, whose largest size is looked at."""
    table = pa.table({"column": COLUMNS[kind]})
    path = tmp_path / "small.parquet"
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 100_000
    code = """
import resource, sys
from pathlib import Path
import pyarrow.parquet as pq
from latency.parquet import bounded_batches
path = Path(sys.argv[1])
schema = pq.read_schema(path)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(bounded_batches(path, schema, max_bytes=100_000_000))
except ValueError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2], check=True,
                          capture_output=True, text=True)  # fmt: skip
    message, kilobytes = done.stdout.splitlines()
    assert message == "its rows unpack to more than 100000000 bytes"
    assert int(kilobytes) < 60_000


def test_what_stays_below_the_bound_is_read_as_it_is(tmp_path: Path) -> None:
    table = pa.table({
        "name": ["skip", None, "skip"], "number": [1, 2, None], "ops": [["a", "b"], [], None],
        "sizes": [[1], [2, 3], []], "alpha": pa.array([[("a", 0.5)], [], None], pa.map_(pa.string(), pa.float64())),
        "left out": [1, 2, 3],
    })  # fmt: skip
    path = tmp_path / "table.parquet"
    pq.write_table(table, path)
    known = table.drop_columns("left out")
    assert pa.Table.from_batches(bounded_batches(path, known.schema, max_bytes=10_000)).equals(known)
