"""Operator files of the user, and what a Ray of our own is like; `test_run.py` exercises it."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray  # noqa: TID251  # as the pipeline does

from ops import create_op, list_ops, registry
from ops.spec import OpSpec
from pipeline import cluster
from pipeline.cluster import cluster_address, load_op_files, prepare_worker, ray_session, read_op_files
from pipeline.settings import RayConfig

SOURCE = """
from torch import nn
from ops import SlimmableConv2d, register_op

@register_op("{name}")
def build(spec):
    return SlimmableConv2d(spec.in_channels, spec.out_channels, 1)
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register into a copy, so that other tests do not see the operators of these."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(cluster, "_loaded_op_files", set())


@pytest.fixture
def op_file(tmp_path: Path) -> Path:
    path = tmp_path / "pointwise.py"
    path.write_text(SOURCE.format(name="pointwise"))
    return path


def test_an_operator_file_registers_its_operators(op_file: Path) -> None:
    load_op_files(read_op_files((str(op_file),)))
    assert "pointwise" in list_ops()
    module = create_op(OpSpec(name="pointwise", in_channels=16, out_channels=8, base_channels=16, height=4, width=4))
    assert sum(p.numel() for p in module.parameters()) == 16 * 8 + 8


def test_a_file_is_run_once_per_process(op_file: Path) -> None:
    sources = read_op_files((str(op_file),))
    load_op_files(sources)
    load_op_files(sources)
    assert list_ops().count("pointwise") == 1


def test_sources_travel_without_their_files(op_file: Path) -> None:
    sources = read_op_files((str(op_file),))
    op_file.unlink()
    load_op_files(sources)
    assert "pointwise" in list_ops()


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"operator file .*none\.py does not exist"):
        read_op_files((str(tmp_path / "none.py"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:", "SyntaxError"),
        ("import a_module_that_does_not_exist", "ModuleNotFoundError: .*a_module_that_does_not_exist"),
        ("1 / 0", "ZeroDivisionError"),
        (SOURCE.format(name="skip"), "ValueError: operator 'skip' is registered already"),
    ],
)
def test_a_failing_file_is_named_with_its_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"operator file .*mine\.py failed: {message}"):
        load_op_files(read_op_files((str(path),)))


def test_a_failing_file_may_be_mended_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE.format(name="mine") + "\n1 / 0\n")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        load_op_files(read_op_files((str(path),)))
    path.write_text(SOURCE.format(name="mended"))
    load_op_files(read_op_files((str(path),)))
    assert "mended" in list_ops()


def test_a_command_joins_the_cluster_of_the_settings_then_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address(RayConfig()) is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster_address(RayConfig()) == "auto"
    assert cluster_address(RayConfig(address="10.0.0.1:6379")) == "10.0.0.1:6379"


def test_folders_of_killed_processes_are_tidied_and_those_of_living_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_temporary_root", lambda: tmp_path)
    for name in ("keep_freed_memory", "_die_of_fatal_signals"):  # they would change this process
        monkeypatch.setattr(cluster, name, lambda: None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive, other = f"nas-ray-{ended.pid}-a", f"nas-ray-{os.getpid()}-b", "nas-ray-notes"
    for name in (dead, alive, other):
        (tmp_path / name / "session").mkdir(parents=True)
    cluster.prepare_worker({})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive, other])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_is_named_at_once(address: str) -> None:
    start = time.monotonic()
    with (
        pytest.raises(ConnectionError, match=f"no Ray cluster at `ray.address` '{address}'"),
        ray_session(RayConfig(address=address)),
    ):
        pass
    assert time.monotonic() - start < 20  # importing Ray takes a second or two


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("setting", "kind"), [("cpus_per_part", "CPU"), ("gpus_per_part", "GPU")])
def test_parts_that_would_wait_for_ever_are_refused(setting: str, kind: str) -> None:
    config = RayConfig(**{setting: 4096.0})
    message = rf"`ray.{setting}` must be at most \d+, the {kind}s of this machine, got 4096"
    with pytest.raises(ValueError, match=message), ray_session(config):
        pass


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads its size in /proc")
def test_a_process_without_memory_dies_of_a_fatal_signal() -> None:
    """Ray's own handler of such signals fails for want of memory, calls itself, and fills the disk with its report."""

    def die() -> None:
        prepare_worker({})
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        os.kill(os.getpid(), signal.SIGSEGV)

    with ray_session(RayConfig()):
        dying = ray.remote(max_retries=0)(die).remote()
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(dying, timeout=60)
