import json
import random
import resource
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latency import LatencyTable, Timing
from latency import table as table_module
from latency.table import Sentinel
from ops import OPS_VERSION


def rewrite(path, *, rows=None, columns=None, metadata=None):
    """Write the file again with other rows, columns or metadata."""
    table = pq.read_table(path)
    old_metadata = table.schema.metadata
    if rows is not None:
        table = pa.Table.from_pylist(rows, schema=table.schema)
    if columns is not None:
        table = columns(table)
    pq.write_table(table.replace_schema_metadata(old_metadata if metadata is None else metadata), path)


def test_lookup_returns_the_median(small_table, spec):
    assert small_table[spec("conv_d1")] == 0.5
    assert small_table.timing(spec("conv_d1")) == Timing(median_ms=0.5, iqr_ms=0.01, num_repeats=40)
    assert spec("conv_d1") in small_table
    assert spec("conv_d2") not in small_table
    assert len(small_table) == len(list(small_table)) == 3


def test_missing_row_names_the_spec_and_the_way_out(small_table, spec):
    with pytest.raises(KeyError, match=r"no row for OpSpec\(name='hin'.*build_table"):
        small_table[spec("hin")]


def test_add_replaces_a_row(small_table, spec):
    small_table.add(spec("conv_d1"), Timing(median_ms=2.0, iqr_ms=0.0, num_repeats=5))
    assert small_table[spec("conv_d1")] == 2.0
    assert len(small_table) == 3


def test_table_of_another_space_is_refused(small_table, spec):
    small_table.require(list(small_table) * 2)
    assert small_table.covers(small_table)
    other = [spec("conv_d1"), *(spec("hin", 16, width) for width in (16, 14, 12, 10)), spec("hin")]
    assert not small_table.covers(other)
    with pytest.raises(
        ValueError, match=r"lacks 4 of 5 rows .*out_channels=16,.*=14,.*=12,[^=]*=16.*; \.\.\.;"
    ) as error:
        small_table.require(other)
    assert "out_channels=10" not in str(error.value)


def test_parquet_round_trip(small_table, device_info, tmp_path):
    path = tmp_path / "new" / "folder" / "table.parquet"
    small_table.save(path)
    loaded = LatencyTable.load(path, expected=device_info)
    assert loaded.device_info == device_info
    assert {spec: loaded.timing(spec) for spec in loaded} == {spec: small_table.timing(spec) for spec in small_table}
    assert list(loaded) == list(small_table)
    assert [entry.name for entry in path.parent.iterdir()] == ["table.parquet"]


def test_the_sentinel_is_kept_and_may_be_missing(small_table, spec, tmp_path):
    path = tmp_path / "table.parquet"
    small_table.save(path)
    assert LatencyTable.load(path, expected=None).sentinel is None  # as in files of earlier versions
    small_table.sentinel = Sentinel(spec=spec("conv_d1"), quietest_ms=0.25)
    small_table.save(path)
    assert LatencyTable.load(path, expected=None).sentinel == small_table.sentinel


@pytest.mark.parametrize("change", [{"quietest_ms": -1.0}, {"quietest_ms": None}, {"height": 0}, {"colour": "red"}])
def test_an_impossible_sentinel_is_refused(small_table, spec, tmp_path, change):
    path = tmp_path / "table.parquet"
    small_table.sentinel = Sentinel(spec=spec("conv_d1"), quietest_ms=0.25)
    small_table.save(path)
    metadata = json.loads(pq.read_schema(path).metadata[b"latency_table"])
    metadata["sentinel"] |= change
    rewrite(path, metadata={"latency_table": json.dumps(metadata)})
    with pytest.raises(ValueError, match=r"table.parquet is damaged or no latency table: "):
        LatencyTable.load(path, expected=None)


def test_empty_table_round_trip(device_info, tmp_path):
    LatencyTable(device_info).save(tmp_path / "table.parquet")
    assert len(LatencyTable.load(tmp_path / "table.parquet", expected=device_info)) == 0


