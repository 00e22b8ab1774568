"""Three part searches: one after the other, as three bare processes, as Ray actors. Same work, one thread each.

    python benchmarks/part_concurrency.py

Every way does the same three searches, those of the quick preset, from the same cached features and costs, with a
checkpoint after every epoch. "One after the other" is one process as well, so that every way begins with
processes that have computed nothing. Starting processes, importing torch and starting Ray are timed apart: the clock
runs from the moment when all workers are ready until the last result is back.
"""

import argparse
import importlib
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import print_table, write_result

from latency import keep_freed_memory
from pipeline.cluster import ray_session
from pipeline.config import Config, load_config
from pipeline.data.images import TRAINING_PHOTOGRAPHS, photographs
from pipeline.data.part_data import CachedFeatures
from pipeline.part_actors import PartActors, part_jobs
from pipeline.part_search import result_of, search_part
from pipeline.priors import NUM_PARTS, load_prior
from pipeline.search import search_parts
from pipeline.search_inputs import SearchInputs, cost_models, part_budgets, prepare_inputs, search_key, space_of
from pipeline.time_slice import lengthen_time_slice
from search_space import CostModel

Job = tuple[Config, SearchInputs, list[CostModel]]


def search_here(indices: Sequence[int], job: Job) -> list[str]:
    """Search parts one after the other as the actors do; return what identifies the results."""
    keep_freed_memory()
    lengthen_time_slice()
    config, inputs, costs = job
    torch.set_num_threads(config.search.threads_per_part)
    space = space_of(config, 16)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        results = [
            result_of(
                search_part(
                    i, space, CachedFeatures(inputs.patches, i, device), costs[i], config.search,
                    budget=part_budgets(config, costs)[i], seed=config.seed, device=device,
                    checkpoint_path=Path(folder) / f"part{i}.pt", checkpoint_key=search_key(config),
                )
            )
            for i in indices
        ]  # fmt: skip
    return [repr(result.part) for result in results]


def one_after_the_other(job: Job) -> tuple[float, float, list[str]]:
    return _in_processes([range(NUM_PARTS)], job)


def bare_processes(job: Job) -> tuple[float, float, list[str]]:
    return _in_processes([[i] for i in range(NUM_PARTS)], job)


def _in_processes(shares: Sequence[Sequence[int]], job: Job) -> tuple[float, float, list[str]]:
    """Search the parts of every share in a new process, all at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(len(shares) + 1), context.Queue()
    start = time.perf_counter()
    processes = [context.Process(target=_process, args=(share, job, barrier, queue)) for share in shares]
    for process in processes:
        process.start()
    barrier.wait()
    ready = time.perf_counter()
    found = dict(queue.get() for _ in processes)
    end = time.perf_counter()
    for process in processes:
        process.join()
    return ready - start, end - ready, [part for first in sorted(found) for part in found[first]]


def _process(share: Sequence[int], job: Job, barrier, queue) -> None:
    importlib.import_module("torch._dynamo")  # the first step of an optimiser would
    barrier.wait()
    queue.put((share[0], search_here(share, job)))


def ray_actors(job: Job) -> tuple[float, float, list[str]]:
    import ray

    config, inputs, costs = job
    start = time.perf_counter()
    with ray_session(config.ray), tempfile.TemporaryDirectory() as folder:
        jobs = part_jobs(config, space_of(config, 16), costs, checkpoint_folder=Path(folder))
        actors = PartActors(config)
        shared = ray.put(inputs)
        ray.get([actor.host.remote() for actor in actors])
        ready = time.perf_counter()
        found = search_parts(jobs, shared, actors)
        end = time.perf_counter()
    return ready - start, end - ready, [repr(part) for part in found.genotype.parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2, help="rounds; the best time of each way counts")
    parser.add_argument("overrides", nargs="*", help="settings of the quick preset, such as search.num_epochs=3")
    options = parser.parse_args()
    keep_freed_memory()
    config = load_config("quick", [f"seed={options.seed}", "search.cost=macs", "search.target_ms=null",
                                   *options.overrides])  # fmt: skip
    torch.set_num_threads(2)
    images = photographs(TRAINING_PHOTOGRAPHS)
    inputs = prepare_inputs(config, load_prior(config.prior.weights), images)
    job = config, inputs, cost_models(config, space_of(config, 16), None)
    ways = {"one after the other": one_after_the_other, "bare processes": bare_processes, "ray actors": ray_actors}
    startup: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    outcomes: dict[str, list[str]] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            started, took, results = way(job)
            startup[name].append(started)
            seconds[name].append(took)
            outcomes.setdefault(name, results)
    assert len({tuple(results) for results in outcomes.values()}) == 1, "the three ways must find the same parts"
    best = {name: min(values) for name, values in seconds.items()}
    result = {
        "epochs": config.search.num_epochs,
        "overrides": options.overrides,
        "seconds": seconds,
        "startup_seconds": startup,
        "speedup_over_sequential": best["one after the other"] / best["ray actors"],
        "overhead_over_processes": best["ray actors"] / best["bare processes"] - 1,
    }
    rows = [[name, f"{min(startup[name]):.1f}", f"{best[name]:.1f}", f"{best['one after the other'] / best[name]:.2f}"]
            for name in ways]  # fmt: skip
    print_table(f"three part searches, {config.search.num_epochs} epochs, one thread each",
                ["way", "start-up, s", "work, s", "speed-up"], rows)  # fmt: skip
    print(f"Ray over bare processes: {100 * result['overhead_over_processes']:+.1f} %")
    print(write_result("part_concurrency", result, seeds=[options.seed], num_threads=1))


if __name__ == "__main__":
    main()
