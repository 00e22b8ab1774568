"""The pretrained denoiser in three parts: shipped ones by name, published MIRNet and NAFNet checkpoints by file.

Called wherever a prior is needed. Loading is weights-only: safetensors, or `torch.load` without unknown classes.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint import build_within, fill_by_name, load_checkpoint, load_weights, save_weights
from pipeline.priors.base import NUM_PARTS, Prior
from pipeline.priors.mirnet import MIRNet, mirnet_sizes
from pipeline.priors.nafnet import NAFNet, nafnet_sizes
from pipeline.priors.recorded import Recorded

__all__ = ["NUM_PARTS", "MIRNet", "NAFNet", "Prior", "Recorded", "list_priors", "load_prior", "save_prior"]


def list_priors() -> list[str]:
    """Return the names of the shipped priors."""
    folder = resources.files("pipeline") / "priors" / "weights"
    return sorted(e.name.removesuffix(".safetensors") for e in folder.iterdir() if e.name.endswith(".safetensors"))


def load_prior(weights: str | Path, *, device: torch.device | str = "cpu") -> Prior:
    """Load a MIRNet or a NAFNet; which one it is, and its sizes, are read off the tensors.

    Args:
        weights: name of a shipped prior, or a file: `.safetensors`, or a checkpoint with the published names, bare or
            under `state_dict` or `params`, with or without a leading `module.`.
        device: where to put it.

    Returns:
        The prior in evaluation mode, channels last, without gradients.

    Raises:
        FileNotFoundError: neither a shipped name nor a file.
        ValueError: unreadable file, or weights of another network; the message names the file and what is wrong.
    """
    if str(weights) in list_priors():
        tensors = load_weights(Path(str(resources.files("pipeline") / "priors" / "weights" / f"{weights}.safetensors")))
    elif Path(weights).suffix == ".safetensors":
        tensors = load_weights(weights)
    elif Path(weights).is_file():
        tensors = _published_tensors(Path(weights))
    else:
        raise FileNotFoundError(
            f"prior {str(weights)!r} is neither a file nor a shipped prior; shipped are {', '.join(list_priors())}"
        )
    prior = _build(tensors, str(weights))
    return prior.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def save_prior(prior: Prior, path: Path | str, *, dtype: torch.dtype = torch.float16) -> None:
    """Save a prior as safetensors; shared tensors are stored once.

    Half precision costs less than 0.001 dB (see the card of the shipped prior) and half the space.
    """
    buffers = {name for name, _ in prior.named_buffers()}
    tensors: dict[str, Tensor] = {}
    converted: dict[int, Tensor] = {}
    for name, tensor in prior.state_dict().items():
        if name not in buffers:  # the blur filters are constants
            tensors[name] = converted.setdefault(tensor.data_ptr(), tensor.to(dtype))
    save_weights(path, tensors)


def _published_tensors(path: Path) -> dict[str, Tensor]:
    state = load_checkpoint(path)
    for key in ("state_dict", "params", "weights"):
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise ValueError(f"checkpoint {path} holds no state_dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _build(tensors: dict[str, Tensor], source: str) -> MIRNet | NAFNet:
    """Build the network that `tensors` belong to, told by its first convolution, and fill it."""
    prior: MIRNet | NAFNet
    if _is_kernel(tensors, "conv_in.weight"):
        prior = build_within(lambda: MIRNet(**mirnet_sizes(tensors)), tensors, f"{source} is no MIRNet")
    elif _is_kernel(tensors, "intro.weight"):
        sizes: dict[str, Any] = nafnet_sizes(tensors)
        prior = build_within(lambda: NAFNet(**sizes), tensors, f"{source} is no NAFNet")
    else:
        raise ValueError(
            f"{source} is no MIRNet and no NAFNet: neither `conv_in.weight` nor `intro.weight` is a kernel in it; "
            f"its keys begin with {list(tensors)[:3]}"
        )
    constants = {name for name, _ in prior.named_buffers()}
    fill_by_name(
        prior, tensors, f"{source} is no {type(prior).__name__} of {prior.num_channels} channels", optional=constants
    )
    return prior


def _is_kernel(tensors: dict[str, Tensor], name: str) -> bool:
    return name in tensors and tensors[name].dim() == 4
