"""Random training patches from images held in memory.

Called by prior training, the part searches and retraining. The same generator state gives the same patches.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.images import to_16_bit, white_level
from pipeline.data.noise import add_poisson, sample_noise_map
from pipeline.settings import NoiseConfig

DEFAULT_GAINS = (1 / 255, 8 / 255)


class Patches(Protocol):
    """Source of training batches."""

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw noisy and clean patches, and other targets where there are some, (B, 3, P, P) each."""
        ...


def noisy_patches(images: Sequence[np.ndarray], noise: NoiseConfig, *, patch_size: int) -> "PatchSource":
    """Return the source of the training patches that the settings describe."""
    return PatchSource(
        images, patch_size=patch_size, noise_model=noise.model, sigma_range=noise.sigma_range,
        gain_range=noise.gain_range,
    )  # fmt: skip


class PatchSource:
    """Draw augmented clean patches, and noisy ones made from them.

    Args:
        images: (H, W, 3) uint8 or uint16 images, each at least `patch_size` on both sides; (H, W, 6) with noise model
            `pairs`, the clean image's channels first, then the noisy one's.
        patch_size: height and width of a patch in pixels.
        noise_model: see `pipeline.data.noise.sample_noise_map`; or `poisson`, see `pipeline.data.noise.add_poisson`.
        sigma_range: lowest and highest sigma on the [0, 1] scale.
        gain_range: lowest and highest brightness of a photon on the [0, 1] scale; for `poisson` alone.

    Raises:
        ValueError: no images, or one is smaller than a patch.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        *,
        patch_size: int,
        noise_model: str = "awgn",
        sigma_range: tuple[float, float],
        gain_range: tuple[float, float] = DEFAULT_GAINS,
    ) -> None:
        if not images:
            raise ValueError("`images` must hold at least one image, got none")
        num_channels = 6 if noise_model == "pairs" else 3
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != num_channels:
                raise ValueError(
                    f"image {index} must have {num_channels} channels with noise model {noise_model}, "
                    f"got shape {image.shape}"
                )
            if min(image.shape[:2]) < patch_size:
                raise ValueError(f"image {index} of shape {image.shape} is smaller than `patch_size` {patch_size}")
        self.images = list(images)
        self.patch_size = patch_size
        self.noise_model = noise_model
        self.sigma_range = sigma_range
        self.gain_range = gain_range
        self._dtype = np.result_type(*{image.dtype for image in images})  # uint16 if one of them is
        pixels = torch.tensor([image.shape[0] * image.shape[1] for image in images], dtype=torch.float64)
        self._weights = pixels / pixels.sum()  # a large photograph is not drawn more sparsely than a small one

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `batch_size` patches.

        Returns:
            noisy and clean, both (B, 3, P, P) float32; clean in [0, 1], noisy not clipped.
        """
        size = self.patch_size
        indices = torch.multinomial(self._weights, batch_size, replacement=True, generator=generator).tolist()
        u = torch.rand(batch_size, 3, generator=generator).tolist()
        patches = np.empty((batch_size, size, size, self.images[0].shape[2]), dtype=self._dtype)
        for row, (index, (u_top, u_left, u_symmetry)) in enumerate(zip(indices, u, strict=True)):
            height, width = self.images[index].shape[:2]
            top, left = int(u_top * (height - size + 1)), int(u_left * (width - size + 1))
            patch = self.images[index][top : top + size, left : left + size]
            symmetry = int(u_symmetry * 8)  # one of the eight flips and rotations
            patch = np.rot90(patch if patch.dtype == self._dtype else to_16_bit(patch), symmetry % 4)
            patches[row] = patch[:, ::-1] if symmetry >= 4 else patch
        stacked = torch.from_numpy(patches).permute(0, 3, 1, 2).float()  # (B, P, P, 3 or 6) -> (B, 3 or 6, P, P)
        stacked /= white_level(patches)
        clean = stacked[:, :3]
        if self.noise_model == "pairs":
            return stacked[:, 3:], clean
        if self.noise_model == "poisson":
            noisy = add_poisson(clean, gain_range=self.gain_range, sigma_range=self.sigma_range, generator=generator)
            return noisy, clean
        noise_map = sample_noise_map(
            self.noise_model, batch_size, size, sigma_range=self.sigma_range, generator=generator
        )
        noise = torch.randn(clean.shape, generator=generator)
        return clean + noise * noise_map, clean
