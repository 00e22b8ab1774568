"""The plain network that searched ones are measured against: a hand-made residual U-Net of two scales."""

import torch.nn.functional as F
from torch import Tensor, nn


class PlainUNet(nn.Module):
    """Two scales, 16 channels at the full and 32 at the half resolution, about 50 k parameters, no normalisation."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.encode = nn.Sequential(_conv(3, channels), _conv(channels, channels))
        self.middle = nn.Sequential(
            _conv(channels, 2 * channels, stride=2),
            _conv(2 * channels, 2 * channels),
            _conv(2 * channels, 2 * channels),
        )
        self.up = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)
        self.decode = nn.Sequential(_conv(channels, channels), nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W)."""
        fine = self.encode(noisy)
        up = F.pixel_shuffle(self.up(self.middle(fine)), 2)[..., : fine.shape[2], : fine.shape[3]]
        return noisy + self.decode(fine + up)


class _conv(nn.Sequential):  # noqa: N801  reads as a function where it is used
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 3, stride, 1), nn.LeakyReLU(0.2))
