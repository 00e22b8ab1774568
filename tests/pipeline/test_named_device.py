"""Searches for a device that is not the machine they run on."""

from pathlib import Path

import pytest

from latency import DeviceInfo, LatencyTable, Timing
from pipeline.config import load_config
from pipeline.run import Run, open_run
from search_space import space_op_specs

PHONE = DeviceInfo(
    device_type="cpu", device_name="Pocket 7", capability="NEON", machine="aarch64", num_threads=4, dtype="float32",
    batch_size=1, memory_format="channels_last", allocator="default", torch_version="2.9.0",
)  # fmt: skip


def opened(folder: Path, device_name: str | None = None) -> Run:
    settings = [f"output={folder / str(device_name)}", f"latency.table={folder / 'pocket.parquet'}"]
    return open_run(load_config("tiny", settings + ([f"latency.device_name={device_name}"] if device_name else [])))


@pytest.fixture
def table(tmp_path: Path) -> LatencyTable:
    """A table of the phone for the tiny space, in `tmp_path`/pocket.parquet."""
    run = opened(tmp_path)
    size = run.config.latency.image_size
    specs = space_op_specs(run.space, height=size, width=size)
    table = LatencyTable(PHONE, {spec: Timing(median_ms=7.0, iqr_ms=0.0, num_repeats=3) for spec in specs})
    table.save(tmp_path / "pocket.parquet")
    return table


def test_the_table_of_a_named_device_is_used_on_any_machine(table: LatencyTable, tmp_path: Path) -> None:
    found = opened(tmp_path, "Pocket 7").latency_table()
    assert found.device_info == PHONE
    assert len(found) == len(table)


def test_without_its_name_the_table_of_another_device_is_refused(table: LatencyTable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pocket\.parquet was measured on something else .*Pocket 7"):
        opened(tmp_path).latency_table()


def test_a_table_of_another_device_than_named_is_refused(table: LatencyTable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pocket\.parquet is of 'Pocket 7', `latency\.device_name` is 'Pocket 8'"):
        opened(tmp_path, "Pocket 8").latency_table()


def test_a_named_device_is_never_priced_on_this_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pocket\.parquet"):
        opened(tmp_path, "Pocket 7").latency_table()
    assert not (tmp_path / "pocket.parquet").exists()


def test_a_named_device_needs_a_table() -> None:
    with pytest.raises(ValueError, match=r"`latency\.table` must be a file when latency\.device_name is set"):
        load_config("tiny", ["latency.device_name=Pocket 7"])
