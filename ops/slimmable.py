"""Layers whose narrower versions are prefixes of one full-width tensor.

Used by every operator. Yu et al., "Slimmable Neural Networks", arXiv 1812.08928; Eqs. (9), (10) of arXiv 2502.13359.

The prefix property: every parameter of a module built narrow is the leading block, along every dimension, of the same
parameter of the module built at full width, and computes what the wide module computes at that width. `load_prefix`
relies on it to hand a supernet's weights to a derived network.

Legend: B batch, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SlimmableConv2d(nn.Conv2d):
    """A stride-1 or strided convolution that runs at any prefix of its input and output channels.

    The padding keeps height and width at stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            bias=bias,
            padding=dilation * (kernel_size // 2),
        )

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Map (B, <= in_channels, H, W) to the first `out_channels` outputs, Eq. (9): W* = W[:out, :in]."""
        out_channels = out_channels or self.out_channels
        weight, bias = self.weight, self.bias
        if (out_channels, x.shape[1]) != (self.out_channels, self.in_channels):
            weight = weight[:out_channels, : x.shape[1]]
            bias = None if bias is None else bias[:out_channels]
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)  # Eq. (10)


class SlimmableLinear(nn.Linear):
    """A linear layer over the last dimension that runs at any prefix of its inputs and outputs."""

    def forward(self, x: Tensor, out_features: int | None = None) -> Tensor:
        """Map (..., <= in_features) to (..., out_features)."""
        out_features = out_features or self.out_features
        bias = None if self.bias is None else self.bias[:out_features]
        return F.linear(x, self.weight[:out_features, : x.shape[-1]], bias)


class SlimmableLayerNorm(nn.LayerNorm):
    """Layer normalisation of the last dimension, at any prefix of it: the statistics are of the live channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        channels = x.shape[-1]
        return F.layer_norm(x, (channels,), self.weight[:channels], self.bias[:channels], self.eps)


def fit_channels(x: Tensor, channels: int) -> Tensor:
    """Cut (B, C, H, W) to its first `channels` channels, or pad it with zero channels."""
    missing = channels - x.shape[1]
    if missing == 0:
        return x
    return x[:, :channels] if missing < 0 else F.pad(x, (0, 0, 0, 0, 0, missing))


@torch.no_grad()
def load_prefix(narrow: nn.Module, wide: nn.Module) -> None:
    """Copy into every parameter of `narrow` the leading block of the parameter of that name in `wide`.

    Raises:
        KeyError: `wide` lacks a parameter of `narrow`.
        ValueError: a parameter of `narrow` is larger than that of `wide`.
    """
    source = dict(wide.named_parameters())
    for name, parameter in narrow.named_parameters():
        if name not in source:
            raise KeyError(f"parameter {name!r} is missing in the wide module")
        whole = source[name]
        if whole.dim() != parameter.dim() or any(n > w for n, w in zip(parameter.shape, whole.shape, strict=True)):
            raise ValueError(
                f"parameter {name!r} of shape {tuple(parameter.shape)} is no leading block of {tuple(whole.shape)}"
            )
        parameter.copy_(whole[tuple(slice(size) for size in parameter.shape)])
