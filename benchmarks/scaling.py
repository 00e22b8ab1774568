"""What 1,000 architectures on 100 GPUs would cost: measured pieces, stated assumptions, a small simulation.

    python benchmarks/scaling.py

Measured here: bytes of what travels, multiply-adds of a search step, tracking calls and seconds of an architecture in
SQLite, Ray's time per task and per actor, Tune's time per trial. Assumed, because nobody lends us 100 GPUs: `ASSUMED`.
`docs/scaling.md` tells what follows.
"""

import argparse
import heapq
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_result
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cluster import ray_session
from pipeline.collection_tracking import CollectionTracking
from pipeline.config import Config, load_config
from pipeline.data.part_data import patch_set_bytes
from pipeline.priors import NUM_PARTS, MIRNet
from pipeline.records import Record, cell_rows, write_record
from pipeline.settings import RayConfig
from search_space import PartSupernet, SearchSpace, genotype_macs, network_macs, sample_genotype

ASSUMED = {
    "num_gpus": 100,
    "gpus_per_node": 4,
    "num_architectures": 1000,
    "sustained_tflops": 15.0,  # of one GPU in such a step; the largest uncertainty, so three values are tried
    "least_seconds_per_step": 0.03,  # hundreds of small kernels, forward and backward; counts at the collection's size
    "network_gbit_per_second": 10.0,  # of the head and of every node
    "image_megabytes": 1.0,  # decoded, mean over the training images of the paper's synthetic mixture
    "spread": 0.1,  # standard deviation of a part search's time, as a share
}
SCALES = {"paper": ("paper-synthetic", 64), "collect": ("collect", 16)}


