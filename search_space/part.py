"""What every part has around its cells: stem, tail and long skip, and the mixing of a cell's sources.

Shared by `supernet` (all candidates) and `network` (one architecture), so that both compute the same thing.

Legend: B batch, C channels, H height, W width.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ops import OpSpec, create_op, fit_channels
from search_space.space import SearchSpace

LAST_PART = 2


class PartFrame(nn.Module):
    """Stem, tail, long skip and, in the last part, the image output; a subclass puts cells between.

    Part 0 maps a noisy image (B, 3, H, W) to features (B, C, H, W), part 1 features to features, part 2 features to
    the residual image (B, 3, H, W). The tail starts at zero, so an untrained part is its stem (part 0) or the identity
    (parts 1 and 2) before the image output.

    The stem ends with an activation, which the paper does not mention: without it a light part, most of whose cells
    skip, is linear. Three parts of skips reached 30.0 dB with it and 28.4 dB without; with two `conv_d1` cells in each
    part it was 30.1 dB either way (1500 steps, sigma 25, C = 16, seed 0; AMD EPYC, 2026-11-24).
    """

    def __init__(self, part_index: int, space: SearchSpace, last_channels: int) -> None:
        super().__init__()
        if part_index not in (0, 1, 2):
            raise ValueError(f"`part_index` must be 0, 1 or 2, got {part_index!r}")
        self.part_index = part_index
        specs = frame_specs(part_index, space, last_channels, height=1, width=1)
        self.stem = create_op(specs["stem"])
        self.tail = create_op(specs["tail"])
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)
        self.image = create_op(specs["image"]) if part_index == LAST_PART else None

    def close(self, x: Tensor, stem: Tensor, last: Tensor) -> Tensor:
        """Add the long skip to the tail of the last cell's output; give the residual image in the last part.

        Args:
            x: the part's input, (B, 3, H, W) for part 0, (B, C, H, W) for parts 1 and 2.
            stem: (B, C, H, W), the stem's output; the long skip of part 0.
            last: (B, any, H, W), the last cell's output.

        Returns:
            (B, C, H, W) features, or the (B, 3, H, W) residual image for part 2.
        """
        features = self.tail(last) + (stem if self.part_index == 0 else x)
        return features if self.image is None else self.image(features)


def frame_specs(
    part_index: int, space: SearchSpace, last_channels: int, *, height: int, width: int
) -> dict[str, OpSpec]:
    """Return the OpSpec of `stem`, `tail`, `long_skip` and, in the last part, `image`."""
    num_channels, spec = space.num_channels, partial(space.op_spec, height=height, width=width)
    specs = {
        "stem": spec("conv_d1", 3 if part_index == 0 else num_channels, num_channels),
        "tail": spec("conv3x3", last_channels, num_channels),
        "long_skip": spec("add", num_channels, num_channels),
    }
    if part_index == LAST_PART:
        specs["image"] = spec("conv3x3", num_channels, 3)
    return specs


def mix(features: Sequence[Tensor], weights: Sequence[Tensor | float], channels: int) -> Tensor:
    """Weighted sum of a cell's sources, each cut or zero-padded to `channels`.

    Args:
        features: (B, any, H, W) each, at least one.
        weights: scalar per feature; a Python 1.0 in front costs nothing.
        channels: of the result.
    """
    first, weight = fit_channels(features[0], channels), weights[0]
    total = first if isinstance(weight, float) and weight == 1.0 else first * weight
    for feature, weight in zip(features[1:], weights[1:], strict=True):
        total = torch.addcmul(total, fit_channels(feature, channels), torch.as_tensor(weight).to(total))
    return total
