"""Expected cost of a part under its choice probabilities: the complexity regulariser, differentiable.

Called in every architecture step. Eqs. (12), (13) of arXiv 2502.13359, with softmax probabilities in place of raw
logits (E4 of docs/paper.md) and resamplers, stems and tails priced too. A cost is anything that a function gives for an
`OpSpec`: milliseconds from a latency table, parameters, multiply-adds.

Legend: N cells, K candidate operations, W widths, L layers, S settings of the probabilities.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ops import OpSpec
from search_space.arch_parameters import ArchParameters
from search_space.genotype import NUM_PARTS, PartGenotype
from search_space.network import part_op_specs
from search_space.part import frame_specs
from search_space.space import DIRECTIONS, WIDTHS, CellPosition, Direction, SearchSpace

Price = Callable[[OpSpec], float]
LEVEL_WEIGHTS = {"alpha": 0.27, "beta": 0.27, "gamma": 0.46}  # Section III-C; beta carries delta


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """Expected costs of one part, scalars with gradients.

    Attributes:
        total: all four levels under their softmax, in the cost's own unit.
        levels: for each of alpha, beta, gamma: that level under its softmax and the others uniform, in units of the
            cost of the uniform architecture (Eq. 12).
    """

    total: Tensor
    levels: dict[str, Tensor]

    @property
    def regulariser(self) -> Tensor:
        """L_comp of Eq. (13), 1 for the uniform architecture."""
        return torch.stack([weight * self.levels[name] for name, weight in LEVEL_WEIGHTS.items()]).sum()


class CostModel:
    """Costs of everything one part can contain, as tensors.

    Args:
        part_index: 0, 1 or 2.
        space: the search space.
        price: cost of one operator call.
        height: of the image in pixels.
        width: of the image in pixels.
    """

    def __init__(self, part_index: int, space: SearchSpace, price: Price, *, height: int, width: int) -> None:
        self.part_index = part_index
        self.space = space
        self.height = height
        self.width = width
        cells, ops = space.cells, space.candidate_ops
        self.op_costs = torch.zeros(len(cells), len(ops), len(WIDTHS), len(WIDTHS))  # (N, K, W_in, W_out)
        self.resample_costs = torch.zeros(len(cells), len(DIRECTIONS), len(WIDTHS), len(WIDTHS))  # (N, 3, W_src, W_in)
        self.add_costs = torch.zeros(len(cells), len(WIDTHS))  # (N, W_in), of every source beyond the first
        self.tail_costs = torch.zeros(len(WIDTHS))
        self.prices: dict[OpSpec, float] = {}

        def priced(spec: OpSpec) -> float:
            if spec not in self.prices:
                self.prices[spec] = float(price(spec))
            return self.prices[spec]

        def cost(name: str, in_channels: int, out_channels: int, resolution: int) -> float:
            spec = space.op_spec(name, in_channels, out_channels, resolution=resolution, height=height, width=width)
            return priced(spec)

        channels = [space.channels(width) for width in WIDTHS]
        for i, in_channels in enumerate(channels):
            frame = frame_specs(part_index, space, in_channels, height=height, width=width)
            self.tail_costs[i] = priced(frame.pop("tail"))
            self.frame_cost = sum(map(priced, frame.values()))
            for n, cell in enumerate(cells):
                self.add_costs[n, i] = cost("add", in_channels, in_channels, cell.resolution)
            for j, out_channels in enumerate(channels):
                for n, cell in enumerate(cells):
                    for k, name in enumerate(ops):
                        self.op_costs[n, k, i, j] = cost(name, in_channels, out_channels, cell.resolution)
                    for d, direction in enumerate(DIRECTIONS):
                        if direction == "same" or direction not in space.directions(cell):
                            continue
                        resolution = space.source(cell, direction).resolution
                        self.resample_costs[n, d, i, j] = cost(direction, in_channels, out_channels, resolution)

        def index(feature: CellPosition) -> int:
            return cells.index(feature) if feature in cells else len(cells)  # the stem comes after the cells

        self._full_width = torch.zeros(len(WIDTHS))
        self._full_width[0] = 1.0
        self._input_index = torch.tensor([index(space.input_width_source(cell)) for cell in cells])  # (N,)
        self._source_index = torch.tensor(  # (N, 3); any where there is no pathway: it costs nothing
            [[index(space.source(cell, direction)) for direction in DIRECTIONS] for cell in cells]
        )
        # The first cell of a resolution is as wide as what it is down-sampled from: one choice of a width, not two.
        is_input = self._source_index == self._input_index[:, None]  # (N, 3)
        of_one_width = self.resample_costs.diagonal(dim1=-2, dim2=-1)[..., None]  # (N, 3, W, 1)
        self.resample_costs = torch.where(is_input[..., None, None], of_one_width, self.resample_costs)
        before = torch.tensor([cell.layer - 1 if space.dense_layers(cell) else -1 for cell in cells])
        self._is_layer_before = (before[:, None] == torch.arange(space.num_layers)).float()  # (N, L)

    def to(self, device: torch.device) -> "CostModel":
        """Move the tensors to `device`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    @property
    def minimum_frame_cost(self) -> float:
        """Cost of the stem, the image output and the narrowest tail: what no choice of cells can save."""
        return self.frame_cost + self.tail_costs.min().item()

    def of(self, part: PartGenotype) -> float:
        """Return the cost of a part of this space."""
        specs = part_op_specs(self.part_index, part, self.space, height=self.height, width=self.width)
        return sum(self.prices[spec] for spec in specs)

    def uniform_cost(self, arch: ArchParameters) -> float:
        """Return the cost of the uniform architecture, the unit of `PartCost.regulariser`."""
        with torch.no_grad():
            return self._costs({name: p[None] for name, p in arch.uniform_probabilities().items()}).item()

    def expected(self, arch: ArchParameters) -> PartCost:
        """Return the expected costs for the current architecture parameters."""
        soft, uniform = arch.probabilities(), arch.uniform_probabilities()
        settings = [
            uniform,
            uniform | {"alpha": soft["alpha"]},
            uniform | {"beta": soft["beta"], "delta": soft["delta"]},
            uniform | {"gamma": soft["gamma"]},
            soft,
        ]
        costs = self._costs({name: torch.stack([p[name] for p in settings]) for name in soft})
        reference, alpha, beta, gamma, total = costs.unbind()
        levels = {"alpha": alpha, "beta": beta, "gamma": gamma}
        return PartCost(total=total, levels={name: cost / reference.detach() for name, cost in levels.items()})

    def _costs(self, p: dict[str, Tensor]) -> Tensor:
        """Return (S,) costs for (S, N, ..) probabilities of every level.

        Each is a sum over cells: probability that the last cell needs it x (operator + resamplers), plus stem and tail.
        """
        out_width = p["gamma"]
        widths = torch.cat([out_width, self._full_width.expand(len(out_width), 1, -1)], dim=1)  # the stem's is the last
        in_width, source_widths = widths[:, self._input_index], widths[:, self._source_index]  # (S, N, W), (S, N, 3, W)
        cells = torch.einsum("snk,nkij,sni,snj->sn", p["alpha"], self.op_costs, in_width, out_width)
        resample = torch.einsum("ndij,sndi,snj->snd", self.resample_costs, source_widths, in_width)
        cells = cells + (p["beta"] * resample).sum(dim=-1)
        additions = (self._num_sources(p) - 1) * torch.einsum("sni,ni->sn", in_width, self.add_costs)
        needed = self._reach_probabilities(p)
        tail = out_width[:, self.space.cells.index(self.space.last_cell)] @ self.tail_costs
        return self.frame_cost + tail + (needed * (cells + additions)).sum(dim=-1)

    def _num_sources(self, p: dict[str, Tensor]) -> Tensor:
        """Return (S, N) expected numbers of sources; the feature one layer before, kept twice, counts once."""
        beta, delta = p["beta"], p["delta"]
        twice = beta[..., DIRECTIONS.index("same")] * (delta * self._is_layer_before).sum(dim=-1)
        return beta.sum(dim=-1) + delta.sum(dim=-1) - twice

    def _reach_probabilities(self, p: dict[str, Tensor]) -> Tensor:
        """Return the (S, N) probabilities that some kept pathway leads from a cell to the last cell.

        Pathways count as kept with their softmax probability, independently of each other.
        """
        space = self.space
        beta, delta = ([row.unbind(dim=-1) for row in p[name].unbind(dim=1)] for name in ("beta", "delta"))
        one = torch.ones_like(beta[0][0])  # (S,)
        unreached = {cell: one for cell in space.cells}
        unreached[space.last_cell] = torch.zeros_like(one)
        for n, cell in reversed(list(enumerate(space.cells))):
            needed = 1 - unreached[cell]
            pathways = [
                (space.source(cell, direction), beta[n][DIRECTIONS.index(direction)])
                for direction in space.directions(cell)
            ]
            if "up" in space.directions(cell):
                pathways.append((space.opened_from(cell), beta[n][DIRECTIONS.index("up")]))
            pathways += [(CellPosition(cell.resolution, layer), delta[n][layer]) for layer in space.dense_layers(cell)]
            for source, probability in pathways:
                if source in unreached:
                    unreached[source] = unreached[source] * (1 - needed * probability)
        return 1 - torch.stack([unreached[cell] for cell in space.cells], dim=-1)


