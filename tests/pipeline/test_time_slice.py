import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.time_slice import lengthen_time_slice, patient_processes


def slice_ns() -> int | None:
    """Return the time slice of the calling thread as the kernel tells it, or None where it does not."""
    status = Path(f"/proc/self/task/{threading.get_native_id()}/sched")
    found = re.search(r"^se\.slice\s*:\s*(\d+)", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) if found else None


def test_one_thread_gets_longer_slices_and_keeps_its_niceness() -> None:
    before, seen = slice_ns(), {}
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    if version and tuple(map(int, version.groups())) < (6, 12):
        pytest.skip("Linux before 6.12 takes the request and changes nothing")
    if before is None:
        pytest.skip("this kernel does not tell the time slice of a thread")

    def work() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 3)
        seen["taken"] = lengthen_time_slice(20)
        seen["slice"], seen["nice"] = slice_ns(), os.getpriority(os.PRIO_PROCESS, 0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if not seen["taken"]:
        pytest.skip("this system lets nobody ask")
    assert seen == {"taken": True, "slice": 20_000_000, "nice": 3}
    assert slice_ns() == before


def test_an_unknown_machine_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "abacus")
    assert lengthen_time_slice() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has the policy")
def test_processes_that_start_inside_are_patient_and_the_caller_is_as_before() -> None:
    def child() -> str:
        command = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    before = os.sched_getscheduler(0)
    with patient_processes():
        assert child() == str(os.SCHED_BATCH)
    assert os.sched_getscheduler(0) == before
    assert child() == str(before)
