"""Searches for a device that is not the machine they run on, and on one that has no GPU while its cluster does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latency import DeviceInfo, LatencyTable, Timing
from pipeline.config import load_config
from pipeline.run import Run, open_run
from search_space import SearchSpace, build_network, sample_genotype, space_op_specs

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


@pytest.mark.slow
def test_the_head_of_a_cluster_needs_no_gpu_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the GPU work away, and evaluates on its processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = ["device=cuda", f"output={tmp_path / 'run'}", "ray.gpus_per_part=1", "evaluate.image_size=64"]
    with pytest.raises(ValueError, match="`device` is cuda, but torch sees no CUDA device"):
        open_run(load_config("tiny", settings))
    with pytest.raises(ValueError, match=r"`ray\.gpus_per_part` must be above 0 on a cluster"):
        open_run(load_config("tiny", [*settings, "ray.address=10.0.0.1:6379", "ray.gpus_per_part=0"]))
    run = open_run(load_config("tiny", [*settings, "ray.address=10.0.0.1:6379"]))
    space = SearchSpace(num_channels=16, num_resolutions=1, num_layers=1, candidate_ops=("conv_d1",))
    network = build_network(sample_genotype(space, generator=torch.Generator().manual_seed(0)))
    small = {name: image[:64, :64] for name, image in run.validation_images.items()}
    results = replace(run, validation_images=small).evaluate(network, None)
    assert results["psnr_db"]["prior"] > results["psnr_db"]["noisy"]
    assert next(run.prior.parameters()).device.type == "cpu"
