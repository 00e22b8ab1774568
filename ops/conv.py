"""The convolutional candidates: three dilations and a residual one.

Registered for `search_space`, which offers them in every cell. "conv d = 1, 2, 3" and "conv r" of arXiv 2502.13359.

Legend: B batch, C channels, H height, W width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ops.registry import register_op
from ops.slimmable import SlimmableConv2d, fit_channels
from ops.spec import OpSpec

LEAKY_RELU_SLOPE = 0.2  # the paper names none for its convolutions; this is that of its IB and HIN blocks


class DilatedConv(nn.Module):
    """A 3x3 convolution with bias, then LeakyReLU: the paper gives neither bias nor activation."""

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.conv = SlimmableConv2d(in_channels, out_channels, 3, dilation=dilation)

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Map (B, <= in_channels, H, W) to (B, out_channels, H, W)."""
        # In place: a convolution's backward pass does not read its output.
        return F.leaky_relu(self.conv(x, out_channels), LEAKY_RELU_SLOPE, inplace=True)


class ResidualConv(DilatedConv):
    """The input, cut or zero-padded to the output width, plus a 3x3 convolution of it.

    LeakyReLU stands inside the residual branch, x + LeakyReLU(conv(x)), so the sum itself stays linear in x's path.
    """

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Map (B, <= in_channels, H, W) to (B, out_channels, H, W)."""
        residual = super().forward(x, out_channels)
        return fit_channels(x, residual.shape[1]) + residual


@register_op("conv_d1")
def _conv_d1(spec: OpSpec) -> nn.Module:
    return DilatedConv(spec.in_channels, spec.out_channels, dilation=1)


@register_op("conv_d2")
def _conv_d2(spec: OpSpec) -> nn.Module:
    return DilatedConv(spec.in_channels, spec.out_channels, dilation=2)


@register_op("conv_d3")
def _conv_d3(spec: OpSpec) -> nn.Module:
    return DilatedConv(spec.in_channels, spec.out_channels, dilation=3)


@register_op("conv_r")
def _conv_r(spec: OpSpec) -> nn.Module:
    return ResidualConv(spec.in_channels, spec.out_channels)
