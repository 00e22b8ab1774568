"""The pretrained denoiser in three parts: shipped ones by name, published MIRNet checkpoints by file.

Called wherever a prior is needed. Loading is weights-only: safetensors, or `torch.load` without unknown classes.
"""

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from pipeline.checkpoint import load_checkpoint, load_weights, save_weights
from pipeline.priors.base import NUM_PARTS, Prior
from pipeline.priors.mirnet import MIRNet

__all__ = ["NUM_PARTS", "MIRNet", "Prior", "list_priors", "load_prior", "save_prior"]


def list_priors() -> list[str]:
    """Return the names of the shipped priors."""
    folder = resources.files("pipeline") / "priors" / "weights"
    return sorted(e.name.removesuffix(".safetensors") for e in folder.iterdir() if e.name.endswith(".safetensors"))


def load_prior(weights: str | Path, *, device: torch.device | str = "cpu") -> Prior:
    """Load a MIRNet; its size is read off the tensors.

    Args:
        weights: name of a shipped prior, or a file: `.safetensors`, or a checkpoint with the published names, bare or
            under `state_dict` or `params`, with or without a leading `module.`.
        device: where to put it.

    Returns:
        The prior in evaluation mode, channels last, without gradients.

    Raises:
        FileNotFoundError: neither a shipped name nor a file.
        ValueError: unreadable file, or weights of another network; the message names file and keys.
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
    prior = _build_mirnet(tensors, str(weights))
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
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {path} holds no state_dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _build_mirnet(tensors: dict[str, Tensor], source: str) -> MIRNet:
    if "conv_in.weight" not in tensors or tensors["conv_in.weight"].dim() != 4:
        raise ValueError(f"{source} is no MIRNet: `conv_in.weight` is missing; its keys begin with {list(tensors)[:3]}")
    num_blocks = 1 + max(
        (int(name.split(".")[3]) for name in tensors if name.startswith("body.0.body.") and ".blocks." in name),
        default=0,
    )
    prior = MIRNet(num_channels=tensors["conv_in.weight"].shape[0], num_blocks=num_blocks)
    own = prior.state_dict()
    wrong = [n for n, t in tensors.items() if n in own and t.shape != own[n].shape]
    first_name: dict[int, str] = {}  # shared tensors may be stored under any one of their names
    given = {own[name].data_ptr() for name in tensors if name in own}
    for name, tensor in own.items():
        first_name.setdefault(tensor.data_ptr(), name)
    buffers = {name for name, _ in prior.named_buffers()}
    missing = [n for p, n in first_name.items() if p not in given and n not in buffers]
    unknown = [name for name in tensors if name not in own]
    if wrong or missing or unknown:
        raise ValueError(
            f"{source} is no MIRNet of {prior.num_channels} channels: missing {missing[:3]}, unknown {unknown[:3]}, "
            f"of another shape {wrong[:3]}"
        )
    prior.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    return prior
