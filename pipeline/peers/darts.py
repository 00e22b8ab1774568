"""First-order DARTS in plain torch: the search that both peers share.

Called by comparisons of architecture searches.
Liu et al., "DARTS: Differentiable Architecture Search", arXiv 1806.09055, without the second-order term.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.data.part_data import Split
from pipeline.data.patches import Patches

GenotypeT = TypeVar("GenotypeT")


@dataclass(frozen=True, kw_only=True)
class DartsSettings:
    """Numbers of one search; the defaults are those of CLEARER's release but for the batch.

    Attributes:
        batch_size: patches per step.
        warmup_share: share of the search that trains weights only.
        learning_rate: of the weights at the start (SGD, cosine).
        final_learning_rate: of the weights at the end.
        momentum: of the weights.
        weight_decay: of the weights.
        max_gradient_norm: the weights' gradient is cut to this.
        arch_travel: sum of the learning rates of all architecture steps (Adam). It bounds how far a logit can move, so
            a short search can decide as much as a long one: its steps are larger. CLEARER: 3e-4 x 190 epochs x 50.
        arch_weight_decay: of the architecture parameters.

    Raises:
        ValueError: a number is impossible.
    """

    batch_size: int = 8
    warmup_share: float = 0.05
    learning_rate: float = 0.025
    final_learning_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    max_gradient_norm: float = 5.0
    arch_travel: float = 2.85
    arch_weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"`warmup_share` must be in [0, 1), got {self.warmup_share}")
        for name in ("learning_rate", "max_gradient_norm", "arch_travel"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")


class Supernet(nn.Module, ABC, Generic[GenotypeT]):
    """All candidates of a space in one module, weighted by the softmax of architecture parameters.

    Attributes:
        arch: the architecture parameters; everything else that is learned is a weight.
        settings: of its search, where none are given.
    """

    arch: nn.ParameterDict
    settings = DartsSettings()

    @abstractmethod
    def loss(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """Return what both steps descend, for (B, 3, H, W) patches."""

    @abstractmethod
    def derive(self) -> GenotypeT:
        """Decide every choice."""


def search_darts(
    build: Callable[[], Supernet[GenotypeT]],
    patches: Mapping[Split, Patches],
    settings: DartsSettings | None = None,
    *,
    seed: int,
    device: torch.device,
    num_batches: int,
) -> GenotypeT:
    """Alternate architecture steps on one half of the data and weight steps on the other, then derive.

    Args:
        build: makes the supernet, for example `lambda: ClearerSupernet(space)`.
        patches: of both halves, `weights` and `architecture`.
        settings: numbers of the search; the supernet's by default.
        seed: of the initial weights and of the batches.
        device: where to compute.
        num_batches: that the search draws, one per step of either kind. The warm-up is at least its share, and longer
            by the steps that make their number come out.

    Raises:
        ValueError: `num_batches` is not positive.
        FloatingPointError: the loss is not finite.
    """
    if num_batches < 1:
        raise ValueError(f"`num_batches` must be at least 1, got {num_batches}")
    torch.manual_seed(seed)  # initial weights
    supernet = build()
    supernet.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    settings = settings or supernet.settings
    steps = _Steps(supernet, patches, settings, seed)
    num_steps = math.ceil(num_batches / (2 - settings.warmup_share))  # of the weights
    num_arch_steps = num_batches - num_steps
    for step in range(num_steps):
        if step >= num_steps - num_arch_steps:
            steps.architecture_step(settings.arch_travel / num_arch_steps)
        steps.weight_step(step / num_steps)
    return supernet.derive()


class _Steps:
    """The two optimisers of a search."""

    def __init__(
        self, supernet: Supernet[Any], patches: Mapping[Split, Patches], settings: DartsSettings, seed: int
    ) -> None:
        self.supernet = supernet
        self.patches = patches
        self.settings = settings
        self.generator = torch.Generator().manual_seed(seed)
        self.arch = list(supernet.arch.parameters())
        is_arch = {id(parameter) for parameter in self.arch}
        self.weights = [parameter for parameter in supernet.parameters() if id(parameter) not in is_arch]
        self.weight_optimizer = torch.optim.SGD(
            self.weights, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.arch_optimizer = torch.optim.Adam(self.arch, betas=(0.5, 0.999), weight_decay=settings.arch_weight_decay)

    def architecture_step(self, learning_rate: float) -> None:
        """Descend the loss on a batch of D_archi."""
        self._set_gradients("architecture", self.arch)
        self.arch_optimizer.param_groups[0]["lr"] = learning_rate
        self.arch_optimizer.step()

    def weight_step(self, progress: float) -> None:
        """Descend the loss on a batch of D_w, when the share `progress` of the search is done."""
        settings = self.settings
        span = settings.learning_rate - settings.final_learning_rate
        self.weight_optimizer.param_groups[0]["lr"] = (
            settings.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2
        )
        self._set_gradients("weights", self.weights)
        torch.nn.utils.clip_grad_norm_(self.weights, settings.max_gradient_norm)
        self.weight_optimizer.step()

    def _set_gradients(self, split: Split, parameters: list[nn.Parameter]) -> None:
        """Set the gradients of `parameters` and of nothing else."""
        noisy, clean = (
            t.to(self.arch[0].device, memory_format=torch.channels_last)
            for t in self.patches[split].sample(self.settings.batch_size, self.generator)
        )
        value = self.supernet.loss(noisy, clean)
        if not value.isfinite():
            raise FloatingPointError(f"the loss became {value.item()}; lower `learning_rate`")
        for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.grad = gradient
