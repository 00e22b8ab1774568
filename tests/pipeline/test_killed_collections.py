"""Collections whose processes are killed: every search goes on from its last epoch, and finds what it would have."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.checkpoint import load_checkpoint
from pipeline.cli import main
from pipeline.collect import CHECKPOINTS_FOLDER, remove_checkpoints
from pipeline.records import read_records

NUM_EPOCHS = 80  # enough that a search can be killed three times in the middle of it
PART = ("ray::PartActor",)
TRIAL = ("ray::ResourceTrainable", "ray::CollectionTrial")  # while it works, and while it waits


def command(folder: Path, shared: Path) -> list[str]:
    """Return the command for one architecture, with prices and supernets from `shared`."""
    return [
        "collect", "--config", "tiny", "--output", str(folder), "--num", "1", "ray.cpus_per_part=0.6",
        "collect.shared_steps=6", "collect.proxy_size=32", f"collect.supernets={shared}",
        f"latency.table={shared / 'prices.parquet'}", f"search.num_epochs={NUM_EPOCHS}",
    ]  # fmt: skip


def found_in(folder: Path) -> dict[str, str]:
    return {record["key"]: record["genotype_id"] for record in read_records(folder / "records")}


class Epochs:
    """Epochs that lie in checkpoints of a collection, looked at again and again.

    Attributes:
        seen: seconds of each, by checkpoint and number.
        repeated: those that were there, and were made again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / CHECKPOINTS_FOLDER
        self.seen: dict[tuple[str, int], float] = {}
        self.repeated: set[tuple[str, int]] = set()

    def look(self) -> int:
        """Look once; return how many are known."""
        with suppress(FileNotFoundError):  # its record was written meanwhile
            for path in self._folder.glob("*/part*.pt"):
                for epoch, metrics in load_checkpoint(path)["history"]:
                    entry = (f"{path.parent.name}/{path.name}", epoch)
                    if self.seen.setdefault(entry, metrics["seconds"]) != metrics["seconds"]:
                        self.repeated.add(entry)
        return len(self.seen)


def wait_until(condition: Callable[[], object], *, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a collection that nothing happened to."""
    folder = tmp_path_factory.mktemp("collections") / "undisturbed"
    assert main(command(folder, folder)) == 0
    return folder


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_killed_collection_goes_on_and_repeats_no_finished_epoch(
    undisturbed: Path, tmp_path: Path, processes: Callable[[tuple[str, ...], str], list[int]]
) -> None:
    """Kill a part, then its trial, then the command, each when epochs were finished since the last kill."""
    folder, mark = tmp_path / "killed", f"DENOISE_NAS_TEST={uuid.uuid4()}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict([mark.split("=")])  # rounds as this process does
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *command(folder, undisturbed)],
        env=environment, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    epochs = Epochs(folder)

    def kill(titles: tuple[str, ...]) -> int:
        """Kill one of these processes after three more epochs; return when another one is there in its place."""
        known = epochs.look()
        wait_until(lambda: epochs.look() >= known + 3)
        before = set(processes(titles, mark))
        assert driver.poll() is None and read_records(folder / "records") == []
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: epochs.look() and set(processes(titles, mark)) - before)
        return min(before)

    try:
        wait_until(lambda: len(processes(PART, mark)) == 3)
        trials = set(processes(TRIAL, mark))
        kill(PART)
        assert set(processes(TRIAL, mark)) == trials, "a trial outlives its parts"
        assert {kill(TRIAL)} == trials
        known = epochs.look()
        wait_until(lambda: epochs.look() >= known + 3)
        assert driver.poll() is None and read_records(folder / "records") == []
    finally:
        driver.kill()
        driver.wait()
    wait_until(lambda: not processes(("",), mark))  # searches of a killed driver may go on for a moment
    epochs.look()
    assert main(command(folder, undisturbed)) == 0
    assert found_in(folder) == found_in(undisturbed) and len(found_in(folder)) == 1
    assert epochs.repeated == set()
    assert list((folder / CHECKPOINTS_FOLDER).iterdir()) == []


@pytest.mark.ray
@pytest.mark.faults
def test_checkpoints_that_cannot_be_written_end_the_collection_at_once(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "blocked"
    folder.mkdir()
    (folder / CHECKPOINTS_FOLDER).write_text("no folder")
    assert main(command(folder, undisturbed)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("denoise-nas: error: the search of part ") and "the same command goes on" in error
    assert f"'{folder / CHECKPOINTS_FOLDER}/searched-0000" in error
    (folder / CHECKPOINTS_FOLDER).unlink()
    assert main(command(folder, undisturbed)) == 0
    assert found_in(folder) == found_in(undisturbed)


def test_what_recorded_searches_left_is_removed(tmp_path: Path) -> None:
    names = ["searched-00000-0123456789ab", "searched-00000-ba9876543210", "searched-00001-0123456789ab"]
    for name in names:
        (tmp_path / CHECKPOINTS_FOLDER / name).mkdir(parents=True)
        (tmp_path / CHECKPOINTS_FOLDER / name / "part0.pt").touch()
    remove_checkpoints(tmp_path, [{"key": "searched-00000-0123456789ab"}, {"key": "random-00001-0123456789ab"}])
    assert {path.name for path in (tmp_path / CHECKPOINTS_FOLDER).iterdir()} == {names[2]}
