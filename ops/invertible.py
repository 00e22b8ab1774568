"""ib: an invertible block of two coupled halves.

Registered for `search_space`. Xiao et al., "Invertible Image Rescaling", arXiv 2005.05650, with the convolutional
subnets of Liu et al., "Invertible Denoising Network", arXiv 2104.10546.

Legend: B batch, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.conv import LEAKY_RELU_SLOPE
from ops.registry import register_op
from ops.slimmable import SlimmableConv2d
from ops.spec import OpSpec


class CouplingSubnet(nn.Module):
    """Three 3x3 convolutions of which the last sees the first two's input too: InvDN's "Resnet" subnet.

    The last convolution of [x; hidden] is stored as two that are summed, because a prefix of a concatenation is no
    concatenation of prefixes. Both start at zero, so the subnet does.
    """

    def __init__(self, half_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.first = SlimmableConv2d(half_channels, hidden_channels, 3)
        self.second = SlimmableConv2d(hidden_channels, hidden_channels, 3)
        self.last_of_input = SlimmableConv2d(half_channels, half_channels, 3, bias=False)
        self.last_of_hidden = SlimmableConv2d(hidden_channels, half_channels, 3)
        for parameter in (*self.last_of_input.parameters(), *self.last_of_hidden.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map one half, (B, C/2, H, W), to an update of the other, (B, C/2, H, W), through C hidden channels."""
        half_channels = x.shape[1]
        hidden = F.leaky_relu(self.first(x, 2 * half_channels), LEAKY_RELU_SLOPE, inplace=True)
        hidden = F.leaky_relu(self.second(hidden, 2 * half_channels), LEAKY_RELU_SLOPE, inplace=True)
        return self.last_of_input(x, half_channels) + self.last_of_hidden(hidden, half_channels)


class InvertibleBlock(nn.Module):
    """Two affine couplings between the even and the odd channels; it starts as the identity.

    InvDN splits 3 channels from the rest, which means nothing inside a cell. We halve the channels, and interleave the
    halves, so that any even prefix splits into the same two roles: channel c belongs to one half at every width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"`out_channels` of ib must be even, got {channels}")
        # F, H and G of the papers.
        self.even_update = CouplingSubnet(channels // 2, channels)
        self.odd_log_scale = CouplingSubnet(channels // 2, channels)
        self.odd_update = CouplingSubnet(channels // 2, channels)

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Map (B, out_channels, H, W) to the same shape."""
        even, odd = x[:, 0::2], x[:, 1::2]
        even = even + self.even_update(odd)
        odd = odd * self._scale(even) + self.odd_update(even)
        return _interleave(even, odd)

    def inverse(self, x: Tensor) -> Tensor:
        """Give back the input of `forward` from its output, (B, C, H, W)."""
        even, odd = x[:, 0::2], x[:, 1::2]
        odd = (odd - self.odd_update(even)) / self._scale(even)
        even = even - self.even_update(odd)
        return _interleave(even, odd)

    def _scale(self, even: Tensor) -> Tensor:
        # exp(2 sigmoid(z) - 1) with 2 sigmoid(z) - 1 = tanh(z / 2), between 0.37 and 2.72
        return torch.exp(torch.tanh(0.5 * self.odd_log_scale(even)))


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    """Put two (B, C/2, H, W) together as the even and odd channels of (B, C, H, W)."""
    stacked = torch.stack((even.permute(0, 2, 3, 1), odd.permute(0, 2, 3, 1)), dim=-1)  # (B, H, W, C/2, 2)
    return stacked.flatten(-2).permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


@register_op("ib", equal_widths=True)
def _ib(spec: OpSpec) -> nn.Module:
    return InvertibleBlock(spec.out_channels)
