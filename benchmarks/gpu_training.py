"""Steps per second and memory of searching and retraining on a GPU at the paper's scale, and what fits in 24 GB.

    python benchmarks/gpu_training.py

Part searches: C = 64, 128x128, batch 16, live features of a MIRNet of published size with random weights (the work is
the same); a step is one architecture and one weight step, as after the warm-up. Retraining: L1 alone, batch 32, three
random architectures; and the first of them again with patches that cost nothing, which tells what drawing them costs.
float32 uses TF32 in convolutions, which is torch's default. Memory is the most that torch had allocated. What fits is
tried: the largest batch of a few that runs while torch may use `--memory-gb`. Every piece is written when it is done,
so that a benchmark that is killed keeps those before.
"""

import argparse
import gc
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from common import print_table, write_result
from torch import Tensor

from pipeline.config import Config, load_config
from pipeline.data.images import TRAINING_PHOTOGRAPHS, photographs
from pipeline.data.part_data import LiveFeatures
from pipeline.data.patches import PatchSource, noisy_patches
from pipeline.part_search import result_of, search_part
from pipeline.priors import MIRNet, Prior
from pipeline.search_inputs import cost_models, patch_sources
from pipeline.settings import PRECISIONS
from pipeline.training import Trainer
from search_space import ESTIMATORS, SearchSpace, build_network, sample_genotype

DEVICE = torch.device("cuda")
BATCHES = (8, 16, 24, 32, 48, 64, 96, 128)
WAYS = {"float32": ("float32", False), "bfloat16": ("bfloat16", False), "bfloat16, compiled": ("bfloat16", True)}


def search_seconds(config: Config, prior: Prior, images: list[np.ndarray], part_index: int, num_epochs: int) -> float:
    """Search one part; return the seconds per step of the last epoch."""
    space = SearchSpace(num_channels=64)
    rows: list[float] = []
    search = search_part(
        part_index, space, LiveFeatures(prior, patch_sources(config, (images, images)), part_index),
        cost_models(config, space, None)[part_index], replace(config.search, num_epochs=num_epochs), seed=config.seed,
        device=DEVICE,
    )  # fmt: skip
    result_of(search, log=lambda epoch, metrics: rows.append(metrics["seconds"]))
    return (rows[-1] - (rows[-2] if len(rows) > 1 else 0.0)) / config.search.steps_per_epoch


class FreePatches:
    """The first batch of a source again and again."""

    def __init__(self, source: PatchSource) -> None:
        self.source = source
        self.batch: tuple[Tensor, Tensor] | None = None

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `PatchSource.sample`."""
        self.batch = self.batch or self.source.sample(batch_size, generator)
        return self.batch


def retrain_seconds(
    config: Config, images: list[np.ndarray], seed: int, num_epochs: int, *, is_free: bool = False
) -> float:
    """Train a random architecture; return the seconds per step of the last epoch."""
    space = SearchSpace(num_channels=64)
    torch.manual_seed(seed)
    network = build_network(sample_genotype(space, generator=torch.Generator().manual_seed(seed)))
    source = noisy_patches(images, config.noise, patch_size=config.retrain.patch_size)
    patches: Any = FreePatches(source) if is_free else source
    trainer = Trainer(network, patches, config.retrain, prior=None, seed=seed, device=DEVICE)
    return [trainer.run_epoch()["seconds_per_step"] for _ in range(num_epochs)][-1]


def measured(work: Callable[[], float]) -> tuple[float, float]:
    """Run `work`; return what it returns and the most GB that torch had allocated."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return work(), torch.cuda.max_memory_allocated() / 1e9


def largest_batch(work: Callable[[int], float], memory_gb: float) -> int:
    """Return the largest of `BATCHES` for which `work` runs in so much memory, or 0."""
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    fits = 0
    for batch in BATCHES:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * 1e9 / total))
        try:
            work(batch)
        except torch.OutOfMemoryError:
            break
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        fits = batch
    return fits


Runs = dict[str, dict[str, list[float]]]


def rates(runs: list[tuple[float, float]]) -> dict[str, list[float]]:
    """Return what is reported of several (seconds per step, GB)."""
    return {"steps_per_second": [1 / seconds for seconds, _ in runs], "gigabytes": [gb for _, gb in runs]}


def config_of(
    seed: int, precision: str, *, batch: int, steps: int, estimator: str = "sampled", compiled: bool = False
) -> Config:
    return load_config("paper-synthetic", [
        f"seed={seed}", "search.cost=macs", "search.warmup_share=0", f"search.precision={precision}",
        f"search.estimator={estimator}", f"search.batch_size={batch}", f"search.num_patches={2 * batch * steps}",
        f"retrain.precision={precision}", f"retrain.batch_size={batch}", f"retrain.steps_per_epoch={steps}",
        f"retrain.compile={str(compiled).lower()}", "retrain.distill_share=0",
    ])  # fmt: skip


