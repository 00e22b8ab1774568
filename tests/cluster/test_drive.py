"""A real cluster of three hosts, from `ray up` to `ray down`; minutes, so only `make test-cluster` runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVE = Path(__file__).with_name("drive.py")
_NOT_HERE = 77


@pytest.mark.cluster
def test_a_cluster_comes_up_works_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = _state_of_home()
    done = subprocess.run([sys.executable, str(DRIVE), str(tmp_path)], capture_output=True, text=True)
    if done.returncode == _NOT_HERE:
        pytest.skip(done.stderr.strip())
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _state_of_home() == before
    assert _processes_that_name(tmp_path) == []


def _state_of_home() -> dict[str, int | None]:
    """Return when what a cluster might touch in the user's home was last changed, None for what is not there."""
    paths = {name: Path.home() / name for name in (".bashrc", ".ssh", ".ray", "denoise-nas", "runs", "tracking")}
    return {name: path.stat().st_mtime_ns if path.exists() else None for name, path in paths.items()}


def _processes_that_name(folder: Path) -> list[str]:
    """Return the commands of running processes that were given a path below `folder`, work there or hold it open."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            held = [os.readlink(link) for link in (process / "cwd", *(process / "fd").iterdir())]
        except OSError:  # it has just ended
            continue
        if any(str(folder) in name for name in (command, *held)):
            found.append(command)
    return found