def make_record(space: SearchSpace, index: int) -> Record:
    """Return a record as large as a collection's."""
    genotype = sample_genotype(space, generator=torch.Generator().manual_seed(index))
    probabilities = [
        {"alpha": _rows(space, len(space.candidate_ops)), "beta": _rows(space, 3), "gamma": _rows(space, 5),
         "delta": _rows(space, space.num_layers)}
    ] * NUM_PARTS  # fmt: skip
    macs = genotype_macs(genotype, height=64, width=64)
    return {
        "key": f"searched-{index:05d}", "origin": "searched", "index": index, "seed": index,
        "genotype_id": genotype.genotype_id, "genotype": genotype.to_json(), "varied": '{"search.temperature": 1.0}',
        "complexity_weight": 0.0, "cost": "latency", "weights": "warm", "candidate_ops": list(space.candidate_ops),
        "macs": sum(macs), "num_parameters": 10_000, "predicted_ms": 5.0, "image_size": 64, "proxy_psnr_db": 29.0,
        "own_psnr_db": 29.0, "search_seconds": 10.0, "score_seconds": 1.0, "cpu_seconds": 30.0,
        **{f"{name}_part{part}": float(part) for name in ("macs", "num_parameters", "predicted_ms", "l_dp")
           for part in range(NUM_PARTS)},
        "cells": cell_rows(genotype, space, probabilities, size=64), "finished_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


def _rows(space: SearchSpace, num_options: int) -> list[list[float]]:
    return torch.full((len(space.cells), num_options), 1 / num_options).tolist()


class CountingClient:
    """Counts the calls of an MLflow client."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self.client, name)


def measure_tracking(config: Config, space: SearchSpace, num: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        tracking = CollectionTracking(Path(folder), f"sqlite:///{folder}/mlflow.db", config)
        tracker = tracking.reach()
        tracker._client = client = CountingClient(tracker._client)
        records = [make_record(space, index) for index in range(num + 2)]
        tracking.send(records[:2])  # the first ones import what draws
        client.calls.clear()
        seconds = []
        for record in records[2:]:
            start = time.perf_counter()
            tracking.send([record])
            seconds.append(time.perf_counter() - start)
        path = write_record(Path(folder), records[-1])
        return {
            "calls_per_architecture": sum(client.calls.values()) / num,
            "calls_by_name": {name: count / num for name, count in client.calls.items()},
            "seconds_per_architecture": statistics.median(seconds),
            "record_bytes": path.stat().st_size,
        }


def measure_ray(num_tasks: int, num_trials: int) -> dict[str, float]:
    import ray
    from ray import tune

    @ray.remote(num_cpus=0.1)
    def nothing(x: int) -> int:
        return x

    @ray.remote(num_cpus=0)
    class Nobody:
        def nothing(self) -> None:
            pass

    class Trial(tune.Trainable):
        def step(self) -> dict[str, Any]:
            return {"done": True, "value": 0.0}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    def seconds(work: Any) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    found = {}
    with ray_session(RayConfig(object_store_mb=200)), tempfile.TemporaryDirectory() as folder:
        ray.get([nothing.remote(i) for i in range(20)])
        found["seconds_per_task"] = seconds(lambda: ray.get([nothing.remote(i) for i in range(num_tasks)])) / num_tasks
        actors = []
        found["seconds_per_actor"] = seconds(
            lambda: [actors.append(a := Nobody.remote()) or ray.get(a.nothing.remote()) for _ in range(3)]
        ) / 3  # fmt: skip
        found["seconds_per_actor_call"] = seconds(
            lambda: [ray.get(actors[0].nothing.remote()) for _ in range(num_tasks)]
        ) / num_tasks  # fmt: skip

        def fit(num: int) -> None:
            tune.Tuner(
                tune.with_resources(Trial, {"CPU": 1}),
                tune_config=tune.TuneConfig(num_samples=num, reuse_actors=True),
                run_config=tune.RunConfig(storage_path=folder, name=f"trials{num}", verbose=0),
            ).fit()

        fit(2)  # the first one imports and starts processes
        few = seconds(lambda: fit(4))
        found["seconds_per_trial"] = (seconds(lambda: fit(4 + num_trials)) - few) / num_trials
        assert found["seconds_per_trial"] > 0, "too few trials to see what one takes; give more `--trials`"
    return found


def measure_work(config: Config, num_channels: int, num_samples: int) -> dict[str, float]:
    """Bytes of supernets and patches, and multiply-adds of one step of a part at the preset's sizes."""
    space, search = SearchSpace(num_channels=num_channels), config.search
    size, generator = 32, torch.Generator().manual_seed(0)
    parameters, macs = 0, []
    for part_index in range(NUM_PARTS):
        supernet = PartSupernet(part_index, space, generator=generator)
        parameters += sum(p.numel() for p in supernet.parameters())
        x = torch.zeros(1, 3 if part_index == 0 else num_channels, size, size)
        for _ in range(num_samples):
            choices = supernet.arch.sample(
                estimator="sampled", temperature=1.0, generator=generator, with_gradient=False
            )
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                supernet(x, choices)
            macs.append(counter.get_total_flops() / 2)
    area = (search.patch_size / size) ** 2
    prior = 0.0
    if search.prior_features == "live":  # part k runs k + 1 of three parts of the prior: two on average
        with torch.device("meta"):
            prior = network_macs(MIRNet(num_channels=num_channels), height=search.patch_size, width=search.patch_size)
            prior *= 2 / 3
    supernet_macs = statistics.mean(macs) * area
    steps = search.num_epochs * search.steps_per_epoch
    return {
        "supernet_bytes": 4 * parameters,
        "patch_set_bytes": patch_set_bytes(search.num_patches, search.patch_size, num_channels),
        "supernet_gmacs_per_patch": supernet_macs / 1e9,
        "prior_gmacs_per_patch": prior / 1e9,
        # Forward and backward are three forwards; the prior only goes forward. A weight step everywhere, an
        # architecture step beside it after the warm-up.
        "tera_operations_per_step": 2 * search.batch_size * (3 * supernet_macs + prior) / 1e12,
        "steps_per_part": steps * (1 + search.arch_samples * (1 - search.warmup_share)),
    }


def simulate(
    *, num_architectures: int, concurrency: int, search_seconds: float, driver_seconds: float, tracking_seconds: float,
    spread: float, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Let architectures pass through `concurrency` places, a driver and a tracker that each serve one at a time.

    An architecture needs the driver to begin, three part searches side by side (the slowest counts), and the tracker
    in the background. A place waits for the driver, not for the tracker.
    """
    draw = random.Random(seed)
    places = [0.0] * concurrency
    driver_free = tracker_free = busy = last = 0.0
    finished: list[float] = []
    for _ in range(num_architectures):
        begin = max(heapq.heappop(places), driver_free)
        driver_free = begin + driver_seconds
        seconds = max(search_seconds * max(0.1, draw.gauss(1, spread)) for _ in range(NUM_PARTS))
        busy += seconds
        end = driver_free + seconds
        heapq.heappush(places, end)
        finished.append(end)
    for end in sorted(finished):
        tracker_free = max(tracker_free, end) + tracking_seconds
        last = max(last, end)
    return {
        "hours": max(last, tracker_free) / 3600,
        "place_utilisation": busy / (concurrency * last),
        "driver_utilisation": num_architectures * driver_seconds / last,
        "tracker_utilisation": num_architectures * tracking_seconds / tracker_free if tracker_free else 0.0,
        "tracker_lag_seconds": tracker_free - last,
    }


def project(scale: str, config: Config, pieces: dict[str, Any], tflops: float) -> dict[str, Any]:
    """Simulate one scale at one speed of the GPUs."""
    work, tracking, ray = pieces["work"][scale], pieces["tracking"], pieces["ray"]
    num, concurrency = ASSUMED["num_architectures"], int(ASSUMED["num_gpus"] // NUM_PARTS)
    step_seconds = max(work["tera_operations_per_step"] / tflops, ASSUMED["least_seconds_per_step"])
    seconds = work["steps_per_part"] * step_seconds
    is_live = config.search.prior_features == "live"
    shared = config.search.num_patches * ASSUMED["image_megabytes"] * 1e6 if is_live else work["patch_set_bytes"]
    shared += work["supernet_bytes"] if scale == "collect" else 0
    num_nodes = ASSUMED["num_gpus"] / ASSUMED["gpus_per_node"]
    result = simulate(
        num_architectures=int(num), concurrency=concurrency, search_seconds=seconds,
        driver_seconds=ray["seconds_per_trial"], tracking_seconds=tracking["seconds_per_architecture"],
        spread=ASSUMED["spread"],
    )  # fmt: skip
    per_second = num / (result["hours"] * 3600)
    # What a search hands back: three derived parts, never larger than their supernets.
    returned = num * work["supernet_bytes"] + num * tracking["record_bytes"]
    # After every epoch of a part its weights and two moments of Adam travel to the disk of the command's own machine.
    checkpoints = num * config.search.num_epochs * 3 * work["supernet_bytes"] * (1 - 1 / num_nodes)
    return {
        "scale": scale,
        "sustained_tflops": tflops,
        "part_seconds": seconds,
        "gpu_hours": num * NUM_PARTS * seconds / 3600,
        **result,
        "shared_bytes_per_node": shared,
        "seconds_to_share_from_one_head": shared * num_nodes * 8 / (ASSUMED["network_gbit_per_second"] * 1e9),
        "returned_bytes_per_second": returned / (result["hours"] * 3600),
        "checkpoint_bytes_per_second": checkpoints / (result["hours"] * 3600),
        "tracking_calls_per_second": per_second * tracking["calls_per_architecture"],
        # The place, driver or tracker is full when a search is as short as this; the first to fill counts.
        "driver_full_below_part_seconds": concurrency * ray["seconds_per_trial"],
        "tracker_full_below_part_seconds": concurrency * tracking["seconds_per_architecture"],
    }


def check_simulation() -> None:
    """Compare the simulation with what arithmetic says where it can."""
    plain = simulate(num_architectures=100, concurrency=10, search_seconds=36, driver_seconds=0, tracking_seconds=0,
                     spread=0)  # fmt: skip
    assert abs(plain["hours"] - 0.1) < 1e-9 and abs(plain["place_utilisation"] - 1) < 1e-9
    slow = simulate(num_architectures=100, concurrency=10, search_seconds=1, driver_seconds=36, tracking_seconds=0,
                    spread=0)  # fmt: skip
    assert abs(slow["hours"] - (3600 + 1) / 3600) < 1e-9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20, help="architectures sent to MLflow")
    parser.add_argument("--tasks", type=int, default=500, help="tasks and calls sent through Ray")
    parser.add_argument("--trials", type=int, default=60, help="trials run by Tune")
    parser.add_argument("--samples", type=int, default=8, help="architectures sampled to count multiply-adds")
    options = parser.parse_args()
    check_simulation()
    torch.set_num_threads(1)
    configs = {scale: load_config(preset) for scale, (preset, _) in SCALES.items()}
    pieces: dict[str, Any] = {
        "work": {
            scale: measure_work(configs[scale], num_channels, options.samples)
            for scale, (_, num_channels) in SCALES.items()
        },
        "tracking": measure_tracking(configs["collect"], SearchSpace(num_channels=16), options.records),
        "ray": measure_ray(options.tasks, options.trials),
    }
    rates = (ASSUMED["sustained_tflops"] / 3, ASSUMED["sustained_tflops"], ASSUMED["sustained_tflops"] * 3)
    projections = [project(scale, configs[scale], pieces, rate) for scale in SCALES for rate in rates]
    print(json.dumps(pieces, indent=2))
    shown = {"part_seconds": "s/part", "hours": "hours", "gpu_hours": "GPU h", "place_utilisation": "GPUs busy",
             "driver_utilisation": "driver", "tracker_utilisation": "tracker", "tracking_calls_per_second": "calls/s",
             "seconds_to_share_from_one_head": "share, s"}  # fmt: skip
    rows = [[f"{p['scale']} {p['sustained_tflops']:g}", *(f"{p[name]:.3g}" for name in shown)] for p in projections]
    print_table("1,000 architectures on 100 GPUs", ["scale, TFLOP/s", *shown.values()], rows)
    result = {"assumed": ASSUMED, "measured": pieces, "projected": projections}
    print(write_result("scaling", result, seeds=[0], num_threads=1))


if __name__ == "__main__":
    main()
