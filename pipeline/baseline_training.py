"""Train a baseline with the data, steps, optimiser and augmentation of a searched network, so that both compare.

Called by the command `baseline train`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from ops.files import write_atomically
from pipeline.baselines import build_baseline, list_baselines, save_baseline
from pipeline.data.distilled import training_patches
from pipeline.run import Run
from pipeline.training import Trainer, train_to_the_end

MODEL_FILE = "model.safetensors"
_TRAINING_FILE, _BASELINE_FILE = "training.pt", "baseline.json"
_SEARCHED = ("clearer", "hinas")  # need a genotype, which their own searches find


def trainable_baselines() -> list[str]:
    """Return the names of the baselines that need nothing but sizes."""
    return [name for name in list_baselines() if name not in _SEARCHED]


def parse_sizes(texts: list[str]) -> dict[str, Any]:
    """Return the keyword arguments that texts such as `num_channels=16` or `encoder_blocks=[1,1,2]` mean.

    Raises:
        ValueError: a text is no NAME=VALUE with a YAML value.
    """
    sizes = {}
    for text in texts:
        name, separator, value = text.partition("=")
        try:
            sizes[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            separator = ""
        if not separator or not name:
            raise ValueError(f"a size must look like `num_channels=16`, got {text!r}")
    return sizes


def train_baseline(run: Run, name: str, sizes: dict[str, Any], *, log: Callable[[dict[str, float], int], None]) -> Path:
    """Train a baseline from scratch on Eq. (14) without L_dp, which only networks in three parts can learn from.

    An interrupted training goes on from its last epoch; a finished one is not repeated. At the end `model.safetensors`
    holds what `evaluate` and `denoise` take.

    Args:
        run: settings, images and folder.
        name: one of `trainable_baselines`.
        sizes: keyword arguments of the network; the papers' by default.
        log: called with (metrics, epoch).

    Returns:
        The file of the weights.

    Raises:
        ValueError: unknown name or sizes, or the folder holds another baseline.
        FloatingPointError: the training diverged.
    """
    config = run.config
    if name not in trainable_baselines():
        raise ValueError(f"`NAME` of a baseline must be one of {', '.join(trainable_baselines())}, got {name!r}")
    torch.manual_seed(config.seed)
    network = build_baseline(name, **sizes)
    _claim(run.path(_BASELINE_FILE), name, network)
    device = torch.device(config.device)
    images = list(run.training_images.values())
    source = training_patches(config, images, run.prior, seed=config.seed)
    trainer = Trainer(network, source, config.retrain, prior=None, seed=config.seed, device=device)

    def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
        log({f"train/{key}": value for key, value in metrics.items()}, epoch)
        run.progress(f"train {name}", epoch, config.retrain.num_epochs)

    train_to_the_end(trainer, run.path(_TRAINING_FILE), on_epoch=on_epoch)
    save_baseline(network.eval(), run.path(MODEL_FILE))
    return run.path(MODEL_FILE)


def _claim(path: Path, name: str, network: torch.nn.Module) -> None:
    """Write down which baseline the folder is for, or check it."""
    record = json.dumps({"name": name, "sizes": network.sizes})
    if not path.exists():
        write_atomically(path, record + "\n")
    elif path.read_text(encoding="utf-8").strip() != record:
        raise ValueError(
            f"{path.parent} holds the training of {path.read_text(encoding='utf-8').strip()}, this is {record}; "
            "choose another `--output`"
        )
