"""Rows of a Parquet file that may come from anybody, within a bound on the memory that they take.

Called where latency tables and data sets of collections are read.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_BATCH_ROWS = 1024


def bounded_batches(source: Path | pa.NativeFile, schema: pa.Schema, *, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Read the rows in batches, as long as they unpack to at most `max_bytes`.

    A text may stand once in the file for millions of rows, so texts are read by number first.

    Args:
        source: the file.
        schema: columns of the file, in its order, all that are read: numbers, texts, lists and maps.
        max_bytes: of all rows together.

    Yields:
        The batches.

    Raises:
        ValueError: the rows would take more; nothing of that size was allocated.
        pyarrow.ArrowException, OSError: the file is damaged.
    """
    with pq.ParquetFile(source) as file:
        leaves = [file.schema.column(index) for index in range(len(file.schema))]
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        claimed = sum(group.total_byte_size for group in groups)
        claimed += sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    if claimed > max_bytes:
        raise ValueError(f"its rows unpack to more than {max_bytes} bytes")
    num_bytes = 0
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(source, read_dictionary=texts, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=schema.names, use_threads=False):
            num_bytes += sum(map(_num_bytes, batch.columns))
            if num_bytes > max_bytes:
                raise ValueError(f"its rows unpack to more than {max_bytes} bytes")
            yield batch.cast(schema)


def _num_bytes(array: pa.Array) -> int:
    """Return what an array takes once texts that stand there by number are written out."""
    if pa.types.is_dictionary(array.type):
        return 4 * len(array) + (pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0)
    if pa.types.is_map(array.type):
        return 4 * len(array) + _num_bytes(array.keys) + _num_bytes(array.items)
    if pa.types.is_list(array.type):
        return 4 * len(array) + _num_bytes(array.flatten())
    return array.nbytes
