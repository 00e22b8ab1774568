"""Train a prior on a folder of images, resumably.

Called by `denoise-nas prior train`. The noise is VDN's training map for half of the patches and white Gaussian noise of
random sigma for the other half, so that one network serves every sigma ("mixed").
"""

import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.checkpoint import load_checkpoint, restoring, save_checkpoint
from pipeline.data.patches import PatchSource
from pipeline.losses import is_good_step
from pipeline.plain import hash_of, to_plain
from pipeline.priors import MIRNet, NAFNet, Prior
from pipeline.settings import PriorTrainConfig

_logger = logging.getLogger(__name__)
_WARMUP_STEPS = 200


def new_prior(config: PriorTrainConfig) -> MIRNet | NAFNet:
    """Build the network that `config` describes, with initial weights from torch's global random state.

    Raises:
        ValueError: its sizes are impossible.
    """
    if config.architecture == "nafnet":
        return NAFNet(
            num_channels=config.num_channels,
            encoder_blocks=config.encoder_blocks,
            middle_blocks=config.middle_blocks,
            decoder_blocks=config.decoder_blocks,
        )
    return MIRNet(num_channels=config.num_channels, num_blocks=config.num_blocks)


def train_prior(
    prior: Prior,
    images: Mapping[str, np.ndarray],
    config: PriorTrainConfig,
    *,
    checkpoint_path: Path,
    device: torch.device,
    progress: Callable[[int, float, float], None] | None = None,
) -> Prior:
    """Train `prior` in place with L1 and Adam, learning rate warmed up and then decayed to zero by a cosine.

    Goes on from `checkpoint_path` where it exists; the data order is part of the checkpoint. The order of `images` does
    not matter.

    Args:
        prior: the network, with initial weights.
        images: (H, W, 3) uint8 or uint16 clean images by name, each at least a patch large.
        config: numbers of the training.
        checkpoint_path: written every `config.checkpoint_every` steps and at the end.
        device: where to train.
        progress: called every 50 steps with (step, mean loss since the last call, seconds per step of it).

    Returns:
        `prior`, in evaluation mode.

    Raises:
        ValueError: the checkpoint belongs to another configuration or to other images.
        FloatingPointError: more than `max_bad_steps` steps had no finite loss, or all of them.
    """
    images = dict(sorted(images.items()))
    source = PatchSource(
        list(images.values()),
        patch_size=config.patch_size,
        noise_model=config.noise_model,
        sigma_range=config.sigma_range,
    )
    generator = torch.Generator().manual_seed(config.seed)
    prior.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(prior.parameters(), lr=config.learning_rate)
    first_step = num_bad_steps = 0
    settings = _lasting_settings(config) | {"images": _describe(images)}
    if checkpoint_path.exists():
        state = load_checkpoint(checkpoint_path, map_location=device)
        if state.get("config") != settings:
            raise ValueError(f"checkpoint {checkpoint_path} was made by {state.get('config')}, got {settings}")
        with restoring(checkpoint_path):
            prior.load_state_dict(state["weights"])
            optimizer.load_state_dict(state["optimizer"])
            generator.set_state(state["generator"].cpu())
            first_step = range(config.num_steps + 1)[state["step"]]
            num_bad_steps = int(state.get("num_bad_steps", 0))  # earlier versions did not count them
        _logger.info("resumed %s at step %d", checkpoint_path, first_step)

    def save(step: int) -> None:
        save_checkpoint(
            checkpoint_path,
            {
                "step": step,
                "weights": prior.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "config": settings,
                "num_bad_steps": num_bad_steps,
            },
        )

    losses: list[float] = []
    saved_step = first_step
    since = time.perf_counter()
    for step in range(first_step, config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, config)
        noisy, clean = (
            t.to(device, memory_format=torch.channels_last) for t in source.sample(config.batch_size, generator)
        )
        loss = _step(prior, optimizer, noisy, clean)
        if loss is not None:
            losses.append(loss)
        else:
            num_bad_steps += 1
        if num_bad_steps > min(config.max_bad_steps, config.num_steps - 1):
            kept = f"{checkpoint_path}, step {saved_step}" if saved_step else "none was kept"
            raise FloatingPointError(
                f"step {step + 1}: {num_bad_steps} steps had a loss or gradient that is not finite, "
                f"`prior_train.max_bad_steps` is {config.max_bad_steps}; lower `prior_train.learning_rate`; last good "
                f"checkpoint: {kept}"
            )
        if progress and losses and (step + 1) % 50 == 0:
            now = time.perf_counter()
            progress(step + 1, sum(losses) / len(losses), (now - since) / len(losses))
            losses, since = [], now
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.num_steps:
            save(step + 1)
            saved_step = step + 1
    return prior.eval()


def _lasting_settings(config: PriorTrainConfig) -> dict[str, Any]:
    """Return the settings without what a training goes on with when it changes: when to give up."""
    settings: dict[str, Any] = to_plain(config)
    del settings["max_bad_steps"]
    return settings


def _describe(images: Mapping[str, np.ndarray]) -> str:
    """Return the number of images and a fingerprint of their names, sizes and middle rows; a moved folder keeps it."""
    facts = [[name, *image.shape, zlib.crc32(image[len(image) // 2].tobytes())] for name, image in images.items()]
    return f"{len(images)}, fingerprint {hash_of(facts)}"


def _step(prior: Prior, optimizer: torch.optim.Optimizer, noisy: Tensor, clean: Tensor) -> float | None:
    """Return the loss, or None where it or a gradient was not finite and nothing was changed."""
    loss = F.l1_loss(prior(noisy), clean)
    optimizer.zero_grad()
    loss.backward()
    if not is_good_step(loss.item(), prior.parameters()):
        return None
    # A rare steep patch would otherwise throw a network without normalisation off.
    torch.nn.utils.clip_grad_norm_(prior.parameters(), 0.1)
    optimizer.step()
    return loss.item()


def _learning_rate(step: int, config: PriorTrainConfig) -> float:
    warm = min(1.0, (step + 1) / _WARMUP_STEPS)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
