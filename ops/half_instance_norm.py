"""hin: a residual block that normalises every other channel of its features over the image.

Registered for `search_space`. Chen et al., "HINet: Half Instance Normalization Network", arXiv 2105.06086.

Legend: B batch, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.conv import LEAKY_RELU_SLOPE
from ops.registry import register_op
from ops.slimmable import SlimmableConv2d
from ops.spec import OpSpec

EPSILON = 1e-5  # of the variance, as in torch.nn.InstanceNorm2d


class HalfInstanceNorm(nn.Module):
    """Instance normalisation of the even channels; the odd ones pass.

    HINet normalises the first half. A channel would then change its role with the width; by parity it keeps it, and at
    full width the two differ by a permutation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels // 2))
        self.bias = nn.Parameter(torch.zeros(channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, C even; the statistics are of the whole image, in evaluation too."""
        half_channels = x.shape[1] // 2
        variance, mean = torch.var_mean(x[:, 0::2], dim=(2, 3), correction=0)  # (B, C/2)
        scale = self.weight[:half_channels] * torch.rsqrt(variance + EPSILON)
        shift = self.bias[:half_channels] - mean * scale
        # One multiply-add of all channels, by 1 and 0 where they pass, keeps the memory format and cuts nothing apart.
        scale = torch.stack((scale, torch.ones_like(scale)), dim=2)  # (B, C/2, 2)
        shift = torch.stack((shift, torch.zeros_like(shift)), dim=2)
        return torch.addcmul(shift.reshape(*x.shape[:2], 1, 1), x, scale.reshape(*x.shape[:2], 1, 1))


class HalfInstanceNormBlock(nn.Module):
    """HINet's block without its downsampling: conv, half normalisation, conv, and a 1x1 convolution as shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"`out_channels` of hin must be even, got {out_channels}")
        self.first = SlimmableConv2d(in_channels, out_channels, 3)
        self.norm = HalfInstanceNorm(out_channels)
        self.second = SlimmableConv2d(out_channels, out_channels, 3)
        self.shortcut = SlimmableConv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Map (B, <= in_channels, H, W) to (B, out_channels, H, W)."""
        features = F.leaky_relu(self.norm(self.first(x, out_channels)), LEAKY_RELU_SLOPE, inplace=True)
        features = F.leaky_relu(self.second(features, out_channels), LEAKY_RELU_SLOPE, inplace=True)
        return features + self.shortcut(x, out_channels)


@register_op("hin")
def _hin(spec: OpSpec) -> nn.Module:
    return HalfInstanceNormBlock(spec.in_channels, spec.out_channels)
