import platform
import subprocess
import sys
from pathlib import Path

import pytest

# An allocator belongs to a process: another one than that of the tests.
PROGRAM = """
import resource
from latency import freed_memory_is_kept, keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert not freed_memory_is_kept()
assert page_faults() > 1000 and page_faults() > 1000, "returned to the system and faulted in again"
assert keep_freed_memory() and freed_memory_is_kept()
assert keep_freed_memory(), "a second call says the same"
page_faults()
assert page_faults() < 100
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is tuned")
def test_freed_memory_is_used_again() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
