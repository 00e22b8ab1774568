"""LatencyTable: the measured time of every operator call of a search space, on one device.

Filled by `latency.build`, read by `latency.predict` and by the complexity regulariser of a search. On disk it is one
Parquet file that pandas reads too: one row per `OpSpec`, the `DeviceInfo` and the sentinel as JSON in the metadata of
the schema.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latency.device import DeviceInfo, describe_differences
from latency.measure import Timing
from latency.parquet import bounded_batches
from ops import OPS_VERSION, OpSpec
from ops.files import written_beside

_VERSIONS = {"schema_version": 1, "ops_version": OPS_VERSION}
_METADATA_KEY = b"latency_table"
_SPEC_FIELDS = ("name", "in_channels", "out_channels", "base_channels", "height", "width")
_TIMING_FIELDS = ("median_ms", "iqr_ms", "num_repeats")
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in _SPEC_FIELDS[1:]),
        pa.field("median_ms", pa.float64(), nullable=False),
        pa.field("iqr_ms", pa.float64(), nullable=False),
        pa.field("num_repeats", pa.int64(), nullable=False),
    ]
)
# Far above any search space (the paper's has about a thousand rows): a larger file is no latency table.
_MAX_ROWS = 100_000
_MAX_FILE_BYTES = 64 * 2**20
_NUM_NAMED_SPECS = 3


@dataclass(frozen=True, kw_only=True)
class Sentinel:
    """How quiet the machine was at best while a table was built.

    Attributes:
        spec: the operator that was timed again and again.
        quietest_ms: its lowest reading.

    Raises:
        ValueError: the reading is not finite or not positive.
    """

    spec: OpSpec
    quietest_ms: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.quietest_ms) and self.quietest_ms > 0):
            raise ValueError(f"`quietest_ms` must be finite and positive, got {self.quietest_ms}")


class LatencyTable:
    """Milliseconds per `OpSpec`, for one `DeviceInfo`.

    `table[spec]` is the median of one call, `spec in table`, `len(table)` and iteration over the specs work as in a
    dictionary.

    Args:
        device_info: what the times belong to.
        timings: the rows.
        sentinel: that of the build, with which another build goes on; None where it is not known.
    """

    def __init__(
        self,
        device_info: DeviceInfo,
        timings: Mapping[OpSpec, Timing] | None = None,
        *,
        sentinel: Sentinel | None = None,
    ) -> None:
        self.device_info = device_info
        self.sentinel = sentinel
        self._timings = dict(timings or {})

    def __getitem__(self, spec: OpSpec) -> float:
        return self.timing(spec).median_ms

    def __contains__(self, spec: object) -> bool:
        return spec in self._timings

    def __iter__(self) -> Iterator[OpSpec]:
        return iter(self._timings)

    def __len__(self) -> int:
        return len(self._timings)

    def __repr__(self) -> str:
        return f"LatencyTable({len(self)} rows, {self.device_info})"

    def timing(self, spec: OpSpec) -> Timing:
        """Return median, spread and repeats of one operator call.

        Raises:
            KeyError: the table has no row for `spec`.
        """
        if spec not in self._timings:
            raise KeyError(
                f"the latency table has no row for {spec}; add it with `latency.build_table([...], table=table)`, "
                "or build a table for this search space"
            )
        return self._timings[spec]

    def add(self, spec: OpSpec, timing: Timing) -> None:
        """Set the row of `spec`; a row that is there already is replaced."""
        self._timings[spec] = timing

    def covers(self, specs: Iterable[OpSpec]) -> bool:
        """Tell whether every spec has a row."""
        return all(spec in self._timings for spec in specs)

    def require(self, specs: Iterable[OpSpec]) -> None:
        """Refuse a table that was built for another search space.

        Raises:
            ValueError: rows are missing; the message counts them and names the first.
        """
        wanted = list(dict.fromkeys(specs))
        missing = [spec for spec in wanted if spec not in self._timings]
        if missing:
            named = "; ".join(str(spec) for spec in missing[:_NUM_NAMED_SPECS])
            more = "; ..." if len(missing) > _NUM_NAMED_SPECS else ""
            raise ValueError(
                f"the latency table lacks {len(missing)} of {len(wanted)} rows of this search space, for example "
                f"{named}{more}; build a table for this search space"
            )

    def save(self, path: Path) -> None:
        """Write a Parquet file: beside `path` first, then renamed, so that `path` is never half written.

        Raises:
            OSError: the disk is full or the folder cannot be written; the message names `path`.
        """
        metadata: dict[str, Any] = _VERSIONS | {"device_info": self.device_info.to_dict()}
        if self.sentinel is not None:
            metadata["sentinel"] = self.sentinel.spec.to_dict() | {"quietest_ms": self.sentinel.quietest_ms}
        rows = [
            spec.to_dict() | {name: getattr(timing, name) for name in _TIMING_FIELDS}
            for spec, timing in self._timings.items()
        ]
        schema = _SCHEMA.with_metadata({_METADATA_KEY: json.dumps(metadata).encode()})
        with written_beside(path) as beside:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), beside, write_page_checksum=True)

    @classmethod
    def load(cls, path: Path, *, expected: DeviceInfo | None) -> "LatencyTable":
        """Read a table that `save` wrote.

        Args:
            path: of the Parquet file.
            expected: what the times will be used for; None accepts a table of any device, to look at it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or no latency table, or the table belongs to another device, other settings
                or versions; the message lists everything that differs.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"latency table {path} does not exist")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ValueError(f"{path} is no latency table: it is larger than {_MAX_FILE_BYTES} bytes")
        content = path.read_bytes()
        try:
            source = pa.BufferReader(content)
            file = pq.ParquetFile(source)
            metadata = _read_metadata(file)
            _refuse_differences(path, metadata, expected)
            device_info = DeviceInfo.from_dict(metadata["device_info"])
            sentinel = _read_sentinel(metadata)
            _check_columns(file)
            timings = _read_timings(source)
        except _OtherDeviceError as error:
            raise ValueError(str(error)) from None
        # pyarrow reports damage as one of its own errors, as OSError, or as text that is not Unicode (a ValueError).
        except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged or no latency table: {error}") from error
        return cls(device_info, timings, sentinel=sentinel)


