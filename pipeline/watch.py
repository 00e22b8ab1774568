"""Says why a command is gone when it cannot say so itself. Used by `pipeline.cli`.

A command that the system kills, or that a library ends because an allocation failed in native code (oneDNN and Ray's
threads do so), has no last line of its own.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ENDED_BY_A_SIGNAL = (
    "denoise-nas: error: ended by a signal: killed by somebody, or for want of memory, as native code dies of it; "
    "what was finished is kept, give the same command again to go on"
)
# The pipe closes when its other end is gone, whatever ended that. Signals of a terminal are meant for the command.
_WATCH = "import sys; sys.stdin.buffer.read(1) or print(sys.argv[1], file=sys.stderr)"


@contextmanager
def watched() -> Iterator[None]:
    """Have another small process say `ENDED_BY_A_SIGNAL` on standard error if this one ends within the block."""
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, ENDED_BY_A_SIGNAL],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        watcher.communicate(b".")  # does not mind if somebody killed it
