"""The networks that searched ones are compared with, by name: built, saved with their sizes, loaded again.

All are trained by `pipeline.training.Trainer`, with the data, steps, optimiser and augmentation of a searched network.
Called by benchmarks, experiments and `pipeline.models`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.baselines.dncnn import DnCNN
from pipeline.baselines.plain_unet import PlainUNet
from pipeline.checkpoint import build_within, fill_by_name, load_metadata, load_weights, save_weights
from pipeline.peers import ClearerNetwork, HinasNetwork
from pipeline.priors import MIRNet, NAFNet

__all__ = [
    "DnCNN", "PlainUNet", "build_baseline", "is_baseline", "list_baselines", "load_baseline", "save_baseline",
]  # fmt: skip

_CLASSES: dict[str, Callable[..., nn.Module]] = {
    "clearer": ClearerNetwork,
    "dncnn": DnCNN,
    "hinas": HinasNetwork,
    "mirnet": MIRNet,
    "nafnet": NAFNet,
    "plain_unet": PlainUNet,
}
_METADATA_KEY = "baseline"
_MAX_SIZE, _MAX_SIZES = 4096, 4096  # in the metadata of a file: far above any network here


def list_baselines() -> list[str]:
    """Return the names that `build_baseline` knows."""
    return sorted(_CLASSES)


def build_baseline(name: str, **sizes: Any) -> nn.Module:
    """Build a network that maps (B, 3, H, W) noisy images to denoised ones, with weights from torch's random state.

    Args:
        name: one of `list_baselines`.
        sizes: keyword arguments of its class, for example `num_layers=8`; those of the papers by default. The networks
            of other searches, `clearer` and `hinas`, need a `genotype`.

    Raises:
        ValueError: unknown name, or a size that is impossible or that the network does not have.
    """
    if name not in _CLASSES:
        raise ValueError(f"`name` of a baseline must be one of {', '.join(list_baselines())}, got {name!r}")
    try:
        return _CLASSES[name](**sizes)
    except TypeError as error:
        raise ValueError(f"baseline {name} cannot be built with {sizes}: {error}") from error


def save_baseline(network: nn.Module, path: Path | str) -> None:
    """Save the weights as safetensors in full precision, with name and sizes in the metadata.

    Raises:
        ValueError: `build_baseline` does not build such networks.
    """
    names = [name for name, build in _CLASSES.items() if type(network) is build]
    if not names:
        raise ValueError(f"`network` must be one of {', '.join(list_baselines())}, got {type(network).__name__}")
    record = json.dumps({"name": names[0], "sizes": network.sizes})
    save_weights(path, network.state_dict(), metadata={_METADATA_KEY: record})


def is_baseline(path: Path | str) -> bool:
    """Tell whether `path` is a file of `save_baseline`.

    Raises:
        ValueError: a safetensors file that is damaged.
    """
    path = Path(path)
    return path.suffix == ".safetensors" and path.is_file() and _METADATA_KEY in load_metadata(path)


def load_baseline(path: Path | str) -> nn.Module:
    """Load what `save_baseline` wrote.

    Returns:
        The network in evaluation mode, channels last.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or its tensors do not belong to the network that its metadata names.
    """
    tensors = load_weights(path)
    try:
        record = json.loads(load_metadata(path)[_METADATA_KEY])
        _refuse_large(record["sizes"])
        network = build_within(
            lambda: build_baseline(record["name"], **record["sizes"]), tensors, f"no such {record['name']}"
        )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"the metadata of {path} describe no baseline: {error}") from error
    fill_by_name(network, tensors, f"the weights in {path} are not those of {record['name']} {record['sizes']}")
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def _refuse_large(sizes: Any) -> None:
    """Refuse sizes that would take long even where nothing is allocated."""
    numbers = [sizes]
    for value in numbers:  # grows while it is walked
        numbers += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        if len(numbers) > _MAX_SIZES or (isinstance(value, int) and value > _MAX_SIZE):
            raise ValueError(f"sizes must be at most {_MAX_SIZES} numbers up to {_MAX_SIZE}")
