"""Three part searches: one after the other, as three bare processes, as Ray actors. Same work, one thread each.

    python benchmarks/part_concurrency.py

Every way does the same three searches of the quick preset, shortened to a few epochs, from the same cached features.
Starting processes, importing torch and starting Ray are timed apart: the clock runs from the moment when all workers
are ready until the last result is back.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import torch
from common import print_table, write_result

from latency import keep_freed_memory
from pipeline.cluster import ray_session
from pipeline.config import Config, load_config
from pipeline.data.images import TRAINING_PHOTOGRAPHS, photographs
from pipeline.data.part_data import CachedFeatures
from pipeline.part_actors import PartActors, part_jobs
from pipeline.part_search import search_part
from pipeline.priors import NUM_PARTS, load_prior
from pipeline.search_inputs import SearchInputs, cost_models, part_targets, prepare_inputs, space_of
from pipeline.time_slice import lengthen_time_slice


def search_one(part_index: int, config: Config, inputs: SearchInputs) -> str:
    """Search one part as the actors do; return what identifies the result."""
    keep_freed_memory()
    lengthen_time_slice()
    torch.set_num_threads(config.search.threads_per_part)
    space = space_of(config, 16)
    costs = cost_models(config, space, None)
    device = torch.device("cpu")
    result = search_part(
        part_index, space, CachedFeatures(inputs.patches, part_index, device), costs[part_index], config.search,
        target_cost=part_targets(config, space, costs)[part_index], seed=config.seed, device=device,
    )  # fmt: skip
    return repr(result.part)


def one_after_the_other(config: Config, inputs: SearchInputs) -> tuple[float, float, list[str]]:
    start = time.perf_counter()
    results = [search_one(i, config, inputs) for i in range(NUM_PARTS)]
    return 0.0, time.perf_counter() - start, results


def _process(part_index: int, config: Config, inputs: SearchInputs, barrier, queue) -> None:
    barrier.wait()
    queue.put((part_index, search_one(part_index, config, inputs)))


def bare_processes(config: Config, inputs: SearchInputs) -> tuple[float, float, list[str]]:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(NUM_PARTS + 1), context.Queue()
    start = time.perf_counter()
    processes = [context.Process(target=_process, args=(i, config, inputs, barrier, queue)) for i in range(NUM_PARTS)]
    for process in processes:
        process.start()
    barrier.wait()
    ready = time.perf_counter()
    results = dict(queue.get() for _ in processes)
    end = time.perf_counter()
    for process in processes:
        process.join()
    return ready - start, end - ready, [results[i] for i in range(NUM_PARTS)]


def ray_actors(config: Config, inputs: SearchInputs) -> tuple[float, float, list[str]]:
    import ray

    start = time.perf_counter()
    with ray_session(config.ray), tempfile.TemporaryDirectory() as folder:
        space = space_of(config, 16)
        jobs = part_jobs(config, space, cost_models(config, space, None), checkpoint_folder=Path(folder))
        actors = PartActors(config)
        shared = ray.put(inputs)
        ray.get([actor.poll.remote() for actor in actors])
        ready = time.perf_counter()
        results = ray.get([actor.run.remote(job, shared) for actor, job in zip(actors, jobs, strict=True)])
        end = time.perf_counter()
    return ready - start, end - ready, [repr(result.part) for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="rounds; the best time of each way counts")
    parser.add_argument("overrides", nargs="*", help="settings of the quick preset, such as search.batch_size=4")
    options = parser.parse_args()
    keep_freed_memory()
    config = load_config("quick", [f"seed={options.seed}", f"search.num_epochs={options.epochs}", "search.cost=macs",
                                   "search.target_ms=null", *options.overrides])  # fmt: skip
    torch.set_num_threads(2)
    images = photographs(TRAINING_PHOTOGRAPHS)
    inputs = prepare_inputs(config, load_prior(config.prior.weights), images)
    ways = {"one after the other": one_after_the_other, "bare processes": bare_processes, "ray actors": ray_actors}
    startup: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    outcomes: dict[str, list[str]] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            started, took, results = way(config, inputs)
            startup[name].append(started)
            seconds[name].append(took)
            outcomes.setdefault(name, results)
    assert len({tuple(results) for results in outcomes.values()}) == 1, "the three ways must find the same parts"
    best = {name: min(values) for name, values in seconds.items()}
    result = {
        "epochs": options.epochs,
        "overrides": options.overrides,
        "seconds": seconds,
        "startup_seconds": startup,
        "speedup_over_sequential": best["one after the other"] / best["ray actors"],
        "overhead_over_processes": best["ray actors"] / best["bare processes"] - 1,
    }
    rows = [[name, f"{min(startup[name]):.1f}", f"{best[name]:.1f}", f"{best['one after the other'] / best[name]:.2f}"]
            for name in ways]  # fmt: skip
    print_table(f"three part searches, {options.epochs} epochs, one thread each",
                ["way", "start-up, s", "work, s", "speed-up"], rows)  # fmt: skip
    print(f"Ray over bare processes: {100 * result['overhead_over_processes']:+.1f} %")
    print(write_result("part_concurrency", result, seeds=[options.seed], num_threads=1))


if __name__ == "__main__":
    main()