def restrict_to_budget(arch: ArchParameters, costs: CostModel, budget: float) -> int:
    """Take away the choices that no architecture within `budget` can contain.

    An operator is out of budget in a cell if stem and narrowest tail, the cheapest way down to the cell's resolution
    and back up, and the operator at its narrowest cost more together. Without this, operators that cost many times the
    budget rule the gradient of the expected cost: it routes around full-resolution cells before their operators are
    decided. Cells that not even their cheapest operator fits in are cut off.

    Returns:
        How many choices of an operator were taken away.
    """
    space = costs.space
    cheapest = costs.op_costs.amin(dim=(2, 3))  # (N, K)
    detours = torch.zeros(space.num_resolutions).to(cheapest)
    for resolution in range(1, space.num_resolutions):
        detours[resolution] = (
            detours[resolution - 1]
            + _cheapest_resampling(costs, "down", resolution)
            + _cheapest_resampling(costs, "up", resolution - 1)
        )
    way = torch.stack([detours[cell.resolution] for cell in space.cells])
    fits = costs.minimum_frame_cost + way[:, None] + cheapest <= budget
    is_cut_off = ~fits.any(dim=1)
    fits |= is_cut_off[:, None] & (cheapest == cheapest.amin(dim=1, keepdim=True))
    arch.has_op.copy_(fits)
    arch.cut_off([cell for cell, is_out in zip(space.cells, is_cut_off.tolist(), strict=True) if is_out])
    return int((~fits).sum())


def _cheapest_resampling(costs: CostModel, direction: Direction, resolution: int) -> Tensor:
    space = costs.space
    rows = [
        n for n, cell in enumerate(space.cells) if cell.resolution == resolution and direction in space.directions(cell)
    ]
    return costs.resample_costs[rows, DIRECTIONS.index(direction)].amin()


def space_op_specs(space: SearchSpace, *, height: int, width: int) -> list[OpSpec]:
    """List every distinct operator call that any architecture of `space` can make: what a latency table must price."""
    specs: dict[OpSpec, None] = {}

    def record(spec: OpSpec) -> float:
        specs[spec] = None
        return 0.0

    for part_index in range(NUM_PARTS):
        CostModel(part_index, space, record, height=height, width=width)
    return list(specs)
