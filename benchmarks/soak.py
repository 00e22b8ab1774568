"""Does a long collection grow?

    python benchmarks/soak.py --num 200

Collects tiny architectures, half of them searched, in one driver with a tracking database, and looks at the driver and
at every process that it started, at each record: resident memory, open files, number of processes. A straight line
through what comes after the first fifth tells growth per architecture. At the end nothing of Ray may be left: no
process with our mark in its environment, no folder.
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import print_table, write_result

from latency import keep_freed_memory
from pipeline.cluster import ray_session
from pipeline.collect import claim_collection, collect
from pipeline.collection_tracking import CollectionTracking
from pipeline.config import load_config
from pipeline.records import Record
from pipeline.run import claimed, open_run

MARK = "DENOISE_NAS_SOAK"
SETTINGS = ["ray.cpus_per_part=0.3", "collect.shared_steps=20", "collect.proxy_size=32"]
QUANTITIES = ("driver_mb", "driver_files", "driver_threads", "all_mb", "all_files", "num_processes")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one process holds at a moment."""

    memory_mb: float
    num_files: int
    num_threads: int


def usage_of(pid: int) -> Usage:
    folder = Path("/proc") / str(pid)
    status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
    return Usage(
        memory_mb=int(status["VmRSS"].split()[0]) / 1024,
        num_files=len(list((folder / "fd").iterdir())),
        num_threads=int(status["Threads"]),
    )


def our_processes(mark: str) -> list[int]:
    """Return the processes that inherited `mark` from this one, without this one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return [pid for pid in found if pid != os.getpid()]


def sample(mark: str) -> tuple[float, ...]:
    own = usage_of(os.getpid())
    others = []
    for pid in our_processes(mark):
        try:
            others.append(usage_of(pid))
        except (OSError, KeyError):
            continue  # it ended meanwhile
    everyone = [own, *others]
    return (
        own.memory_mb, own.num_files, own.num_threads, sum(usage.memory_mb for usage in everyone),
        sum(usage.num_files for usage in everyone), len(everyone),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=200, help="architectures, half of them searched")
    options = parser.parse_args()
    mark = f"{os.getpid()}-{time.time_ns()}"
    os.environ[MARK] = mark
    keep_freed_memory()
    samples: list[tuple[float, ...]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        config = load_config("tiny", [f"output={temporary}/collection", *SETTINGS])
        run = open_run(config)
        with claimed(run, "collection"):
            claim_collection(run.folder, config)
            tracking = CollectionTracking(run.folder, config.tracking_uri, config)
            with tracking.sender() as sender, ray_session(config.ray):

                def on_record(record: Record) -> None:
                    samples.append(sample(mark))
                    sender.add(record)
                    if len(samples) % 10 == 0:
                        print(len(samples), dict(zip(QUANTITIES, samples[-1], strict=True)), flush=True)

                searched = options.num // 2
                records = collect(run, num_searched=searched, num_random=options.num - searched, on_record=on_record)
                all_sent = sender.finish(lambda: tracking.end(records))
    seconds = time.perf_counter() - start
    time.sleep(5)
    left = our_processes(mark)
    folders = [path.name for path in Path("/tmp").glob(f"nas-ray-{os.getpid()}-*")]
    table = np.array(samples)[len(samples) // 5 :]
    growth = np.polyfit(np.arange(len(table)), table, 1)[0]
    quarter = max(1, len(table) // 4)
    result = {
        "num_architectures": len(records),
        "num_records_in_mlflow": len(records) if all_sent else None,
        "seconds": round(seconds, 1),
        "quantities": {
            name: {
                "median_of_first_quarter": float(np.median(table[:quarter, i])),
                "median_of_last_quarter": float(np.median(table[-quarter:, i])),
                "growth_per_architecture": round(float(growth[i]), 4),
            }
            for i, name in enumerate(QUANTITIES)
        },
        "processes_left": len(left),
        "folders_left": len(folders),
    }
    rows = [
        [name, *(f"{value:.4g}" for value in numbers.values())] for name, numbers in result["quantities"].items()
    ]  # fmt: skip
    print_table(
        f"{len(records)} architectures, {seconds:.0f} s; left: {len(left)} processes, {len(folders)} folders",
        ["", "first quarter", "last quarter", "growth each"], rows,
    )  # fmt: skip
    print(write_result("soak", result, seeds=[config.seed], num_threads=1))


if __name__ == "__main__":
    main()
