"""PartSupernet: every candidate of one part in one module.

Trained by `pipeline.part_search`, read out by `derive`, and the source of inherited weights for `network`.
arXiv 2502.13359, Section III-B.

Legend: B batch, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

from ops import create_op
from search_space.arch_parameters import ArchParameters, Choices
from search_space.part import PartFrame, mix
from search_space.space import DIRECTIONS, WIDTHS, CellPosition, Pathways, SearchSpace


def cell_key(cell: CellPosition) -> str:
    """Return the name of a cell inside modules, for example `r0_l1`."""
    return f"r{cell.resolution}_l{cell.layer}"


class MixedCell(nn.Module):
    """All candidate operations of one cell, and the resamplers of its sources, at full width and slimmable."""

    def __init__(self, cell: CellPosition, space: SearchSpace) -> None:
        super().__init__()
        self.cell = cell
        self.space = space

        def create(name: str) -> nn.Module:
            spec = space.op_spec(name, space.num_channels, space.num_channels, height=1, width=1)
            return create_op(spec, slimmable=True)

        self.ops = nn.ModuleDict({name: create(name) for name in space.candidate_ops})
        directions = space.directions(cell)
        self.up = create("up") if "up" in directions else None
        self.down = create("down") if "down" in directions else None

    def gather(
        self,
        features: dict[CellPosition, Tensor],
        channels: int,
        pathways: Pathways,
        resolution: Tensor,
        dense: Tensor,
    ) -> Tensor:
        """Return the cell's input: O_RES (Eq. 1) and O_CONN (Eq. 2), averaged where both exist.

        The paper leaves open how the two combine. A plain sum doubles the scale at every layer, 64 times over a part;
        the average keeps it.

        Args:
            features: outputs of earlier cells, (B, any, H, W) each.
            channels: width of the result.
            pathways: the ones that are there; nothing else is read or resampled.
            resolution: (3,) weights in the order of `DIRECTIONS`.
            dense: (L,) weights.

        Returns:
            (B, channels, H, W).
        """
        space, cell = self.space, self.cell
        share = 0.5 if pathways.layers else 1.0
        by_layer, by_direction = (share * dense).unbind(), (share * resolution).unbind()
        resampled: list[Tensor] = []
        weights: list[Tensor] = []
        own = {layer: by_layer[layer] for layer in pathways.layers}  # the one before, kept twice, counts once
        for direction in pathways.directions:
            source, weight = space.source(cell, direction), by_direction[DIRECTIONS.index(direction)]
            if direction == "same":
                own[source.layer] = own[source.layer] + weight if source.layer in own else weight
                continue
            weights.append(weight)
            if self.up is not None and direction == "up":
                resampled.append(self.up(features[source], features[space.opened_from(cell)], channels))
            elif self.down is not None:
                resampled.append(self.down(features[source], channels))
        same = [features[CellPosition(cell.resolution, layer)] for layer in own]
        return mix(resampled + same, [*weights, *own.values()], channels)

    def forward(
        self,
        x: Tensor,
        active: tuple[int, ...],
        factors: Tensor | None,
        out_channels: int,
        channel_factors: Tensor | None,
    ) -> Tensor:
        """Run the active operators on (B, C_in, H, W) and sum them: sum of factor_i O_i(x), Eqs. (3), (5).

        Args:
            x: the gathered input.
            active: indices of the operators to run.
            factors: (K,) factors, or None for 1.
            out_channels: width of the output.
            channel_factors: (out_channels,) straight-through ones that carry the gradient of gamma, or None.
        """
        total: Tensor | None = None
        for index in active:
            y = self.ops[self.space.candidate_ops[index]](x, out_channels)
            scale = None if factors is None else factors[index]
            if channel_factors is not None:
                by_channel = channel_factors.view(1, -1, 1, 1)
                scale = by_channel if scale is None else scale * by_channel
            y = y if scale is None else y * scale
            total = y if total is None else total + y
        assert total is not None, "a cell without active operators"
        return total


class PartSupernet(PartFrame):
    """Part `part_index` with all its candidates and its architecture parameters."""

    width_masks: Tensor

    def __init__(self, part_index: int, space: SearchSpace, *, generator: torch.Generator) -> None:
        super().__init__(part_index, space, space.num_channels)
        self.space = space
        self.arch = ArchParameters(space, generator=generator)
        self.cells = nn.ModuleDict({cell_key(cell): MixedCell(cell, space) for cell in space.cells})
        mask = [[channel < space.channels(width) for channel in range(space.num_channels)] for width in WIDTHS]
        self.register_buffer("width_masks", torch.tensor(mask, dtype=torch.float32), persistent=False)  # (W, C)

    def weight_parameters(self) -> list[nn.Parameter]:
        """Return everything learned that is no architecture parameter."""
        arch = {id(p) for p in self.arch.parameters()}
        return [p for p in self.parameters() if id(p) not in arch]

    def forward(self, x: Tensor, choices: Choices) -> Tensor:
        """Run the part with `choices`.

        Args:
            x: (B, 3, H, W) noisy image for part 0, (B, C, H, W) features for parts 1 and 2.
            choices: operators, widths, pathways and their weights in every cell; a cell without pathways is not run.

        Returns:
            (B, C, H, W) features, or the (B, 3, H, W) residual image for part 2.
        """
        stem = self.stem(x)
        features = {CellPosition(0, 0): stem}
        # Taken apart at once: every single index would fill a tensor of zeros in the backward pass.
        resolution_weights, dense_weights = choices.resolution_weights.unbind(), choices.dense_weights.unbind()
        op_factors = None if choices.ops.factors is None else choices.ops.factors.unbind()
        width_factors = None if choices.width_factors is None else (choices.width_factors @ self.width_masks).unbind()
        channels = {CellPosition(0, 0): self.space.num_channels} | {
            cell: self.space.channels(WIDTHS[index])
            for cell, index in zip(self.space.cells, choices.widths, strict=True)
        }
        for n, cell in enumerate(self.space.cells):
            pathways = choices.pathways[n]
            if not pathways.directions:
                continue
            mixed = self.cells[cell_key(cell)]
            assert isinstance(mixed, MixedCell)
            in_channels, out_channels = channels[self.space.input_width_source(cell)], channels[cell]
            gathered = mixed.gather(features, in_channels, pathways, resolution_weights[n], dense_weights[n])
            channel_factors = None
            if width_factors is not None:
                # One run serves all z_k: channel c counts sum over k of z_k [c < width_k], which is 1 in the forward
                # pass (Eqs. 5 to 7, 9, 10). Exact for conv_* and skip, whose narrow outputs are prefixes of the wide
                # one; hin, ib, swin, naf mix channels, so there the prefix stands for the narrow run. Widths above the
                # sampled one count as the sampled one.
                channel_factors = width_factors[n][:out_channels]
            factors = None if op_factors is None else op_factors[n]
            features[cell] = mixed(gathered, choices.ops.active[n], factors, out_channels, channel_factors)
        return self.close(x, stem, features[self.space.last_cell])
