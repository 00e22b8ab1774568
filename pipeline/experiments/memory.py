"""How much memory a training step keeps for its backward pass, the same number on every device.

Called by the experiments and by `benchmarks/estimator_memory.py`.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> tuple[Tensor, int]:
    """Run `forward` and count what autograd keeps: the tensors' storages, each once.

    Args:
        forward: returns the loss.
        parameters: left out, as they take memory without a step too.

    Returns:
        The loss, and the bytes that its graph holds.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    return loss, sum(kept.values())  # while the graph still holds them, so that no address was used twice
