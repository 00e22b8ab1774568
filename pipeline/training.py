"""Train a network on noisy patches with Eq. (14), in plain torch: no Ray, no MLflow.

Called by `pipeline.retrain` inside a Ray Train worker, and directly by baselines, experiments, tests and benchmarks.
arXiv 2502.13359, Section III-D.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from pipeline.checkpoint import load_checkpoint, restoring, save_checkpoint
from pipeline.data.patches import Patches
from pipeline.device import check_device
from pipeline.losses import is_good_step, training_loss
from pipeline.precision import autocast
from pipeline.priors import Prior, Recorded
from pipeline.settings import RetrainConfig


class Trainer:
    """Network, optimiser and data of one training, an epoch at a time.

    Args:
        network: maps (B, 3, H, W) to the denoised images; with a prior, its `features` gives the outputs of its parts.
        source: where patches come from; distilled ones bring the prior's denoised patches as a second target.
        config: numbers of the training.
        prior: for L_dp in the first `distill_share` of the training, or None.
        seed: of the patches, the same for all workers.
        device: where to train.
        wrap: applied to the module that the optimiser sees, for example `ray.train.torch.prepare_model`.
        rank: of this worker.
        num_workers: that share the batch. Each draws all of it and keeps its rows, so that patches and noise do not
            depend on their number.
        max_seconds: train for so long instead of `num_epochs`; the schedule follows the clock. For comparisons at equal
            time; results then depend on the machine.

    Raises:
        ValueError: `device` is none that torch sees.
    """

    def __init__(
        self,
        network: nn.Module,
        source: Patches,
        config: RetrainConfig,
        *,
        prior: Prior | None,
        seed: int,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        rank: int = 0,
        num_workers: int = 1,
        max_seconds: float | None = None,
    ) -> None:
        check_device(device.type, name="device")
        self.network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.source = source
        self.config = config
        self._prior_features = Recorded(prior.features) if prior is not None and config.distill_share > 0 else None
        self.device = device
        self.rows = slice(rank, None, num_workers)  # of a batch
        self.max_seconds = max_seconds
        self.generator = torch.Generator().manual_seed(seed)
        outputs: nn.Module = _Outputs(self.network)
        if config.compile:
            outputs = torch.compile(outputs)  # type: ignore[assignment]
        self.module = wrap(outputs)
        self.optimizer = self._new_optimizer()
        # The next step's batch, drawn while the device computed the last one, and the generator's state before.
        self._ahead: tuple[list[Tensor], Tensor] | None = None
        self.is_distilling = self._prior_features is not None
        self.num_steps = 0
        self.num_bad_steps = 0
        self._started = time.perf_counter()

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        if self.max_seconds is not None:
            return min(1.0, (time.perf_counter() - self._started) / self.max_seconds)
        return self.num_steps / (self.config.num_epochs * self.config.steps_per_epoch)

    def run_epoch(self) -> dict[str, float]:
        """Train for `steps_per_epoch` steps, or until the time is up.

        Returns:
            Means over the epoch: `loss`, `seconds_per_step`; and `learning_rate` at its end.

        Raises:
            FloatingPointError: no step of the epoch had a finite loss, or more than `max_bad_steps` of all had none.
            RuntimeError: the training is finished already.
        """
        start, total, steps = time.perf_counter(), 0.0, 0
        bad_before = self.num_bad_steps
        for _ in range(self.config.steps_per_epoch):
            if self.progress >= 1:
                break
            loss = self._step()
            if loss is not None:
                total += loss
                steps += 1
        if steps == 0 and self.num_bad_steps == bad_before:
            raise RuntimeError("the training is finished: there is no time and no step left")
        if steps == 0:
            raise FloatingPointError("no step of the epoch had a finite loss; lower `retrain.learning_rate`")
        return {
            "loss": total / steps,
            "seconds_per_step": (time.perf_counter() - start) / steps,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "num_bad_steps": self.num_bad_steps,
        }

    def _step(self) -> float | None:
        """Return the loss, or None where it or a gradient was not finite and nothing was changed."""
        config, progress = self.config, self.progress
        noisy, clean, *denoised = self._draw() if self._ahead is None else self._ahead[0]
        self._ahead = None
        prior_denoised = denoised[0] if denoised else None
        self.num_steps += 1
        if self.is_distilling and progress >= config.distill_share:
            # L_dp is far larger than L1: its second moments in Adam would hold the steps down for the next thousand.
            self.is_distilling = False
            self.optimizer = self._new_optimizer()
        for group in self.optimizer.param_groups:
            span = config.learning_rate - config.final_learning_rate
            group["lr"] = config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))
        if self.is_distilling and self._prior_features is not None:
            targets = self._prior_features(noisy)
            features = self._outputs(noisy)
            loss = training_loss(  # Eq. (14)
                noisy + features[-1], clean, features, targets, prior_denoised=prior_denoised
            )
        else:
            loss = training_loss(noisy + self._outputs(noisy)[-1], clean, prior_denoised=prior_denoised)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.progress < 1:  # a GPU is still at work when this returns, and the next line waits for it
            before = self.generator.get_state()
            self._ahead = self._draw(), before
        value, is_good = self._of_all_workers(loss.item(), is_good_step(loss.item(), self.network.parameters()))
        if is_good:
            self.optimizer.step()
            return value
        self.num_bad_steps += 1
        if self.num_bad_steps > config.max_bad_steps:
            raise FloatingPointError(
                f"{self.num_bad_steps} steps had a loss or gradient that is not finite, `retrain.max_bad_steps` is "
                f"{config.max_bad_steps}; lower `retrain.learning_rate`"
            )
        return None

    def _draw(self) -> list[Tensor]:
        """Draw a batch and begin to copy this worker's rows of it to the device."""
        drawn = []
        for patches in self.source.sample(self.config.batch_size, self.generator):
            rows = patches[self.rows].contiguous(memory_format=torch.channels_last)
            if self.device.type == "cuda":
                rows = rows.pin_memory()  # or the copy would wait for the work before it
            drawn.append(rows.to(self.device, non_blocking=True))
        return drawn

    def _of_all_workers(self, loss: float, is_good: bool) -> tuple[float, bool]:
        """Return the mean loss, and whether the step is good everywhere: otherwise the workers would part."""
        if not torch.distributed.is_initialized():
            return loss, is_good
        sums = torch.tensor([loss, float(is_good)], device=self.device)
        torch.distributed.all_reduce(sums)
        num_workers = torch.distributed.get_world_size()
        return sums[0].item() / num_workers, sums[1].item() == num_workers

    def _outputs(self, noisy: Tensor) -> list[Tensor]:
        with autocast(self.device, self.config.precision):
            outputs = self.module(noisy)
        return [output.float() for output in outputs]

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate)

    def state(self) -> dict[str, Any]:
        """Return everything that `load_state` needs to go on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state() if self._ahead is None else self._ahead[1],
            "num_steps": self.num_steps,
            "is_distilling": self.is_distilling,
            "num_bad_steps": self.num_bad_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self._ahead = None
        self.num_steps = state["num_steps"]
        self.is_distilling = state["is_distilling"]
        self.num_bad_steps = state["num_bad_steps"]


def train_to_the_end(
    trainer: Trainer,
    checkpoint: Path,
    *,
    network_id: str = "",
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
) -> None:
    """Run all epochs, from the last one that `checkpoint` holds; it is written after every epoch.

    A checkpoint of another network is not read; the first epoch replaces it.

    Args:
        trainer: freshly made, with the same arguments as the interrupted one.
        checkpoint: file of the training's state.
        network_id: tells the networks apart that may be trained with this file, where there are several.
        on_epoch: called with (epochs done, metrics of the last).
    """
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, map_location=trainer.device)
        if state.get("network_id", "") == network_id:
            with restoring(checkpoint):
                trainer.load_state(state)
    while trainer.progress < 1:
        metrics = trainer.run_epoch()
        save_checkpoint(checkpoint, trainer.state() | {"network_id": network_id})
        on_epoch(trainer.num_steps // trainer.config.steps_per_epoch, metrics)


class _Outputs(nn.Module):
    """What data-parallel training wraps: a forward pass that returns the outputs of the parts, the residual last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor) -> list[Tensor]:
        features = getattr(self.network, "features", None)
        return [self.network(noisy) - noisy] if features is None else features(noisy)