def test_pandas_reads_the_file(small_table, tmp_path):
    small_table.save(tmp_path / "table.parquet")
    frame = pd.read_parquet(tmp_path / "table.parquet")
    assert list(frame.columns) == [
        "name", "in_channels", "out_channels", "base_channels", "height", "width", "median_ms", "iqr_ms", "num_repeats",
    ]  # fmt: skip
    assert frame.loc[frame["name"] == "up", ["out_channels", "median_ms"]].values.tolist() == [[10, 7.25]]


def test_save_that_fails_leaves_the_old_file(small_table, device_info, spec, tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    small_table.save(path)

    def full_disk(table, where, **settings):
        where.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError) as error:
        LatencyTable(device_info).save(path)
    assert str(error.value) == f"no space left; mend that and the same command goes on: {path}"
    assert len(LatencyTable.load(path, expected=device_info)) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.parquet"]


@pytest.mark.parametrize("num_bytes", [0, 100])
def test_a_full_disk_is_one_error_that_names_the_file_and_leaves_nothing(small_table, tmp_path, num_bytes):
    """A limit on the size of files takes the first bytes and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; mend that and .* goes on: .*table\.parquet'"):
            small_table.save(tmp_path / "table.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_table_of_another_device_is_refused_with_all_that_differs(small_table, device_info, tmp_path):
    path = tmp_path / "table.parquet"
    small_table.save(path)
    here = replace(device_info, device_name="Abacus 4000", num_threads=2, dtype="bfloat16", torch_version="2.10.0")
    with pytest.raises(ValueError, match="table.parquet was measured on something else") as error:
        LatencyTable.load(path, expected=here)
    for difference in (
        "device_name: table Abacus 3000, here Abacus 4000",
        "num_threads: table 1, here 2",
        "dtype: table float32, here bfloat16",
        "torch_version: table 2.9.0, here 2.10.0",
    ):
        assert difference in str(error.value)
    assert "batch_size" not in str(error.value)
    assert LatencyTable.load(path, expected=None).device_info == device_info


def test_table_of_another_schema_version_is_refused(small_table, device_info, tmp_path):
    path = tmp_path / "table.parquet"
    small_table.save(path)
    metadata = {"schema_version": 2, "device_info": device_info.to_dict() | {"moon_phase": "full"}}
    rewrite(path, metadata={"latency_table": json.dumps(metadata)})
    with pytest.raises(ValueError, match="schema_version: table 2, here 1") as error:
        LatencyTable.load(path, expected=replace(device_info, num_threads=2))
    assert "num_threads: table 1, here 2; moon_phase: table full, here (none)" in str(error.value)
    with pytest.raises(ValueError, match="schema_version: table 2, here 1"):
        LatencyTable.load(path, expected=None)


def test_table_of_operators_that_computed_otherwise_is_refused(small_table, tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    monkeypatch.setitem(table_module._VERSIONS, "ops_version", 1)
    small_table.save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"ops_version: table 1, here {OPS_VERSION}.; build a new table"):
        LatencyTable.load(path, expected=None)


def test_missing_file(tmp_path):
    for path in (tmp_path / "absent.parquet", tmp_path):  # a folder is no table
        with pytest.raises(FileNotFoundError, match=f"latency table {path} does not exist"):
            LatencyTable.load(path, expected=None)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"name,median_ms\nskip,1\n", b"PAR1" + bytes(64) + b"PAR1"])
def test_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "table.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="table.parquet is damaged or no latency table"):
        LatencyTable.load(path, expected=None)


def test_other_parquet_file_is_refused(small_table, tmp_path):
    path = tmp_path / "table.parquet"
    pd.DataFrame({"name": ["skip"]}).to_parquet(path)
    with pytest.raises(ValueError, match="its Parquet metadata has no `latency_table`"):
        LatencyTable.load(path, expected=None)
    small_table.save(path)
    rewrite(path, columns=lambda table: table.drop_columns("iqr_ms"))
    with pytest.raises(ValueError, match="its columns are .* differ"):
        LatencyTable.load(path, expected=None)


@pytest.mark.parametrize("metadata", [b"[1]", b"{}", b'{"device_info": 3}', b"{", b"\xff\xfe", b"[" * 200_000])
def test_foreign_metadata_is_refused(small_table, tmp_path, metadata):
    path = tmp_path / "table.parquet"
    small_table.save(path)
    rewrite(path, metadata={"latency_table": metadata})
    with pytest.raises(ValueError, match="table.parquet is damaged or no latency table"):
        LatencyTable.load(path, expected=None)


def test_truncated_file_is_refused(small_table, tmp_path):
    path = tmp_path / "table.parquet"
    small_table.save(path)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="table.parquet is damaged or no latency table"):
            LatencyTable.load(path, expected=None)


def test_damaged_bytes_never_give_other_times(small_table, device_info, tmp_path):
    """Checksums of the pages notice damaged values; a damaged footer fails to parse or describes another table."""
    path = tmp_path / "table.parquet"
    small_table.save(path)
    content = path.read_bytes()
    random_bytes = random.Random(0)
    right_times = {spec: small_table[spec] for spec in small_table}
    num_refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[random_bytes.randrange(len(damaged))] = random_bytes.randrange(256)
        path.write_bytes(damaged)
        try:
            loaded = LatencyTable.load(path, expected=device_info)
        except ValueError as error:
            assert "table.parquet" in str(error)
            num_refused += 1
        else:
            assert {spec: loaded[spec] for spec in loaded} == right_times
    assert num_refused > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"median_ms": float("nan")}, "`median_ms` must be finite"),
        ({"median_ms": -0.5}, "`median_ms` must be finite and not negative, got -0.5"),
        ({"iqr_ms": float("inf")}, "`iqr_ms` must be finite"),
        ({"num_repeats": 0}, "`num_repeats` must be positive"),
        ({"in_channels": 0}, "`in_channels` of OpSpec must be positive"),
    ],
)
def test_impossible_values_are_refused(small_table, tmp_path, change, message):
    path = tmp_path / "table.parquet"
    small_table.save(path)
    rows = pq.read_table(path).to_pylist()
    rewrite(path, rows=[*rows[1:], rows[0] | change])
    with pytest.raises(ValueError, match=f"table.parquet is damaged or no latency table: {message}"):
        LatencyTable.load(path, expected=None)


def test_repeated_row_is_refused(small_table, tmp_path):
    path = tmp_path / "table.parquet"
    small_table.save(path)
    rewrite(path, rows=pq.read_table(path).to_pylist() * 2)
    with pytest.raises(ValueError, match="it has two rows for OpSpec"):
        LatencyTable.load(path, expected=None)


def test_absurdly_large_file_is_refused_before_it_is_read(small_table, tmp_path):
    path = tmp_path / "table.parquet"
    small_table.save(path)
    rewrite(path, rows=pq.read_table(path).to_pylist() * 40_000)
    with pytest.raises(ValueError, match="it has 120000 rows, more than 100000"):
        LatencyTable.load(path, expected=None)
    with path.open("r+b") as file:
        file.truncate(65 * 2**20)  # sparse: takes no space
    with pytest.raises(ValueError, match="it is larger than 67108864 bytes"):
        LatencyTable.load(path, expected=None)


def test_a_small_file_that_unpacks_to_far_more_is_refused(small_table, tmp_path):
    """One long name, stored once, for every row."""
    path = tmp_path / "latency.parquet"
    small_table.save(path)
    sound = pq.read_table(path)
    rows = [sound.to_pylist()[0] | {"name": "x" * 2**20, "height": 1 + height} for height in range(200)]
    pq.write_table(pa.Table.from_pylist(rows, schema=sound.schema), path, write_page_checksum=True, compression="zstd")
    assert path.stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"latency\.parquet.*unpack to more than \d+ bytes"):
        LatencyTable.load(path, expected=None)
