"""The structure around the cells: down- and up-sampling, and the plain convolution of stems and tails.

Built by `search_space` through `create_op` and priced by `latency`, but not on offer in a cell. Section 3 of arXiv
2502.13359 names neither kernel sizes nor the fusion; a 1x1 fusion is what its parameters and multiply-adds allow.

Legend: B batch, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.registry import register_op
from ops.slimmable import SlimmableConv2d, fit_channels
from ops.spec import OpSpec


class WeightedSum(nn.Module):
    """What one more source of a cell costs: two features weighted and summed. Stands in tables, not in networks."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((2,), 0.5), persistent=False)

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Sum (B, C, H, W) with itself, as a cell sums two sources."""
        x = x if out_channels is None else fit_channels(x, out_channels)
        return torch.addcmul(x * self.weights[0], x, self.weights[1])


class UpFuse(nn.Module):
    """Double the height and width of a coarse feature by pixel shuffle and fuse it with a fine one.

    The paper's 1x1 fusion of the concatenation [coarse; fine] is the sum of one 1x1 convolution of each. Nothing
    nonlinear stands between that of the coarse feature and the 3x3 convolution before it, so their weights are
    multiplied in place of their features: one convolution at the coarse resolution, a quarter less time for the module.
    Learned as one convolution, the toy network of Table I lost 0.5 dB (seeds 0 to 2, 2500 steps, 2026-11-27).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.expand = SlimmableConv2d(in_channels, 4 * out_channels, 3)
        self.fuse_coarse = SlimmableConv2d(out_channels, out_channels, 1)
        self.fuse_fine = SlimmableConv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, coarse: Tensor, fine: Tensor, out_channels: int | None = None) -> Tensor:
        """Fuse two features of neighbouring resolutions.

        Args:
            coarse: (B, <= in_channels, h, w).
            fine: (B, any, H, W) with H <= 2h and W <= 2w; it is cut or zero-padded to `out_channels`.
            out_channels: of the result, all by default.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: `fine` is more than twice as high or wide as `coarse`.
        """
        out_channels = out_channels or self.out_channels
        height, width = fine.shape[2:]
        if height > 2 * coarse.shape[2] or width > 2 * coarse.shape[3]:
            raise ValueError(
                f"`fine` must be at most twice as high and wide as `coarse`, got {height} x {width} "
                f"and {coarse.shape[2]} x {coarse.shape[3]}"
            )
        # Output channel c comes from channels 4c to 4c + 3, so a prefix of the shuffled is shuffled from a prefix.
        weight, bias = self._expand_and_fuse(coarse.shape[1], out_channels)
        coarse = F.pixel_shuffle(F.conv2d(coarse, weight, bias, padding=1), 2)  # (B, 4C, h, w) -> (B, C, 2h, 2w)
        coarse = coarse[:, :, :height, :width]  # an odd height or width was rounded up on the way down
        return coarse + self.fuse_fine(fit_channels(fine, out_channels), out_channels)

    def _expand_and_fuse(self, in_channels: int, out_channels: int) -> tuple[Tensor, Tensor]:
        """Return weight and bias of `expand` followed by `fuse_coarse` behind the shuffle, at these widths."""
        fuse = self.fuse_coarse.weight[:out_channels, :out_channels, 0, 0]
        rows = self.expand.weight[: 4 * out_channels, :in_channels].permute(0, 2, 3, 1)  # (4C, 3, 3, C_in)
        weight = (fuse @ rows.reshape(out_channels, -1)).view(rows.shape).permute(0, 3, 1, 2)
        assert self.expand.bias is not None and self.fuse_coarse.bias is not None
        bias = torch.addmm(
            self.fuse_coarse.bias[:out_channels, None], fuse, self.expand.bias[: 4 * out_channels].view(out_channels, 4)
        )
        return weight, bias.flatten()


@register_op("down", candidate=False)
def _down(spec: OpSpec) -> nn.Module:
    """Halve height and width, rounded up, by a 3x3 convolution of stride 2."""
    return SlimmableConv2d(spec.in_channels, spec.out_channels, 3, stride=2)


@register_op("up", candidate=False)
def _up(spec: OpSpec) -> nn.Module:
    """Called as up(coarse, fine, out_channels=None); height and width of the spec are those of `coarse`."""
    return UpFuse(spec.in_channels, spec.out_channels)


@register_op("conv3x3", candidate=False)
def _conv3x3(spec: OpSpec) -> nn.Module:
    """A plain 3x3 convolution without activation: stems, tails and the residual image."""
    return SlimmableConv2d(spec.in_channels, spec.out_channels, 3)


@register_op("add", candidate=False)
def _add(spec: OpSpec) -> nn.Module:
    return WeightedSum()
