"""BM3D behind the interface of a network, from the package `bm3d` (extra `[bm3d]`).

Built by `pipeline.evaluation.models`, which imports this module only when BM3D is asked for.
Dabov et al., "Image Denoising by Sparse 3-D Transform-Domain Collaborative Filtering", IEEE TIP 2007.
"""

import bm3d
import numpy as np
import torch
from skimage.restoration import estimate_sigma
from torch import Tensor, nn

_MIN_SIGMA = 1e-4  # far below one grey level: nothing to remove, and BM3D divides by sigma


class BM3D(nn.Module):
    """Colour BM3D for white noise of one sigma per image.

    Attributes:
        sigma: noise standard deviation on the [0, 1] scale. None estimates it from every noisy image: the median of the
            finest wavelet details, averaged over the channels. The clean image is never looked at.
    """

    def __init__(self, *, sigma: float | None = None) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (1, 3, H, W) on the CPU; the result is not clamped."""
        image = np.ascontiguousarray(noisy[0].permute(1, 2, 0).numpy(), dtype=np.float64)  # (1, 3, H, W) -> (H, W, 3)
        sigma = self.sigma
        if sigma is None:
            sigma = float(estimate_sigma(image, channel_axis=-1, average_sigmas=True))
        if sigma < _MIN_SIGMA:
            return noisy.clone()
        if np.array_equal(image[..., :1].repeat(3, axis=2), image):  # the package divides by the range of colours
            denoised = bm3d.bm3d(image[..., 0], sigma)[..., np.newaxis].repeat(3, axis=2)
        else:
            denoised = bm3d.bm3d_rgb(image, sigma)
        return torch.from_numpy(denoised).permute(2, 0, 1)[None].to(noisy.dtype)  # (H, W, 3) -> (1, 3, H, W)
