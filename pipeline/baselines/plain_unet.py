"""The plain network that searched ones are measured against: a hand-made residual U-Net of two scales.

Built by `pipeline.baselines.build_baseline`.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class PlainUNet(nn.Module):
    """Two scales, `num_channels` at the full resolution and twice as many at half of it, no normalisation.

    About 50 k parameters at 16 channels.
    """

    def __init__(self, *, num_channels: int = 16) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"`num_channels` must be at least 1, got {num_channels}")
        self.sizes = {"num_channels": num_channels}
        self.encode = nn.Sequential(_conv(3, num_channels), _conv(num_channels, num_channels))
        self.middle = nn.Sequential(
            _conv(num_channels, 2 * num_channels, stride=2),
            _conv(2 * num_channels, 2 * num_channels),
            _conv(2 * num_channels, 2 * num_channels),
        )
        self.up = nn.Conv2d(2 * num_channels, 4 * num_channels, 3, padding=1)
        self.decode = nn.Sequential(_conv(num_channels, num_channels), nn.Conv2d(num_channels, 3, 3, padding=1))

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W)."""
        fine = self.encode(noisy)
        up = F.pixel_shuffle(self.up(self.middle(fine)), 2)[..., : fine.shape[2], : fine.shape[3]]
        return noisy + self.decode(fine + up)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, 1), nn.LeakyReLU(0.2))
