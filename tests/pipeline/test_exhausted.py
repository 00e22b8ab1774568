"""A machine that has no more to give: a full object store, and memory that a limit of the kernel ends."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray  # noqa: TID251  # as the pipeline does
from PIL import Image

from pipeline import part_actors
from pipeline.cli import main
from pipeline.watch import ENDED_BY_A_SIGNAL

pytestmark = [pytest.mark.faults, pytest.mark.ray]

MORE = 100 * 2**20  # bytes that a limited process may still take
OUT_OF_MEMORY = "out of memory", "can't allocate memory", "there may be too little memory"  # Python, torch, oneDNN


def search(folder: Path, *settings: str) -> list[str]:
    """Return the command of a tiny search that needs no prices."""
    return ["search", "--config", "tiny", "--output", str(folder), "search.cost=macs", *settings]


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail and return its line."""
    assert main(list(arguments)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("denoise-nas: error: ")]
    return line


def test_a_full_object_store_over_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What does not fit goes to disk, so both must be full; Ray calls the disk full at a share that is set here."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):  # 96 MB in memory, which live features need in every part
        image = Image.fromarray(np.full((4000, 4000, 3), 128, np.uint8))
        image.save(tmp_path / "images" / f"{name}.png", compress_level=1)
    command = search(
        tmp_path / "run", f"data.training=['{tmp_path / 'images'}']", "ray.object_store_mb=80",
        "search.prior_features=live",
    )  # fmt: skip
    with monkeypatch.context() as full:
        full.setenv("RAY_local_fs_capacity_threshold", "0.000001")
        line = error_line(capsys, *command)
    assert "Ray's object store or the disk under it is full: raise `ray.object_store_mb` or free disk space" in line
    assert main(command) == 0
    assert (tmp_path / "run" / "genotype.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads its size in /proc")
def test_a_part_without_memory_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def limit(_: Any, more: int = MORE) -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.RLIM_INFINITY))

    def limited(config: Any, part_index: int, start: Any = part_actors.start_part_actor, **options: Any) -> Any:
        actor = start(config, part_index, **options)
        if part_index == 1:
            ray.get(actor.__ray_call__.remote(limit))
        return actor

    command = search(tmp_path / "run", "search.patch_size=96", "search.batch_size=8")
    with monkeypatch.context() as scarce:
        scarce.setattr(part_actors, "start_part_actor", limited)
        line = error_line(capsys, *command)
    if "the search of part 1 failed: " in line:
        assert any(words in line for words in OUT_OF_MEMORY)
    else:
        assert "the process that searched part 1 died; the same command goes on from its last epoch" in line
    assert main(command) == 0
    assert (tmp_path / "run" / "genotype.json").exists()


LIMITED_RUN = """
import resource, sys
from pathlib import Path

from pipeline.cli import command_line
from pipeline.run import Run

def limited(run, *arguments, evaluate=Run.evaluate):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + {more}, resource.RLIM_INFINITY))
    return evaluate(run, *arguments)

Run.evaluate = limited
sys.exit(command_line())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its size in /proc")
def test_a_command_without_memory_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Sometimes oneDNN runs code that it had no memory to write, and the kernel ends the command."""
    command = ["run", "--config", "tiny", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_RUN.format(more=MORE), *command],
        cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("denoise-nas: error: ")]
    if done.returncode == 2:
        assert any(words in line for words in OUT_OF_MEMORY)
    else:
        assert -done.returncode in (signal.SIGSEGV, signal.SIGABRT) and line == ENDED_BY_A_SIGNAL
    kept = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in ("search.pt", "latency.parquet")}
    assert main(command) == 0
    assert {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept} == kept
    assert (tmp_path / "run" / "summary.json").exists()
