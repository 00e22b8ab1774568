"""How many architectures per hour does a collection make, and where does the time go?

    python benchmarks/collection_rate.py --supernets FOLDER

Collects searched architectures with the `collect` preset (the settings of `docs/preferences/`), from shared supernets
that are trained already where `--supernets` names a collection's folder, else trained first. The clock runs from the
first record to the last, so that starting Ray, pricing and training of the supernets count apart. Work is the processor
time of part searches and scoring; everything else in wall time x processors is orchestration: Ray, Tune, MLflow, and
idle processors.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from common import print_table, write_result

from latency import keep_freed_memory
from pipeline.cluster import ray_session
from pipeline.collect import claim_collection, collect
from pipeline.collection_tracking import CollectionTracking
from pipeline.config import load_config
from pipeline.records import Record
from pipeline.run import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=24, help="searched architectures")
    parser.add_argument("--seed", type=int, default=0, help="of the collection; `--supernets` must agree")
    parser.add_argument("--supernets", type=Path, help="folder of a collection with trained shared supernets")
    options = parser.parse_args()
    keep_freed_memory()
    num_processors = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        settings = [f"seed={options.seed}", f"output={temporary}/collection"]
        if options.supernets is not None:
            settings.append(f"collect.supernets={options.supernets.absolute()}")
            (Path(temporary) / "collection").mkdir()
            shutil.copy(options.supernets / "latency.parquet", f"{temporary}/collection/latency.parquet")
        config = load_config("collect", settings)
        times: list[float] = []
        start = time.perf_counter()
        run = open_run(config)
        claim_collection(run.folder, config)
        tracking = CollectionTracking(run.folder, f"sqlite:///{temporary}/mlflow.db", config)
        with tracking.sender() as sender, ray_session(config.ray):

            def on_record(record: Record) -> None:
                times.append(time.perf_counter())
                sender.add(record)

            records = collect(run, num_searched=options.num, num_random=0, on_record=on_record)
            sender.finish(lambda: tracking.end(records))
        total = time.perf_counter() - start
    # The first trials share their wall time with the start of their processes: count from the first record on.
    wall = times[-1] - times[0]
    num = len(times) - 1
    by_time = sorted(records, key=lambda record: record["finished_at"])[1:]
    work = sum(record["cpu_seconds"] for record in by_time)
    result = {
        "architectures_per_hour": 3600 * num / wall,
        "orchestration_share": max(0.0, 1 - work / (wall * num_processors)),
        "num_architectures": num,
        "num_processors": num_processors,
        "wall_seconds": wall,
        "start_and_end_seconds": total - wall,
        "cpu_seconds_per_architecture": work / num,
        "search_seconds_median": statistics.median(record["search_seconds"] for record in by_time),
        "score_seconds_median": statistics.median(record["score_seconds"] for record in by_time),
    }
    rows = [[name, f"{value:.3g}" if isinstance(value, float) else str(value)] for name, value in result.items()]
    print_table("collection at quick scale", ["", "value"], rows)
    print(write_result("collection_rate", result, seeds=[options.seed], num_threads=1))


if __name__ == "__main__":
    main()
