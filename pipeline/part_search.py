"""Algorithm 1 for one part, in plain torch: no Ray, no MLflow.

Called by `pipeline.part_actors` inside Ray actors, and directly by tests and benchmarks. arXiv 2502.13359, Sections
III-B to III-D.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.candidates import find_candidate
from pipeline.checkpoint import load_checkpoint, restoring, save_checkpoint
from pipeline.data.part_data import PartData, Split
from pipeline.losses import feature_distance, is_good_step
from pipeline.precision import autocast
from pipeline.settings import SearchConfig
from pipeline.shared_supernet import load_supernet
from search_space import (
    Choices,
    CostModel,
    PartGenotype,
    PartNetwork,
    PartSupernet,
    SearchSpace,
    derive,
    inherit_weights,
    randomise_levels,
    restrict_to_budget,
)

Log = Callable[[int, dict[str, float]], None]

_DERIVE_BATCHES = 4  # of D_archi, the same for every candidate


@dataclass(frozen=True, kw_only=True)
class PartEpoch:
    """What one epoch of the search of a part tells.

    Attributes:
        epoch: counted from 1.
        metrics: its losses, costs and entropies; `seconds` since the search began.
        is_told_again: it was done before the search went on from a checkpoint.
    """

    epoch: int
    metrics: dict[str, float]
    is_told_again: bool = False


@dataclass(frozen=True, kw_only=True)
class PartSearchResult:
    """What the search of one part leaves.

    Attributes:
        part: the derived architecture.
        weights: state of the derived `PartNetwork` with the weights that the supernet had.
        probabilities: softmax of alpha, beta, gamma, delta at the end, one row per cell of the grid.
        entropies: mean entropy of every level as a share of its maximum; 1 is undecided.
        num_bad_steps: steps that were skipped because their loss or a gradient was not finite.
    """

    part: PartGenotype
    weights: dict[str, Tensor]
    probabilities: dict[str, list[list[float]]]
    entropies: dict[str, float]
    num_bad_steps: int = 0


def search_part(
    part_index: int,
    space: SearchSpace,
    data: PartData,
    costs: CostModel,
    config: SearchConfig,
    *,
    budget: float | None = None,
    random_levels: Sequence[str] = (),
    seed: int,
    device: torch.device,
    initial_weights: dict[str, Tensor] | None = None,
    checkpoint_path: Path | None = None,
    checkpoint_key: str = "",
) -> Iterator[PartEpoch | PartSearchResult]:
    """Search one part: alternate architecture and weight steps, then derive (Algorithm 1, lines 3 to 8).

    Works as it is asked for the next item; `result_of` asks for all.

    Args:
        part_index: 0, 1 or 2.
        space: the search space.
        data: inputs and the prior's features.
        costs: what the complexity regulariser counts.
        config: numbers of the search.
        budget: of this part in the unit of `costs`; only cost above it is penalised.
        random_levels: decided at random in place of searched, see `randomise_levels`; not all four, and without what
            decides anew: a budget, or candidates (`config.derive_samples`).
        seed: of initial weights, samples and batches; the part's index is mixed in.
        device: where to compute.
        initial_weights: of a trained supernet of the same part, with the same operators or more; random by default.
        checkpoint_path: written after every epoch; a search that finds one of the same `checkpoint_key` goes on there.
        checkpoint_key: identifies the settings, for example a configuration hash.

    Yields:
        Every epoch, when a search goes on also those before; then the result, as the last item.

    Raises:
        ValueError: the checkpoint was made with other settings, or `random_levels` would not be held.
        FloatingPointError: more than `max_bad_steps` steps had no finite loss, or an epoch none with one.
    """
    if random_levels and (budget is not None or config.derive_samples > 0):
        raise ValueError(
            "`random_levels` need a search without `search.target_ms` and `search.derive_samples`, which decide anew"
        )
    supernet, generator = new_supernet(part_index, space, seed)
    if initial_weights is not None:
        load_supernet(supernet, initial_weights)
    # Numbers of its own, so that a search with random levels draws the same batches as one without.
    randomise_levels(supernet.arch, random_levels, generator=torch.Generator().manual_seed(seed * 3 + part_index))
    supernet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if budget is not None:
        restrict_to_budget(supernet.arch, costs.to(device), budget)
    search = _PartSearch(supernet, data, costs.to(device), config, budget, generator)
    history: list[tuple[int, dict[str, float]]] = []
    before = 0.0
    if checkpoint_path is not None and checkpoint_path.exists():
        state = load_checkpoint(checkpoint_path, map_location=device)
        if state.get("key") != checkpoint_key:
            raise ValueError(
                f"checkpoint {checkpoint_path} belongs to run {state.get('key')}, this is {checkpoint_key}"
            )
        with restoring(checkpoint_path):
            search.load_state(state)
            history = [(int(epoch), dict(metrics)) for epoch, metrics in state["history"]]
            before = float(history[-1][1]["seconds"])
    for epoch, metrics in history:  # whoever was told may have died with it
        yield PartEpoch(epoch=epoch, metrics=metrics, is_told_again=True)
    start = time.perf_counter()
    for epoch in range(len(history), config.num_epochs):
        try:
            metrics = search.run_epoch(epoch)
        except FloatingPointError as error:
            kept = "none was kept" if checkpoint_path is None or epoch == 0 else f"{checkpoint_path}, epoch {epoch}"
            raise FloatingPointError(
                f"part {part_index}, epoch {epoch + 1}: {error}; lower `search.weight_learning_rate`; "
                f"last good checkpoint: {kept}"
            ) from None
        history.append((epoch + 1, metrics | {"seconds": before + time.perf_counter() - start}))
        if checkpoint_path is not None:
            save_checkpoint(
                checkpoint_path,
                search.state() | {"key": checkpoint_key, "history": history},
            )
        yield PartEpoch(epoch=epoch + 1, metrics=history[-1][1])
    yield search.result()


def result_of(search: Iterator[PartEpoch | PartSearchResult], *, log: Log | None = None) -> PartSearchResult:
    """Carry out what `search_part` returned; `log` is called with (epoch, metrics) of every epoch."""
    for news in search:
        if isinstance(news, PartSearchResult):
            return news
        if log is not None:
            log(news.epoch, news.metrics)
    raise AssertionError("a search ends with its result")


def new_supernet(part_index: int, space: SearchSpace, seed: int) -> tuple[PartSupernet, torch.Generator]:
    """Return the supernet that a search with `seed` begins with, and the generator of its samples and batches."""
    torch.manual_seed(seed * 3 + part_index)  # initial weights
    generator = torch.Generator().manual_seed(seed * 3 + part_index)
    return PartSupernet(part_index, space, generator=generator), generator


def sample_choices(
    supernet: PartSupernet, config: SearchConfig, *, generator: torch.Generator, with_gradient: bool
) -> Choices:
    """Sample choices with the estimator of `config`; weight steps need no gradient of the architecture."""
    return supernet.arch.sample(
        estimator=config.estimator,  # type: ignore[arg-type]
        temperature=config.temperature,
        generator=generator,
        with_gradient=with_gradient,
    )


def sampled_l_dp(
    supernet: PartSupernet,
    data: PartData,
    config: SearchConfig,
    split: Split,
    *,
    generator: torch.Generator,
    with_gradient: bool,
) -> Tensor:
    """Return L_dp on a batch of one half for sampled choices: what both steps of Algorithm 1 descend."""
    # Choices first: they are read back from the device, which the prior would keep busy.
    choices = sample_choices(supernet, config, generator=generator, with_gradient=with_gradient)
    x, target = data.sample(split, config.batch_size, generator)
    with autocast(x.device, config.precision):
        features = supernet(x, choices)
    return feature_distance(features.float(), target)


class _PartSearch:
    """The state of Algorithm 1: supernet, two optimisers, random numbers."""

    def __init__(
        self,
        supernet: PartSupernet,
        data: PartData,
        costs: CostModel,
        config: SearchConfig,
        budget: float | None,
        generator: torch.Generator,
    ) -> None:
        self.supernet = supernet
        self.data = data
        self.costs = costs
        self.config = config
        self.budget = budget
        self.generator = generator
        self.arch_parameters = [p for p in supernet.arch.parameters() if p.requires_grad]
        self.weight_parameters = supernet.weight_parameters()
        self.arch_optimizer = torch.optim.Adam(self.arch_parameters, lr=config.arch_learning_rate)
        self.weight_optimizer = torch.optim.Adam(self.weight_parameters, lr=config.weight_learning_rate, fused=True)
        self.num_bad_steps = 0

    def run_epoch(self, epoch: int) -> dict[str, float]:
        """Pass once over as many patches as D_w holds; weights only during the warm-up.

        Raises:
            FloatingPointError: too many steps were bad, or all of one kind.
        """
        config = self.config
        losses: dict[str, list[float]] = {"l_dp_weights": []}
        if epoch >= config.num_warmup_epochs:
            losses["l_dp_architecture"] = []
        for _ in range(config.steps_per_epoch):
            if "l_dp_architecture" in losses:
                losses["l_dp_architecture"] += self._counted(self.architecture_step())
            losses["l_dp_weights"] += self._counted(self.weight_step())
        if not all(losses.values()):
            raise FloatingPointError("no step had a finite loss")
        metrics = {name: sum(values) / len(values) for name, values in losses.items()}
        metrics["num_bad_steps"] = self.num_bad_steps
        with torch.no_grad():
            expected = self.costs.expected(self.supernet.arch)
        metrics["expected_cost"] = expected.total.item()
        metrics["l_comp"] = expected.regulariser.item()
        metrics |= {f"entropy_{name}": value for name, value in self.supernet.arch.entropies().items()}
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def result(self) -> PartSearchResult:
        """Derive the part, with the weights that the supernet has for it (Algorithm 1, line 8)."""
        arch = self.supernet.arch
        is_argmax = self.config.derive_samples == 0
        network = self._network(derive(arch, threshold=self.config.threshold)) if is_argmax else self._best_candidate()
        return PartSearchResult(
            part=network.part,
            weights={name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()},
            probabilities={name: values.tolist() for name, values in arch.probabilities().items()},
            entropies=arch.entropies(),
            num_bad_steps=self.num_bad_steps,
        )

    def _best_candidate(self) -> PartNetwork:
        """Return the best of `derive_samples` candidates by L_dp on D_archi with inherited weights."""
        config, arch = self.config, self.supernet.arch
        generator = torch.Generator().manual_seed(int(self.generator.initial_seed()) + 1)
        batches = [self.data.sample("architecture", config.batch_size, generator) for _ in range(_DERIVE_BATCHES)]

        def l_dp(part: PartGenotype) -> float:
            network = self._network(part)
            with torch.inference_mode():
                return sum(feature_distance(network(x), target).item() for x, target in batches) / len(batches)

        part = find_candidate(
            arch, self.costs, l_dp, budget=self.budget, complexity_weight=config.complexity_weight,
            num_candidates=config.derive_samples, threshold=config.threshold, generator=generator,
        )  # fmt: skip
        return self._network(part)

    def _network(self, part: PartGenotype) -> PartNetwork:
        network = PartNetwork(self.supernet.part_index, part, self.supernet.space)
        inherit_weights(network, self.supernet)
        device = next(self.supernet.parameters()).device
        return network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def _counted(self, loss: float | None) -> list[float]:
        """Return the loss of a step, or nothing after counting a bad one."""
        if loss is not None:
            return [loss]
        self.num_bad_steps += 1
        if self.num_bad_steps > self.config.max_bad_steps:
            raise FloatingPointError(
                f"{self.num_bad_steps} steps had a loss or gradient that is not finite, `search.max_bad_steps` is "
                f"{self.config.max_bad_steps}"
            )
        return []

    def architecture_step(self) -> float | None:
        """Descend L_search = L_dp + lambda L_comp on D_archi (Algorithm 1, line 5; Eq. 13).

        Returns:
            L_dp, or None where it or a gradient was not finite and nothing was changed.
        """
        config = self.config
        losses = []
        self.arch_optimizer.zero_grad()
        for _ in range(config.arch_samples):
            loss = self._l_dp("architecture", with_gradient=True) / config.arch_samples
            losses.append(loss.detach())
            for parameter, gradient in zip(
                self.arch_parameters, torch.autograd.grad(loss, self.arch_parameters), strict=True
            ):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if config.complexity_weight > 0:
            expected = self.costs.expected(self.supernet.arch)
            l_comp = expected.regulariser
            if self.budget is not None:
                l_comp = (expected.total / self.budget - 1).clamp_min(0)
            (config.complexity_weight * l_comp).backward()
        total = sum(loss.item() for loss in losses)  # only here, since it waits for the device
        if not is_good_step(total, self.arch_parameters):
            return None
        self.arch_optimizer.step()
        return total

    def weight_step(self) -> float | None:
        """Descend L_dp on D_w (Algorithm 1, line 6); operators that were not sampled have no gradient and stay.

        Returns:
            L_dp, or None where it or a gradient was not finite and nothing was changed.
        """
        loss = self._l_dp("weights", with_gradient=False)
        self.weight_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not is_good_step(loss.item(), self.weight_parameters):
            return None
        self.weight_optimizer.step()
        return loss.item()

    def _l_dp(self, split: Split, *, with_gradient: bool) -> Tensor:
        return sampled_l_dp(
            self.supernet, self.data, self.config, split, generator=self.generator, with_gradient=with_gradient
        )

    def state(self) -> dict[str, object]:
        return {
            "supernet": self.supernet.state_dict(),
            "arch_optimizer": self.arch_optimizer.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "num_bad_steps": self.num_bad_steps,
        }

    def load_state(self, state: dict) -> None:
        self.supernet.load_state_dict(state["supernet"])
        self.arch_optimizer.load_state_dict(state["arch_optimizer"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.num_bad_steps = state["num_bad_steps"]
