"""A computation of a prior on a GPU, launched as a whole.

Used wherever a prior runs in every step: by live features of a part search and by the distilled steps of a training. A
part of MIRNet is some 600 launches, which keep the processor busy longer than the GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP_RUNS = 2  # libraries choose and allocate in the first


class Recorded:
    """`compute` without gradients; on a GPU recorded as a CUDA graph for every shape, and replayed.

    Args:
        compute: of one tensor; does the same for all tensors of one shape, and reads nothing back from the device.
    """

    def __init__(self, compute: Callable[[Tensor], list[Tensor]]) -> None:
        self._compute = compute
        self._recordings: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, list[Tensor]]] = {}

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Return what `compute` returns for `x`."""
        with torch.no_grad():
            if not x.is_cuda:
                return self._compute(x)
            if x.shape not in self._recordings:
                self._recordings[x.shape] = self._record(x)
            graph, own_x, own_outputs = self._recordings[x.shape]
            own_x.copy_(x)
            graph.replay()
            return [output.clone() for output in own_outputs]  # the next replay writes into its own

    def _record(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, list[Tensor]]:
        own_x = x.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                self._compute(own_x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may talk to the device
            own_outputs = self._compute(own_x)
        return graph, own_x, own_outputs
