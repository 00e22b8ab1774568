"""MIRNet, the pretrained denoiser of the paper, cut into three parts.

Called by `pipeline.priors` (loading), `pipeline.prior_training` and everything that needs the prior's features.
Zamir et al., "Learning Enriched Features for Real Image Restoration and Enhancement", arXiv 2003.06792.
Parameter names follow the published checkpoints, so that they load by name.

Legend: B batch, C channels, H height, W width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.priors.base import Prior

NUM_STREAMS = 3  # full, half and quarter resolution
NUM_COLUMNS = 2


class _SpatialAttention(nn.Module):
    """One factor per pixel, from the largest and the mean feature."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential()  # holds the convolution under the published name
        self.spatial.add_module("conv", nn.Conv2d(2, 1, 5, padding=2, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        pooled = torch.cat([features.amax(dim=1, keepdim=True), features.mean(dim=1, keepdim=True)], dim=1)
        return features * torch.sigmoid(self.spatial(pooled))  # (B, 2, H, W) -> (B, 1, H, W)


class _ChannelAttention(nn.Module):
    """One factor per channel, from its mean over the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // 8, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // 8, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features * self.conv_du(features.mean(dim=(2, 3), keepdim=True))


class _DualAttentionUnit(nn.Module):
    """Spatial and channel attention side by side, fused by a 1x1 convolution, with a residual connection."""

    def __init__(self, channels: int, activation: nn.PReLU) -> None:
        super().__init__()
        self.SA = _SpatialAttention()
        self.CA = _ChannelAttention(channels)
        self.body = nn.Sequential(_conv3x3(channels, channels), activation, _conv3x3(channels, channels))
        self.conv1x1 = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        return x + self.conv1x1(torch.cat([self.SA(features), self.CA(features)], dim=1))


class _SelectiveKernelFusion(nn.Module):
    """Sum of the streams, each weighted per channel by a softmax over the streams."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 8, 4)
        self.conv_du = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.PReLU())
        self.fcs = nn.ModuleList(nn.Conv2d(hidden, channels, 1, bias=False) for _ in range(NUM_STREAMS))

    def forward(self, streams: list[Tensor]) -> Tensor:
        full, half, quarter = streams
        descriptor = self.conv_du((full + half + quarter).mean(dim=(2, 3), keepdim=True))
        weights = torch.stack([fc(descriptor) for fc in self.fcs]).softmax(dim=0)  # (3, B, C, 1, 1)
        return weights[0] * full + weights[1] * half + weights[2] * quarter


class _BlurPool(nn.Module):
    """Anti-aliased stride 2: a fixed [1, 2, 1] binomial filter per channel, reflection-padded."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filt", (torch.outer(taps, taps) / 16).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class _Down(nn.Module):
    """Halve height and width, double the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.top = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.PReLU(),
            _conv3x3(channels, channels),
            nn.PReLU(),
            _BlurPool(channels),
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
        )
        self.bot = nn.Sequential(_BlurPool(channels), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.top(x) + self.bot(x)


class _Up(nn.Module):
    """Double height and width, halve the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.top = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.PReLU(),
            nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.PReLU(),
            nn.Conv2d(channels, channels // 2, 1, bias=False),
        )
        self.bot = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(channels, channels // 2, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.top(x) + self.bot(x)


class _Resizer(nn.Module):
    """A chain of x2 steps: `scale` 2 or 4."""

    def __init__(self, step: type[nn.Module], channels: int, scale: int) -> None:
        super().__init__()
        growth = 2.0 if step is _Down else 0.5
        self.body = nn.Sequential(*(step(int(channels * growth**i)) for i in range(scale // 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class _MultiScaleBlock(nn.Module):
    """Three resolution streams that exchange features, fused back to full resolution (the paper's MRB)."""

    def __init__(self, channels: int, activation: nn.PReLU) -> None:
        super().__init__()
        self.channels = channels
        widths = [channels * 2**j for j in range(NUM_STREAMS)]
        # Both columns of a stream are one and the same unit, as in the published network (31.79 M parameters).
        self.blocks = nn.ModuleList(
            nn.ModuleList([_DualAttentionUnit(width, activation)] * NUM_COLUMNS) for width in widths
        )
        self.last_up = nn.ModuleDict({str(j): _Resizer(_Up, widths[j], 2**j) for j in (1, 2)})
        self.down = nn.ModuleDict(
            {
                f"{widths[i]}_{2 ** (j - i)}": _Resizer(_Down, widths[i], 2 ** (j - i))
                for i, j in ((0, 2), (0, 1), (1, 2))
            }
        )
        self.up = nn.ModuleDict(
            {f"{widths[i]}_{2 ** (i - j)}": _Resizer(_Up, widths[i], 2 ** (i - j)) for i, j in ((2, 0), (2, 1), (1, 0))}
        )
        self.conv_out = _conv3x3(channels, channels)
        self.selective_kernel = nn.ModuleList(_SelectiveKernelFusion(width) for width in widths)

    def _resize(self, x: Tensor, source: int, target: int) -> Tensor:
        if source == target:
            return x
        resizers = self.down if source < target else self.up
        return resizers[f"{self.channels * 2**source}_{2 ** abs(source - target)}"](x)

    def _attend(self, stream: int, column: int, x: Tensor) -> Tensor:
        return self.blocks.get_submodule(f"{stream}.{column}")(x)

    def forward(self, x: Tensor) -> Tensor:
        streams = [self._attend(0, 0, x)]
        for j in range(1, NUM_STREAMS):
            streams.append(self._attend(j, 0, self._resize(streams[j - 1], j - 1, j)))
        # Every fusion reads the streams as they were before this column.
        fused = [
            self.selective_kernel[j]([self._resize(stream, i, j) for i, stream in enumerate(streams)])
            for j in range(NUM_STREAMS)
        ]
        streams = [self._attend(j, 1, features) for j, features in enumerate(fused)]
        full = [streams[0], self.last_up["1"](streams[1]), self.last_up["2"](streams[2])]
        return x + self.conv_out(self.selective_kernel[0](full))


class _RecursiveResidualGroup(nn.Module):
    def __init__(self, channels: int, num_blocks: int, activation: nn.PReLU) -> None:
        super().__init__()
        blocks = [_MultiScaleBlock(channels, activation) for _ in range(num_blocks)]
        self.body = nn.Sequential(*blocks, _conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class MIRNet(Prior):
    """MIRNet with `num_channels` features (64 in the paper), three recursive residual groups, one per part.

    Args:
        num_channels: C, features at every cut; a multiple of 8.
        num_blocks: multi-scale residual blocks per group; 2 as published.

    Raises:
        ValueError: `num_channels` is not a positive multiple of 8, or there are no blocks.
    """

    size_multiple = 4

    def __init__(self, *, num_channels: int = 64, num_blocks: int = 2) -> None:
        super().__init__()
        if num_channels <= 0 or num_channels % 8:
            raise ValueError(f"`num_channels` must be a positive multiple of 8, got {num_channels}")
        if num_blocks < 1:
            raise ValueError(f"`num_blocks` must be at least 1, got {num_blocks}")
        self.num_channels = num_channels
        self.sizes = {"num_channels": num_channels, "num_blocks": num_blocks}
        activation = nn.PReLU()  # one scalar for all 36 attention units, as published
        self.conv_in = _conv3x3(3, num_channels)
        self.body = nn.ModuleList(_RecursiveResidualGroup(num_channels, num_blocks, activation) for _ in range(3))
        self.conv_out = _conv3x3(num_channels, 3)

    def run_part(self, part_index: int, x: Tensor) -> Tensor:
        """Run the convolution and the group of one part; see `Prior.run_part`."""
        if part_index == 0:
            return self.body[0](self.conv_in(x))
        features = self.body[part_index](x)
        return self.conv_out(features) if part_index == 2 else features


def mirnet_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Read the keyword arguments of `MIRNet` off the tensors of a checkpoint.

    Args:
        tensors: by published name; `conv_in.weight` among them.
    """
    blocks = {name.split(".")[3] for name in tensors if name.startswith("body.0.body.") and ".blocks." in name}
    return {"num_channels": tensors["conv_in.weight"].shape[0], "num_blocks": max(1, len(blocks))}


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
