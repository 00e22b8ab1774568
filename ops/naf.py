"""naf: NAFNet's block, gated instead of activated; a candidate to be named, not one of the paper's eight.

Registered for `search_space`. Chen et al., "Simple Baselines for Image Restoration", arXiv 2204.04676.

Legend: B batch, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.registry import register_op
from ops.slimmable import SlimmableConv2d, SlimmableLayerNorm
from ops.spec import OpSpec

EPSILON = 1e-6  # of the variance in both normalisations, as published


class NAFBlock(nn.Module):
    """Gated depthwise convolution with channel attention, then a gated 1x1 MLP; it starts as the identity.

    NAFNet multiplies the first half of the channels with the second. We interleave the halves, so that any prefix of
    2C channels splits into the same C pairs; at full width the two differ by a permutation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial_norm = SlimmableLayerNorm(channels, eps=EPSILON)
        self.spatial_in = SlimmableConv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = SlimmableConv2d(channels, channels, 1)
        self.spatial_out = SlimmableConv2d(channels, channels, 1)
        self.mlp_norm = SlimmableLayerNorm(channels, eps=EPSILON)
        self.mlp_in = SlimmableConv2d(channels, 2 * channels, 1)
        self.mlp_out = SlimmableConv2d(channels, channels, 1)
        self.spatial_scale = nn.Parameter(torch.zeros(channels))  # beta and gamma of the paper
        self.mlp_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Map (B, out_channels, H, W) to the same shape."""
        channels = x.shape[1]
        features = _gate(self._depthwise(self.spatial_in(_normalise(x, self.spatial_norm), 2 * channels)))
        features = features * self.attention(features.mean(dim=(2, 3), keepdim=True), channels)
        x = x + self.spatial_out(features, channels) * self.spatial_scale[:channels].view(1, -1, 1, 1)
        features = _gate(self.mlp_in(_normalise(x, self.mlp_norm), 2 * channels))
        return x + self.mlp_out(features, channels) * self.mlp_scale[:channels].view(1, -1, 1, 1)

    def _depthwise(self, x: Tensor) -> Tensor:
        channels, layer = x.shape[1], self.depthwise
        assert layer.bias is not None
        return F.conv2d(x, layer.weight[:channels], layer.bias[:channels], padding=1, groups=channels)


def _normalise(x: Tensor, norm: SlimmableLayerNorm) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, C, H, W) -> (B, H, W, C) and back


def _gate(x: Tensor) -> Tensor:
    """(B, 2C, H, W) -> (B, C, H, W): every even channel times the odd one after it."""
    return x[:, 0::2] * x[:, 1::2]


@register_op("naf", equal_widths=True)
def _naf(spec: OpSpec) -> nn.Module:
    return NAFBlock(spec.out_channels)
