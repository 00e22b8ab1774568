"""Noise models: white Gaussian noise and the spatially variant noise of VDN.

Called by the patch sources (training noise) and by evaluation (fixed test noise).
Yue et al., "Variational Denoising Network", arXiv 1908.11314; Eq. 15 of arXiv 2502.13359.
Sigmas are on the [0, 1] pixel scale. Noisy images are neither clipped nor rounded.

Legend: B batch, H height, W width.
"""

import numpy as np
import torch
from torch import Tensor

NOISE_MODELS = ("awgn", "niid", "mixed", "poisson", "pairs")  # pairs: nothing is added, the noise is in the data
MAP_MODELS = NOISE_MODELS[:3]  # those whose level does not depend on the image
_MAX_NIID_SIGMA = 75 / 255
_NIID_OFFSET = 5 / 255  # added to the upper end, so sigma lies in [0, 80]/255


def training_noise_map(size: int, generator: torch.Generator) -> Tensor:
    """Draw one spatially variant noise level map for training, as VDN does.

    A Gaussian bump with random centre and width, rescaled to a random range inside [0, 80]/255.

    Args:
        size: height and width in pixels.
        generator: source of randomness.

    Returns:
        (1, size, size) sigma per pixel.
    """
    u = torch.rand(5, generator=generator)
    column, row = u[0] * size, u[1] * size
    scale = size * (0.25 + 0.5 * u[2])
    grid = torch.arange(size, dtype=torch.float32)
    bump = torch.exp(-((grid[None, :] - column) ** 2 + (grid[:, None] - row) ** 2) / (2 * scale**2))
    low, high = sorted((_MAX_NIID_SIGMA * u[3:]).tolist())
    high += _NIID_OFFSET
    span = bump.max() - bump.min()
    return (low + (bump - bump.min()) / span * (high - low))[None]


def sample_noise_map(
    model: str, batch_size: int, size: int, *, sigma_range: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw a noise level map for every patch of a batch.

    Args:
        model: `awgn` (one sigma per patch, uniform in `sigma_range`), `niid` (VDN's maps, `sigma_range` unused),
            or `mixed` (each patch one of the two, with equal chance).
        batch_size: B.
        size: height and width of a patch in pixels.
        sigma_range: lowest and highest sigma of `awgn`.
        generator: source of randomness.

    Returns:
        (B, 1, size, size) sigma per pixel.

    Raises:
        ValueError: unknown `model`.
    """
    if model not in MAP_MODELS:
        raise ValueError(f"`model` must be one of {', '.join(MAP_MODELS)}, got {model!r}")
    low, high = sigma_range
    sigmas = low + (high - low) * torch.rand(batch_size, 1, 1, 1, generator=generator)
    maps = sigmas.expand(batch_size, 1, size, size).clone()
    if model != "awgn":
        is_niid = torch.rand(batch_size, generator=generator) < (0.5 if model == "mixed" else 2.0)
        for index in is_niid.nonzero().flatten().tolist():
            maps[index] = training_noise_map(size, generator)
    return maps


def add_poisson(
    clean: Tensor, *, gain_range: tuple[float, float], sigma_range: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Add Poisson-Gaussian noise, as raw images have it: variance gain x + sigma^2 at brightness x.

    Args:
        clean: (B, C, H, W) in [0, 1].
        gain_range: lowest and highest brightness of one photon, above 0; each patch gets one, uniformly.
        sigma_range: lowest and highest sigma of the Gaussian part (read noise); likewise.
        generator: source of randomness.

    Returns:
        The shape of `clean`, not clipped.
    """
    u = torch.rand(2, len(clean), 1, 1, 1, generator=generator)
    (low, high), (lowest, highest) = gain_range, sigma_range
    gain, sigma = low + (high - low) * u[0], lowest + (highest - lowest) * u[1]
    photons = torch.poisson(clean / gain, generator=generator)
    return gain * photons + sigma * torch.randn(clean.shape, generator=generator)


def add_test_awgn(clean: np.ndarray, sigma: float, *, seed: int = 0) -> np.ndarray:
    """Add white Gaussian test noise as the literature does: legacy generator, reset for every image, RGB order.

    Args:
        clean: (H, W, 3) in [0, 1].
        sigma: standard deviation on the [0, 1] scale.
        seed: seed of the generator, 0 by convention.

    Returns:
        (H, W, 3) float32, not clipped.
    """
    noise = np.random.RandomState(seed).normal(0.0, sigma, clean.shape)
    return (clean + noise).astype(np.float32)
