"""CLEARER: parallel or fusion, decided for every module of a fixed multi-resolution skeleton.

Used by the comparison of architecture searches and, through `pipeline.baselines`, wherever its networks are loaded.
Gou et al., "CLEARER: Multi-Scale Neural Architecture Search for Image Restoration", NeurIPS 2020.

Ours differs from the release: colour images; sizes are arguments; and a mixed module gives the same features to both
of its candidates, where the release lets the parallel one overwrite what the fusion one reads, so that its searched
network is not the one it retrains.

Legend: B batch, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.peers.clearer_space import MODULES, ClearerGenotype, ClearerSpace
from pipeline.peers.darts import DartsSettings, Supernet

NUM_BOTTLENECKS = 2
BOTTLENECK_GROWTH = 4
ENTROPY_WEIGHT = 0.01
INIT_STD = 0.001  # of every convolution


class ClearerSupernet(Supernet[ClearerGenotype]):
    """The skeleton with both candidates in every module."""

    settings = DartsSettings()

    def __init__(self, space: ClearerSpace) -> None:
        super().__init__()
        self.space = space
        self.skeleton = _Skeleton(space.num_channels, [MODULES] * space.num_modules)
        self.arch = nn.ParameterDict({"alpha": 1e-3 * torch.randn(space.num_modules, len(MODULES))})

    def probabilities(self) -> dict[str, Tensor]:
        """Return the softmax of every module's two logits, (modules, 2)."""
        return {"alpha": self.arch["alpha"].softmax(dim=-1)}

    def forward(self, noisy: Tensor, weights: Tensor | None = None) -> Tensor:
        """Denoise (B, 3, H, W) with given (modules, 2) weights of the candidates, their softmax by default."""
        return self.skeleton(noisy, self.probabilities()["alpha"] if weights is None else weights)

    def loss(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """Return the squared error, plus the mean entropy (base 10) that drives the choices apart."""
        p = self.probabilities()["alpha"]
        entropy = -(p * p.log10()).sum(dim=-1).mean()
        return F.mse_loss(self(noisy, p), clean) + ENTROPY_WEIGHT * entropy

    def derive(self) -> ClearerGenotype:
        """Take the likelier candidate of every module."""
        chosen = self.arch["alpha"].argmax(dim=-1).tolist()
        return ClearerGenotype(num_channels=self.space.num_channels, modules=tuple(MODULES[index] for index in chosen))


class ClearerNetwork(nn.Module):
    """The denoiser of one genotype, or of what its `to_dict` returned."""

    def __init__(self, genotype: ClearerGenotype | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(genotype, ClearerGenotype):
            genotype = ClearerGenotype.from_dict(genotype)
        self.genotype = genotype
        self.sizes = {"genotype": genotype.to_dict()}
        self.skeleton = _Skeleton(genotype.num_channels, [(name,) for name in genotype.modules])

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W) images of any size, in [0, 1] plus noise; the result is not clamped."""
        return self.skeleton(noisy, None)


class _Skeleton(nn.Module):
    """HRNet's form without its stem's striding: stages that each open one more branch of half the resolution.

    The image comes out of the last layer directly; there is no residual connection around the network.
    """

    def __init__(self, num_channels: Sequence[int], offered: Sequence[Sequence[str]]) -> None:
        super().__init__()
        base, wide, num_stages = num_channels[0], BOTTLENECK_GROWTH * num_channels[0], len(num_channels) - 1
        self.modules_per_stage = len(offered) // num_stages
        self.stem = nn.Sequential(_conv(3, base, 3), nn.ReLU())
        self.bottlenecks = nn.Sequential(
            *(_Residual(base if i == 0 else wide, base, wide, (1, 3, 1)) for i in range(NUM_BOTTLENECKS))
        )
        self.narrow = nn.Sequential(_conv(wide, base, 3), nn.ReLU())
        self.opened = nn.ModuleList(
            nn.Sequential(_conv(wide if i == 0 else num_channels[i], num_channels[i + 1], 3, stride=2), nn.ReLU())
            for i in range(num_stages)
        )
        self.mixed = nn.ModuleList(
            nn.ModuleDict({name: _CANDIDATES[name](num_channels[: i // self.modules_per_stage + 2]) for name in names})
            for i, names in enumerate(offered)
        )
        self.merge = nn.ModuleList(_conv(channels, base, 1) for channels in num_channels[1:])
        self.image = nn.Conv2d(base, 3, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=INIT_STD)

    def forward(self, noisy: Tensor, weights: Tensor | None) -> Tensor:
        features = self.bottlenecks(self.stem(noisy))
        branches = [self.narrow(features)]
        for index, candidates in enumerate(self.mixed):
            stage, position = divmod(index, self.modules_per_stage)
            if position == 0:
                branches = [*branches, self.opened[stage](features if stage == 0 else branches[-1])]
            assert isinstance(candidates, nn.ModuleDict)
            outputs = [candidate(branches) for candidate in candidates.values()]
            if weights is None:
                (branches,) = outputs
            else:
                branches = [
                    sum((w * y for w, y in zip(weights[index], ys, strict=True)), start=torch.zeros(()))
                    for ys in zip(*outputs, strict=True)
                ]
        total = branches[0]
        for merge, branch in zip(self.merge, branches[1:], strict=True):
            total = total + _enlarge(merge(branch), total)
        return self.image(F.relu(total))


class _Parallel(nn.Module):
    """One residual block per branch; no branch sees another."""

    def __init__(self, num_channels: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Residual(c, c, c, (3, 3)) for c in num_channels)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        return [block(x) for block, x in zip(self.blocks, branches, strict=True)]


class _Fusion(nn.Module):
    """Every branch becomes the sum of all, brought to its resolution and channels."""

    def __init__(self, num_channels: Sequence[int]) -> None:
        super().__init__()
        self.paths = nn.ModuleDict()
        for target, target_channels in enumerate(num_channels):
            for source, channels in enumerate(num_channels):
                if source > target:
                    self.paths[f"{source}_{target}"] = _conv(channels, target_channels, 1)
                elif source < target:
                    steps = [
                        m for _ in range(target - source - 1) for m in (_conv(channels, channels, 3, 2), nn.ReLU())
                    ]
                    self.paths[f"{source}_{target}"] = nn.Sequential(*steps, _conv(channels, target_channels, 3, 2))

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        fused = []
        for target, total in enumerate(branches):
            size = total
            for source, x in enumerate(branches):
                if source != target:
                    y = self.paths[f"{source}_{target}"](x)
                    total = total + (_enlarge(y, size) if source > target else y)
            fused.append(F.relu(total))
        return fused


_CANDIDATES: dict[str, type[nn.Module]] = {"parallel": _Parallel, "fusion": _Fusion}


class _Residual(nn.Module):
    """A chain of normalised convolutions around which the input passes: ResNet's basic block or bottleneck."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        widths = [in_channels, *[hidden] * (len(kernel_sizes) - 1), out_channels]
        layers: list[nn.Module] = []
        for kernel_size, before, after in zip(kernel_sizes, widths, widths[1:], strict=False):
            layers += [_conv(before, after, kernel_size), nn.ReLU()]
        self.chain = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Identity() if in_channels == out_channels else _conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.chain(x))


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution and its normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")