class _OtherDeviceError(Exception):
    """The file is sound, but its times belong to something else."""


def _read_metadata(file: pq.ParquetFile) -> dict[str, Any]:
    """Return the versions and `device_info` of the file."""
    raw = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
    if raw is None:
        raise ValueError("its Parquet metadata has no `latency_table`")
    metadata = json.loads(raw)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("device_info"), dict):
        raise ValueError("its Parquet metadata names no device")
    return metadata


def _read_sentinel(metadata: dict[str, Any]) -> Sentinel | None:
    if "sentinel" not in metadata:  # an earlier version's
        return None
    fields = dict(metadata["sentinel"])
    quietest_ms = fields.pop("quietest_ms", math.nan)
    return Sentinel(spec=OpSpec(**fields), quietest_ms=quietest_ms)


def _refuse_differences(path: Path, metadata: dict[str, Any], expected: DeviceInfo | None) -> None:
    """Raise unless versions and device are the expected ones."""
    differences = describe_differences({name: metadata.get(name) for name in _VERSIONS}, _VERSIONS)
    if expected is not None:
        differences += describe_differences(metadata["device_info"], expected.to_dict())
    if differences:
        raise _OtherDeviceError(f"{path} was measured on something else ({'; '.join(differences)}); build a new table")


def _check_columns(file: pq.ParquetFile) -> None:
    if not file.schema_arrow.equals(_SCHEMA, check_metadata=False):
        raise ValueError(f"its columns are {file.schema_arrow.names} and types differ from those of a latency table")
    if file.metadata.num_rows > _MAX_ROWS:
        raise ValueError(f"it has {file.metadata.num_rows} rows, more than {_MAX_ROWS}")


def _read_timings(source: pa.NativeFile) -> dict[OpSpec, Timing]:
    """Return the rows, each checked by `OpSpec` and `Timing`."""
    timings: dict[OpSpec, Timing] = {}
    for batch in bounded_batches(source, _SCHEMA, max_bytes=_MAX_FILE_BYTES):
        for row in batch.to_pylist():
            spec = OpSpec(**{name: row[name] for name in _SPEC_FIELDS})
            if spec in timings:
                raise ValueError(f"it has two rows for {spec}")
            timings[spec] = Timing(**{name: row[name] for name in _TIMING_FIELDS})
    return timings
