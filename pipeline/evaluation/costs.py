"""What a network costs on one image: parameters, MACs and peak memory.

Called by `pipeline.evaluation.models`.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from search_space import network_macs, num_parameters

IMAGE_SIZE = 256  # height and width of the image that costs are for, as in the paper's tables
_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of one model; None where they cannot be counted.

    Attributes:
        num_parameters: learned numbers.
        macs: multiply-adds on one image of `IMAGE_SIZE`.
        peak_memory_mb: weights, image and feature maps that are alive at the same time, on such an image, in 1e6 bytes.
            Counted from the tensors, so that it is the same on every device; workspaces inside kernels are left out.
    """

    num_parameters: int | None
    macs: int | None
    peak_memory_mb: float | None


def network_costs(network: nn.Module, *, device: torch.device | str) -> Costs:
    """Count the costs of a network that lies on `device`; it is not changed."""
    noisy = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device).contiguous(memory_format=torch.channels_last)
    return Costs(
        num_parameters=num_parameters(network),
        macs=network_macs(network, height=IMAGE_SIZE, width=IMAGE_SIZE),
        peak_memory_mb=peak_bytes(network, noisy) / _MB,
    )


def peak_bytes(network: nn.Module, noisy: Tensor) -> int:
    """Return the most bytes of weights, input and results of operators that live at once in `network(noisy)`."""
    counter = _LiveBytes()
    for tensor in (*network.parameters(), *network.buffers(), noisy):
        counter.add(tensor)
    with torch.no_grad(), counter:
        network(noisy)
    return counter.peak


class _LiveBytes(TorchDispatchMode):
    """Follow the storages that operators make, from their first use until Python and torch let go of them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        num_bytes = storage.nbytes()
        self._live += num_bytes
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._remove, num_bytes)

    def _remove(self, num_bytes: int) -> None:
        self._live -= num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result