def measure_searches(prior: Prior, images: list[np.ndarray], seed: int, steps: int, warmup_epochs: int) -> Runs:
    found: Runs = {}
    for precision in PRECISIONS:
        config = config_of(seed, precision, batch=16, steps=steps)
        # cuDNN plans every shape that it meets for the first time; the first part meets them for all.
        epochs = [warmup_epochs + 1, 2, 2]
        found[precision] = rates(
            [measured(partial(search_seconds, config, prior, images, i, n)) for i, n in enumerate(epochs)]
        )
        print("search", precision, found[precision], flush=True)
    return found


def measure_estimators(prior: Prior, images: list[np.ndarray], seed: int) -> dict[str, tuple[float, float]]:
    found = {}
    for estimator in ESTIMATORS:
        config = config_of(seed, "float32", batch=2, steps=4, estimator=estimator)
        found[estimator] = measured(partial(search_seconds, config, prior, images, 1, 2))
        print("estimator", estimator, found[estimator], flush=True)
    return found


def measure_trainings(images: list[np.ndarray], seed: int, steps: int) -> Runs:
    found: Runs = {}
    for name, (precision, compiled) in WAYS.items():
        config = config_of(seed, precision, batch=32, steps=steps, compiled=compiled)
        seeds = [seed] if compiled else range(seed, seed + 3)
        found[name] = rates([measured(partial(retrain_seconds, config, images, s, 2)) for s in seeds])
        free = f"{name}, patches cost nothing"
        found[free] = rates([measured(partial(retrain_seconds, config, images, seed, 2, is_free=True))])
        print("retraining", name, found[name], found[free], flush=True)
    return found


def measure_fits(prior: Prior, images: list[np.ndarray], seed: int, memory_gb: float) -> dict[str, int]:
    found = {}
    for precision in PRECISIONS:

        def search(batch: int, precision: str = precision) -> float:
            return search_seconds(config_of(seed, precision, batch=batch, steps=4), prior, images, 1, 1)

        def retraining(batch: int, precision: str = precision) -> float:
            return retrain_seconds(config_of(seed, precision, batch=batch, steps=2), images, seed, 1)

        found[f"search, {precision}"] = largest_batch(search, memory_gb)
        found[f"retraining, {precision}"] = largest_batch(retraining, memory_gb)
        print("fits", found, flush=True)
    return found


def row(name: str, run: dict[str, list[float]]) -> list[str]:
    speeds, sizes = run["steps_per_second"], run["gigabytes"]
    return [name, " ".join(f"{s:.1f}" for s in speeds), f"{statistics.fmean(speeds):.1f}", f"{max(sizes):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warmup-epochs", type=int, default=8, help="so many times as many steps before, for part 0")
    parser.add_argument("--memory-gb", type=float, default=24.0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    prior = MIRNet().to(DEVICE, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    images = list(photographs(TRAINING_PHOTOGRAPHS).values())
    result: dict[str, Any] = {"memory_gb": options.memory_gb}

    def finish(name: str, value: Any, title: str, columns: list[str], rows: list[list[str]]) -> None:
        result[name] = value
        write_result("gpu_training", result, seeds=[options.seed], num_threads=torch.get_num_threads(), device=DEVICE)
        print_table(title, columns, rows)

    columns = ["precision", "steps/s of each", "mean", "most GB"]
    searches = measure_searches(prior, images, options.seed, options.steps, options.warmup_epochs)
    finish("search", searches, "searches of the parts: C = 64, 128x128, batch 16", columns,
           [row(name, run) for name, run in searches.items()])  # fmt: skip
    trainings = measure_trainings(images, options.seed, options.steps)
    finish("retraining", trainings, "retraining: C = 64, 128x128, batch 32", columns,
           [row(name, run) for name, run in trainings.items()])  # fmt: skip
    estimators = measure_estimators(prior, images, options.seed)
    finish("estimator_step_seconds_and_gigabytes_batch_2", estimators,
           "a step of part 1, batch 2, all eight operators", ["estimator", "s", "GB"],
           [[name, f"{s:.2f}", f"{gb:.1f}"] for name, (s, gb) in estimators.items()])  # fmt: skip
    fits = measure_fits(prior, images, options.seed, options.memory_gb)
    finish("largest_batch", fits, f"largest batch within {options.memory_gb:g} GB", ["work", "batch"],
           [[name, str(batch)] for name, batch in fits.items()])  # fmt: skip


if __name__ == "__main__":
    main()
