"""A fixed set of noisy training patches with what the prior makes of them: its knowledge at the price of one pass.

Made by `training_patches` for retraining and for baselines. A noisy patch leaves open what the clean one was, so a
network that learns from clean patches follows a noisy gradient; the prior's denoised patches are near the mean of what
it could have been. The prior does not run in a training step, which costs many steps of a light network.

Legend: B batch, N patches, P patch size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.patches import PatchSource, noisy_patches
from pipeline.priors import Prior

_BATCH_SIZE = 16  # patches that the prior denoises at a time


def training_patches(
    config: Config, images: Sequence[np.ndarray], prior: Prior, *, seed: int
) -> "PatchSource | DistilledPatches":
    """Return the patches that `noise` and `retrain` describe: fresh ones, or `retrain.distilled_patches` fixed ones.

    Args:
        config: settings of the training.
        images: (H, W, 3) clean training images, see `PatchSource`.
        prior: the denoiser to learn from.
        seed: of the fixed patches.
    """
    source = noisy_patches(images, config.noise, patch_size=config.retrain.patch_size)
    if config.retrain.distilled_patches == 0:
        return source
    return DistilledPatches(source, prior, num_patches=config.retrain.distilled_patches, seed=seed)


class DistilledPatches:
    """Draw flipped and rotated patches of a fixed set, each noisy, clean, and denoised by the prior.

    Args:
        source: of the noisy and clean patches.
        prior: denoises them once, on its device.
        num_patches: N; 36 P P bytes of memory each.
        seed: of the set.
    """

    def __init__(self, source: PatchSource, prior: Prior, *, num_patches: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        device = next(prior.parameters()).device
        signals: tuple[list[Tensor], ...] = ([], [], [])
        for first in range(0, num_patches, _BATCH_SIZE):
            noisy, clean = source.sample(min(_BATCH_SIZE, num_patches - first), generator)
            with torch.inference_mode():
                denoised = prior(noisy.to(device, memory_format=torch.channels_last)).cpu()
            for batches, batch in zip(signals, (noisy, clean, denoised), strict=True):
                batches.append(batch.contiguous(memory_format=torch.channels_last))
        self._signals = tuple(torch.cat(batches) for batches in signals)  # (N, 3, P, P) each

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `batch_size` patches, all in one of the eight flips and rotations.

        Returns:
            noisy, clean and denoised, (B, 3, P, P) float32; clean in [0, 1], the others not clipped.
        """
        indices = torch.randint(len(self._signals[0]), (batch_size,), generator=generator)
        symmetry = int(torch.randint(8, (1,), generator=generator))
        turned = (torch.rot90(signal[indices], symmetry % 4, (2, 3)) for signal in self._signals)
        noisy, clean, denoised = (patches.flip(3) if symmetry >= 4 else patches for patches in turned)
        return noisy, clean, denoised
