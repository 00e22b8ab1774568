"""The contract of a prior: a pretrained denoiser that can be run part by part.

Implemented by `mirnet.MIRNet` and `nafnet.NAFNet`; used by the search (features to imitate), by retraining (Eq. 14) and
by evaluation.
"Denoising Designs-inherited Search Framework for Image Denoising", arXiv 2502.13359, Section III-C.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from search_space import NUM_PARTS


class Prior(nn.Module, ABC):
    """A denoiser in three parts: image -> C features -> C features -> residual image, all at full resolution.

    Attributes:
        num_channels: C, the width of both cuts. The searched network has the same boundary.
        size_multiple: height and width given to `run_part` must be multiples of this.
        pads_with_zeros: whole images are padded to that multiple with zeros; by default they are reflected.
        sizes: keyword arguments that build the network again, as plain JSON values.
    """

    num_channels: int
    size_multiple: int = 1
    pads_with_zeros: bool = False
    sizes: dict[str, Any]

    @abstractmethod
    def run_part(self, part_index: int, x: Tensor) -> Tensor:
        """Run one part.

        Args:
            part_index: 0, 1 or 2.
            x: (B, 3, H, W) noisy image for part 0, (B, C, H, W) features for parts 1 and 2.

        Returns:
            (B, C, H, W) features for parts 0 and 1, the (B, 3, H, W) residual image for part 2.
        """

    def features(self, noisy: Tensor, *, num_parts: int = NUM_PARTS) -> list[Tensor]:
        """Return the outputs of the first parts for `noisy` (B, 3, H, W): features, features, residual image."""
        outputs = []
        x = noisy
        for part_index in range(num_parts):
            x = self.run_part(part_index, x)
            outputs.append(x)
        return outputs

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W) images of any size, in [0, 1] plus noise; the result is not clamped."""
        height, width = noisy.shape[-2:]
        pad_bottom, pad_right = -height % self.size_multiple, -width % self.size_multiple
        padded = noisy
        if pad_bottom or pad_right:
            mode = "reflect" if min(height, width) > self.size_multiple else "replicate"
            if self.pads_with_zeros:
                mode = "constant"
            padded = F.pad(noisy, (0, pad_right, 0, pad_bottom), mode=mode)
        residual = self.features(padded)[-1]
        return noisy + residual[..., :height, :width]
