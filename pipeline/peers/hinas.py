"""HiNAS: a cell of small operators for every layer, and the width of every layer, at full resolution throughout.

Used by the comparison of architecture searches and, through `pipeline.baselines`, wherever its networks are loaded.
Zhang et al., "Memory-Efficient Hierarchical Neural Architecture Search for Image Denoising", arXiv 1909.08228.

Ours differs from the release: colour images; one activation; no sigmoid behind the residual output, which could reach
neither black nor white; and the input from two layers back is that along the same path of widths, so that a derived
network is exactly what its supernet computes for its choices.

Legend: B batch, C channels, H height, W width, L layers, E edges of a cell, O operators.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.conv import LEAKY_RELU_SLOPE
from pipeline.losses import structural_similarity
from pipeline.peers.darts import DartsSettings, Supernet
from pipeline.peers.hinas_space import EDGES_PER_NODE, NUM_INPUTS, OPS, CellEdges, HinasGenotype, HinasSpace

DILATION = 2
SSIM_WEIGHT = 0.5
_SMALLEST_SSIM = 1e-3  # keeps the logarithm finite


class HinasSupernet(Supernet[HinasGenotype]):
    """All cells at all widths. The widths of a layer share its alpha.

    `arch` holds alpha, (L, E, O), the operators; beta, (L, levels, 3), which level a level of a layer listens to: the
    narrower, the same, the wider; and final, (1, levels), the level that the image is made from.
    """

    settings = DartsSettings(warmup_share=0.2)

    has_source: Tensor

    def __init__(self, space: HinasSpace) -> None:
        super().__init__()
        self.space = space
        all_ops = [[(source, op) for node_, source in space.edges if node_ == node for op in OPS]
                   for node in range(space.num_nodes)]  # fmt: skip
        self.skeleton = _Skeleton(space.num_channels, space.levels, [all_ops] * space.num_layers)
        num_layers, num_levels = space.num_layers, space.num_levels
        shapes = {"alpha": (num_layers, len(space.edges), len(OPS)), "beta": (num_layers, num_levels, 3),
                  "final": (1, num_levels)}  # fmt: skip
        self.arch = nn.ParameterDict({name: 1e-3 * torch.randn(shape) for name, shape in shapes.items()})
        has_source = torch.zeros(num_layers, num_levels, 3, dtype=torch.bool)
        for layer, (before, levels) in enumerate(pairwise(((0,), *space.levels))):
            for level in levels:
                has_source[layer, level] = torch.tensor([level + step in before for step in (-1, 0, 1)])
        self.register_buffer("has_source", has_source, persistent=False)

    def probabilities(self) -> dict[str, Tensor]:
        """Return the softmax of every level of `arch`; 0 where there is no such source."""
        is_last = torch.tensor([level in self.space.levels[-1] for level in range(self.space.num_levels)])
        mask = self.has_source
        beta = self.arch["beta"].masked_fill(~mask & mask.any(dim=-1, keepdim=True), -torch.inf).softmax(dim=-1) * mask
        final = self.arch["final"].masked_fill(~is_last.to(mask.device), -torch.inf).softmax(dim=-1)
        return {"alpha": self.arch["alpha"].softmax(dim=-1), "beta": beta, "final": final}

    def forward(self, noisy: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Denoise (B, 3, H, W) with given weights of the shapes of `arch`, their softmax by default."""
        return self.skeleton(noisy, self.probabilities() if weights is None else weights)

    def loss(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """Return the squared error plus half the negative logarithm (base 10) of SSIM."""
        denoised = self(noisy)
        similarity = structural_similarity(denoised, clean).clamp_min(_SMALLEST_SSIM)
        return F.mse_loss(denoised, clean) - SSIM_WEIGHT * similarity.log10()

    @torch.no_grad()
    def derive(self) -> HinasGenotype:
        """Take the likeliest path of widths (Viterbi), and for every node its two strongest edges, never `none`.

        Probabilities count relative to chance: otherwise an undecided search would prefer levels with few sources.
        """
        p = self.probabilities()
        relative = p["beta"] * self.has_source.sum(dim=-1, keepdim=True)
        best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # by level: log-score and path so far
        for beta, levels in zip(relative.log().tolist(), self.space.levels, strict=True):
            best = {
                level: max((best[level + step][0] + beta[level][step + 1], (*best[level + step][1], level))
                           for step in (-1, 0, 1) if level + step in best)
                for level in levels
            }  # fmt: skip
        final = p["final"][0].log().tolist()
        return HinasGenotype(
            num_channels=self.space.num_channels,
            levels=max((score + final[level], path) for level, (score, path) in best.items())[1],
            cells=tuple(map(self._derive_cell, p["alpha"])),
        )

    def _derive_cell(self, alpha: Tensor) -> CellEdges:
        p, chosen = alpha[:, :-1].max(dim=-1)  # without `none`, the last operator
        nodes = []
        for node in range(self.space.num_nodes):
            edges = [(p[e].item(), source, OPS[int(chosen[e])])
                     for e, (node_, source) in enumerate(self.space.edges) if node_ == node]  # fmt: skip
            kept = sorted(edges, reverse=True)[:EDGES_PER_NODE]
            nodes.append(tuple(sorted((source, op) for _, source, op in kept)))
        return tuple(nodes)


class HinasNetwork(nn.Module):
    """The denoiser of one genotype, or of what its `to_dict` returned."""

    def __init__(self, genotype: HinasGenotype | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(genotype, HinasGenotype):
            genotype = HinasGenotype.from_dict(genotype)
        self.genotype = genotype
        self.sizes = {"genotype": genotype.to_dict()}
        self.skeleton = _Skeleton(genotype.num_channels, [(level,) for level in genotype.levels], genotype.cells)

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W) images of any size, in [0, 1] plus noise; the result is not clamped."""
        return self.skeleton(noisy, None)


class _Skeleton(nn.Module):
    """Stem, a cell at every level of every layer with what brings its inputs to its width, and image outputs."""

    def __init__(
        self, num_channels: int, levels: Sequence[Sequence[int]], cells: Sequence[Sequence[Sequence[tuple[int, str]]]]
    ) -> None:
        super().__init__()
        self.levels = ((0,), *levels)
        widths = [num_channels + num_channels * level // 2 for level in range(max(map(max, levels)) + 1)]
        num_nodes = len(cells[0])
        self.stem = nn.Conv2d(3, num_channels, 3, padding=1)
        self.adapters = nn.ModuleDict()
        self.cells = nn.ModuleDict()
        for layer, (before, after) in enumerate(pairwise(self.levels)):
            for level in after:
                for source in before:
                    if abs(source - level) <= 1:
                        newest = widths[source] * (num_nodes if layer else 1)
                        self.adapters[f"{layer}_{source}_{level}"] = nn.ModuleList(
                            _unit(nn.Conv2d(channels, widths[level], 1, bias=False), widths[level])
                            for channels in (widths[source], newest)
                        )
                self.cells[f"{layer}_{level}"] = _Cell(widths[level], cells[layer])
        self.images = nn.ModuleDict(
            {str(level): nn.Conv2d(num_nodes * widths[level], 3, 3, padding=1) for level in self.levels[-1]}
        )

    def forward(self, noisy: Tensor, weights: Mapping[str, Tensor] | None) -> Tensor:
        """Without weights there is one level per layer, and one source of it."""
        stem = self.stem(noisy)
        state = {0: (stem, stem)}  # by level: the input of the newest cell, and its output
        for layer, levels in enumerate(self.levels[1:]):
            new_state = {}
            for level in levels:
                inputs: list[Tensor | None] = [None] * NUM_INPUTS
                for source, features in state.items():
                    if abs(source - level) <= 1:
                        adapters = self.adapters[f"{layer}_{source}_{level}"]
                        assert isinstance(adapters, nn.ModuleList)
                        for i, adapt in enumerate(adapters):
                            y = adapt(features[i])
                            y = y if weights is None else y * weights["beta"][layer, level, source - level + 1]
                            inputs[i] = y if (total := inputs[i]) is None else total + y
                alpha = None if weights is None else weights["alpha"][layer]
                new_state[level] = (inputs[-1], self.cells[f"{layer}_{level}"](inputs, alpha))
            state = new_state
        residual = [self.images[str(level)](output) for level, (_, output) in state.items()]
        if weights is not None:
            residual = [y * weights["final"][0, level] for y, level in zip(residual, state, strict=True)]
        return noisy + torch.stack(residual).sum(dim=0)


class _Cell(nn.Module):
    """Nodes that each sum operators of earlier nodes; the output is all nodes side by side."""

    def __init__(self, channels: int, nodes: Sequence[Sequence[tuple[int, str]]]) -> None:
        super().__init__()
        self.nodes = nodes
        self.edge_ops = nn.ModuleDict(
            {f"{node}_{source}_{op}": _create_op(op, channels)
             for node, edges in enumerate(nodes) for source, op in edges if op != "none"}
        )  # fmt: skip
        # Edges are counted as in `HinasSpace.edges`: node n has n + 2 of them.
        self.first_edge = [sum(NUM_INPUTS + m for m in range(node)) for node in range(len(nodes))]

    def forward(self, inputs: Sequence[Tensor], alpha: Tensor | None) -> Tensor:
        """Map the two (B, C, H, W) inputs to (B, nodes C, H, W); `alpha`, (E, O), weights the operators."""
        states = list(inputs)
        for node, edges in enumerate(self.nodes):
            total = torch.zeros_like(states[0])
            for source, op in edges:
                if op == "none":
                    continue
                y = self.edge_ops[f"{node}_{source}_{op}"](states[source])
                total = total + (y if alpha is None else y * alpha[self.first_edge[node] + source, OPS.index(op)])
            states.append(total)
        return torch.cat(states[NUM_INPUTS:], dim=1)


def _create_op(name: str, channels: int) -> nn.Module:
    """An activation, a convolution (plain, separable or dilated) and its normalisation; or the identity."""
    if name == "skip":
        return nn.Identity()
    kind, kernel_size = name[:-1], int(name[-1])
    dilation = DILATION if kind == "dil" else 1
    conv: nn.Module = nn.Conv2d(
        channels, channels, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation, bias=False,
        groups=1 if kind == "conv" else channels,
    )  # fmt: skip
    if kind != "conv":
        conv = nn.Sequential(conv, nn.Conv2d(channels, channels, 1, bias=False))
    return _unit(conv, channels)


def _unit(conv: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.LeakyReLU(LEAKY_RELU_SLOPE), conv, nn.BatchNorm2d(channels))
