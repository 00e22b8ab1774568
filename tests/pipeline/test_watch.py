"""What is said of a command that a signal ended, and of one that ended by itself."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.watch import ENDED_BY_A_SIGNAL


def ended(block: str) -> subprocess.CompletedProcess[str]:
    """Run a block of code in a watched process of its own."""
    code = f"import os, signal, sys\nfrom pipeline.watch import watched\nwith watched():\n    {block}"
    folder = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, cwd=folder, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_signal_that_ends_a_command_is_one_line(number: signal.Signals) -> None:
    done = ended(f"os.kill(os.getpid(), {int(number)})")
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", ENDED_BY_A_SIGNAL + "\n")


@pytest.mark.parametrize(("block", "status"), [("print(1)", 0), ("sys.exit(2)", 2), ("raise ValueError('ours')", 1)])
def test_a_command_that_ends_by_itself_has_the_last_word(block: str, status: int) -> None:
    done = ended(block)
    assert done.returncode == status
    assert ENDED_BY_A_SIGNAL not in done.stderr


def test_a_signal_of_the_terminal_is_left_to_the_command() -> None:
    heeded = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # in the background a shell has it ignored
    done = ended(f"{heeded}; os.kill(0, signal.SIGINT)")  # to all of its process group
    assert "KeyboardInterrupt" in done.stderr
    assert ENDED_BY_A_SIGNAL not in done.stderr
