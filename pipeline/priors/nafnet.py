"""NAFNet, a plain U-Net of gated blocks: a strong baseline, and a prior cut into three parts.

Called by `pipeline.priors` (loading), `pipeline.baselines` and `pipeline.prior_training`.
Chen et al., "Simple Baselines for Image Restoration", arXiv 2204.04676.
Parameter names follow the published checkpoints, so that they load by name.

Legend: B batch, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.priors.base import Prior

EPSILON = 1e-6  # of the variance in every normalisation, as published


class _LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, C, H, W) -> (B, H, W, C) and back


class _NAFBlock(nn.Module):
    """Gated depthwise convolution with channel attention, then a gated 1x1 MLP, both residual.

    There is no activation function: the product of the two halves of the channels is the only non-linearity. Both
    residual branches are scaled by parameters that start at zero, so a new block is the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = _LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.norm2 = _LayerNorm2d(channels)
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = _gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(features * self.sca(features)) * self.beta
        return x + self.conv5(_gate(self.conv4(self.norm2(x)))) * self.gamma


class NAFNet(Prior):
    """NAFNet with `num_channels` features at full resolution, doubled at every level below.

    The network is one U-Net, cut where its features have full resolution and C channels: after the first encoder, and
    before the last decoder. Part 1 adds the skip connection between the two itself, because its input is what that
    connection carries; so the three parts in a row are exactly the published network. They are unequal: part 1 holds
    all other levels, nearly all parameters.

    Inputs are padded with zeros to `size_multiple`, as published. Channel attention averages over the whole image; the
    published variant for large images, which averages locally, is not offered.

    Args:
        num_channels: C (32 or 64 as published).
        encoder_blocks: blocks at every level on the way down, the full resolution first; its length is the number of
            levels. Published for SIDD: 2, 2, 4, 8.
        middle_blocks: blocks at the lowest resolution; published for SIDD: 12.
        decoder_blocks: blocks at every level on the way up, the full resolution last; published for SIDD: 2, 2, 2, 2.

    Raises:
        ValueError: a count is impossible.
    """

    pads_with_zeros = True

    def __init__(
        self,
        *,
        num_channels: int = 32,
        encoder_blocks: Sequence[int] = (2, 2, 4, 8),
        middle_blocks: int = 12,
        decoder_blocks: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        num_levels = len(encoder_blocks)
        if num_channels < 1:
            raise ValueError(f"`num_channels` must be at least 1, got {num_channels}")
        if middle_blocks < 0:
            raise ValueError(f"`middle_blocks` must not be negative, got {middle_blocks}")
        if num_levels < 1 or len(decoder_blocks) != num_levels or min(*encoder_blocks, *decoder_blocks) < 0:
            raise ValueError(
                "`encoder_blocks` and `decoder_blocks` must hold as many counts, at least one, none negative, got "
                f"{tuple(encoder_blocks)} and {tuple(decoder_blocks)}"
            )
        self.num_channels = num_channels
        self.size_multiple = 2**num_levels
        self.sizes = {
            "num_channels": num_channels, "encoder_blocks": list(encoder_blocks), "middle_blocks": middle_blocks,
            "decoder_blocks": list(decoder_blocks),
        }  # fmt: skip
        widths = [num_channels * 2**level for level in range(num_levels)]
        self.intro = nn.Conv2d(3, num_channels, 3, padding=1)
        self.encoders = nn.ModuleList(map(_blocks, widths, encoder_blocks))
        self.downs = nn.ModuleList(nn.Conv2d(width, 2 * width, 2, stride=2) for width in widths)
        self.middle_blks = _blocks(2 * widths[-1], middle_blocks)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1, bias=False), nn.PixelShuffle(2)) for width in widths[::-1]
        )
        self.decoders = nn.ModuleList(map(_blocks, widths[::-1], decoder_blocks))
        self.ending = nn.Conv2d(num_channels, 3, 3, padding=1)

    def run_part(self, part_index: int, x: Tensor) -> Tensor:
        """Run one part; see `Prior.run_part`.

        Raises:
            ValueError: height or width is no multiple of `size_multiple`.
        """
        height, width = x.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(
                f"the parts of this NAFNet need a height and width that are multiples of {self.size_multiple}, "
                f"got {height} x {width}"
            )
        if part_index == 0:
            return self.encoders[0](self.intro(x))
        if part_index == 2:
            return self.ending(self.decoders[-1](x))
        skips = [x]  # what the first encoder gave
        for encoder, down in zip(self.encoders[1:], self.downs[:-1], strict=True):
            skips.append(encoder(down(skips[-1])))
        features = self.middle_blks(self.downs[-1](skips[-1]))
        for up, decoder in zip(self.ups[:-1], self.decoders[:-1], strict=True):
            features = decoder(up(features) + skips.pop())
        return self.ups[-1](features) + skips.pop()


def nafnet_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int | list[int]]:
    """Read the keyword arguments of `NAFNet` off the tensors of a checkpoint.

    Args:
        tensors: by published name; `intro.weight` among them.
    """

    def count(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})

    levels = range(count("downs."))
    return {
        "num_channels": tensors["intro.weight"].shape[0],
        "encoder_blocks": [count(f"encoders.{level}.") for level in levels],
        "middle_blocks": count("middle_blks."),
        "decoder_blocks": [count(f"decoders.{level}.") for level in levels],
    }


def _blocks(channels: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(_NAFBlock(channels) for _ in range(num_blocks)))


def _gate(x: Tensor) -> Tensor:
    """(B, 2C, H, W) -> (B, C, H, W): the product of the two halves."""
    first, second = x.chunk(2, dim=1)
    return first * second
