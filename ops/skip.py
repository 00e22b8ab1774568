"""skip: the identity, cut or zero-padded to a width.

Registered for `search_space`. "skip" of arXiv 2502.13359, whose skip(64) takes the first 64 channels.

Legend: B batch, C channels, H height, W width.
"""

from torch import Tensor, nn

from ops.registry import register_op
from ops.slimmable import fit_channels
from ops.spec import OpSpec


class Skip(nn.Module):
    """The identity between any two widths; it has no parameters."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Map (B, C, H, W) to its first `out_channels` channels, zero-padded where it has fewer."""
        return fit_channels(x, out_channels or self.out_channels)


@register_op("skip")
def _skip(spec: OpSpec) -> nn.Module:
    return Skip(spec.out_channels)
