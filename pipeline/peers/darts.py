"""First-order DARTS in plain torch: the search that both peers share.

Called by comparisons of architecture searches.
Liu et al., "DARTS: Differentiable Architecture Search", arXiv 1806.09055, without the second-order term.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.data.part_data import Split
from pipeline.data.patches import PatchSource

Log = Callable[[int, dict[str, float]], None]
GenotypeT = TypeVar("GenotypeT")
_LOG_EVERY = 20  # steps


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
    def probabilities(self) -> dict[str, Tensor]:
        """Return the softmax of every level, over the last dimension; 0 for what does not exist."""

    @abstractmethod
    def loss(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """Return what both steps descend, for (B, 3, H, W) patches."""

    @abstractmethod
    def derive(self) -> GenotypeT:
        """Decide every choice."""

    @torch.no_grad()
    def entropy(self) -> float:
        """Return the mean entropy of all choices as a share of its maximum: 1 undecided, 0 decided."""
        shares = []
        for p in self.probabilities().values():
            rows = p.flatten(0, -2)[(p > 0).flatten(0, -2).sum(dim=-1) > 1]
            entropy = -(rows * rows.clamp_min(1e-12).log()).sum(dim=-1)
            shares.append(entropy / (rows > 0).sum(dim=-1).to(rows).log())
        return torch.cat(shares).mean().item()


@dataclass(frozen=True, kw_only=True)
class DartsResult(Generic[GenotypeT]):
    """What a search leaves.

    Attributes:
        genotype: the derived architecture.
        entropy: mean entropy of the choices as a share of its maximum; 1 is undecided.
        num_steps: weight steps done.
        seconds: wall time of the search.
    """

    genotype: GenotypeT
    entropy: float
    num_steps: int
    seconds: float


def search_darts(
    build: Callable[[], Supernet[GenotypeT]],
    sources: Mapping[Split, PatchSource],
    settings: DartsSettings | None = None,
    *,
    seed: int,
    device: torch.device,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    log: Log | None = None,
) -> DartsResult[GenotypeT]:
    """Alternate architecture steps on one half of the data and weight steps on the other, then derive.

    Args:
        build: makes the supernet, for example `lambda: ClearerSupernet(space)`.
        sources: patches of both halves, `weights` and `architecture`.
        settings: numbers of the search; the supernet's by default.
        seed: of the initial weights and of the patches.
        device: where to compute.
        max_steps: weight steps at most; equal seeds then give equal results.
        max_seconds: wall time at most; the schedules follow whichever limit is nearer.
        log: called with (step, metrics) every 20 steps and after the last one.

    Raises:
        ValueError: neither limit is given, or one is not positive.
        FloatingPointError: the loss is not finite.
    """
    if max_steps is None and max_seconds is None:
        raise ValueError("a search must be limited by `max_steps` or `max_seconds`, got neither")
    for name, limit in (("max_steps", max_steps), ("max_seconds", max_seconds)):
        if limit is not None and not limit > 0:
            raise ValueError(f"`{name}` must be positive, got {limit}")
    torch.manual_seed(seed)  # initial weights
    supernet = build()
    supernet.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    steps = _Steps(supernet, sources, settings or supernet.settings, seed)
    start, step, progress = time.perf_counter(), 0, 0.0
    advance = 1 / (max_steps or math.inf)  # of `progress` in the last step
    while progress < 1:
        steps.run(progress, advance)
        step += 1
        seconds = time.perf_counter() - start
        done = max(step / (max_steps or math.inf), seconds / (max_seconds or math.inf))
        advance, progress = done - progress, done
        if log is not None and (step % _LOG_EVERY == 0 or progress >= 1):
            log(step, steps.metrics | {"entropy": supernet.entropy()})
    return DartsResult(
        genotype=supernet.derive(),
        entropy=supernet.entropy(),
        num_steps=step,
        seconds=time.perf_counter() - start,
    )


class _Steps:
    """The two optimisers of a search, and the losses of their last steps."""

    def __init__(
        self, supernet: Supernet[Any], sources: Mapping[Split, PatchSource], settings: DartsSettings, seed: int
    ) -> None:
        self.supernet = supernet
        self.sources = sources
        self.settings = settings
        self.generator = torch.Generator().manual_seed(seed)
        self.arch = list(supernet.arch.parameters())
        is_arch = {id(parameter) for parameter in self.arch}
        self.weights = [parameter for parameter in supernet.parameters() if id(parameter) not in is_arch]
        self.weight_optimizer = torch.optim.SGD(
            self.weights, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.arch_optimizer = torch.optim.Adam(self.arch, betas=(0.5, 0.999), weight_decay=settings.arch_weight_decay)
        self.metrics: dict[str, float] = {}

    def run(self, progress: float, advance: float) -> None:
        """Do an architecture step, once the warm-up is over, and a weight step.

        Args:
            progress: share of the search that is done.
            advance: share that a step takes.
        """
        settings = self.settings
        if progress >= settings.warmup_share:
            self.metrics["arch_loss"] = self._loss("architecture", self.arch)
            self.arch_optimizer.param_groups[0]["lr"] = settings.arch_travel * advance / (1 - settings.warmup_share)
            self.arch_optimizer.step()
        span = settings.learning_rate - settings.final_learning_rate
        self.weight_optimizer.param_groups[0]["lr"] = (
            settings.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2
        )
        self.metrics["weight_loss"] = self._loss("weights", self.weights)
        torch.nn.utils.clip_grad_norm_(self.weights, settings.max_gradient_norm)
        self.weight_optimizer.step()

    def _loss(self, split: Split, parameters: list[nn.Parameter]) -> float:
        """Set the gradients of `parameters` and of nothing else."""
        noisy, clean = (
            t.to(self.arch[0].device, memory_format=torch.channels_last)
            for t in self.sources[split].sample(self.settings.batch_size, self.generator)
        )
        value = self.supernet.loss(noisy, clean)
        if not value.isfinite():
            raise FloatingPointError(f"the loss became {value.item()}; lower `learning_rate`")
        for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.grad = gradient
        return value.item()
