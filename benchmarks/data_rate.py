"""Patches per second that the loaders give, against what a training step consumes on this device.

    python benchmarks/data_rate.py [SET...]

Sets are those of `data.training` (docs/data.md); by default the photographs of scikit-image, written to a folder of
PNG files first. Three sides in one run: images held in memory, decoded images mapped from disk (`data.cache`), and a
training step of the plain U-Net, which is as light as what `quick` searches for, and of the shipped prior, which is
lighter than what the paper's presets train.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import print_table, write_result
from torch import nn
from torch.nn import functional

from latency import keep_freed_memory
from pipeline.baselines import build_baseline
from pipeline.config import load_config
from pipeline.data.images import TRAINING_PHOTOGRAPHS, photographs, write_image
from pipeline.data.loading import load_images
from pipeline.data.patches import PatchSource
from pipeline.priors import load_prior


def rate(draw: Callable[[], object], batch_size: int, seconds: float) -> float:
    """Return patches per second of `draw`, after one warm-up."""
    draw()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        draw()
        count += batch_size
    return count / elapsed


def training_step(network: nn.Module, batch_size: int, size: int) -> Callable[[], None]:
    network.train().requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters())
    noisy = torch.rand(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        functional.l1_loss(network(noisy), noisy).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as work:
        sets = options.sets
        if not sets:
            for name, image in photographs(TRAINING_PHOTOGRAPHS).items():
                (Path(work) / "photographs").mkdir(exist_ok=True)
                write_image(Path(work) / "photographs" / f"{name}.png", image)
            sets = [str(Path(work) / "photographs")]
        held = {
            "in memory": list(load_images(sets).values()),
            "mapped from disk": list(load_images(sets, cache=Path(work) / "cache").values()),
        }
        for preset, network in (("quick", build_baseline("plain_unet")), ("paper-synthetic", load_prior("mirnet16"))):
            retrain = load_config(preset, []).retrain
            size, batch_size = retrain.patch_size, retrain.batch_size
            found = {}
            for name, images in held.items():
                for model in ("awgn", "mixed"):
                    source = PatchSource(images, patch_size=size, noise_model=model, sigma_range=(0.0, 0.2))
                    generator = torch.Generator().manual_seed(options.seed)
                    draw = partial(source.sample, batch_size, generator)
                    found[f"{name}, {model}"] = rate(draw, batch_size, options.seconds)
            small = min(batch_size, 8)  # the prior's step at 128x128 takes seconds
            needed = rate(training_step(network, small, size), small, options.seconds)
            results[preset] = {"patch_size": size, "patches_per_second": found, "consumed_per_second": needed}
            rows += [[preset, f"{size}x{size}", name, f"{value:.0f}", f"{needed:.0f}", f"{value / needed:.1f}"]
                     for name, value in found.items()]  # fmt: skip
    print_table("patches per second",
                ["preset", "patch", "images, noise", "given", "a step consumes", "ratio"], rows)  # fmt: skip
    result = {"sets": [Path(name).name for name in options.sets] or ["photographs"], "presets": results}
    print(write_result("data_rate", result, seeds=[options.seed], num_threads=options.threads))


if __name__ == "__main__":
    main()
