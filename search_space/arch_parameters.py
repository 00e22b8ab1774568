"""ArchParameters: alpha, beta, gamma and delta of one part.

Owned by `PartSupernet`, trained by the architecture step of a part search, read by `derive` and `expected_cost`.
arXiv 2502.13359, Section III-B.

Legend: N cells, K candidate operations, W widths, L layers.
"""

import math
from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_space.estimators import OUT_OF_CHOICE, Estimator, Selection, gumbel_straight_through, select
from search_space.space import DIRECTIONS, WIDTHS, CellPosition, Pathways, SearchSpace

LEVELS = ("alpha", "beta", "gamma", "delta")  # operator, resolution, width, dense connection
_INITIAL_SPREAD = 1e-3


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a supernet runs in one forward pass.

    Attributes:
        ops: operators to run in each of the N cells.
        widths: index into `WIDTHS` of each cell's output.
        width_factors: (N, W) straight-through one-hot samples, or None where gamma gets no gradient.
        pathways: of each cell, those that are there; none where the cell is not run.
        resolution_weights: (N, 3) weight of every direction, softmax(beta); 0 where there is none.
        dense_weights: (N, L) weight of every earlier layer, softmax(delta); 0 where there is none.
    """

    ops: Selection
    widths: tuple[int, ...]
    width_factors: Tensor | None
    pathways: tuple[Pathways, ...]
    resolution_weights: Tensor
    dense_weights: Tensor


class ArchParameters(nn.Module):
    """Logits of every choice of one part; what does not exist or is out of budget is masked.

    Attributes:
        alpha: (N, K) operator.
        beta: (N, 3) resolution pathway, in the order of `DIRECTIONS`.
        gamma: (N, W) output width, in the order of `WIDTHS`.
        delta: (N, L) dense connection from layer 0 .. L - 1.
        pathways: of each cell, those that are there; none where no pathway leads from it to the last cell. Kept beside
            the masks, so that no step has to read them back from a device.
    """

    has_op: Tensor
    has_direction: Tensor
    has_layer: Tensor

    def __init__(self, space: SearchSpace, *, generator: torch.Generator) -> None:
        super().__init__()
        self.space = space
        num_cells = len(space.cells)

        def logits(num_choices: int) -> nn.Parameter:
            return nn.Parameter(_INITIAL_SPREAD * torch.randn(num_cells, num_choices, generator=generator))

        self.alpha = logits(len(space.candidate_ops))
        self.beta = logits(len(DIRECTIONS))
        self.gamma = logits(len(WIDTHS))
        self.delta = logits(space.num_layers)
        self.pathways = tuple(space.pathways(cell) for cell in space.cells)
        has_direction = [[d in there.directions for d in DIRECTIONS] for there in self.pathways]
        has_layer = [[layer in there.layers for layer in range(space.num_layers)] for there in self.pathways]
        self.register_buffer("has_op", torch.ones_like(self.alpha, dtype=torch.bool), persistent=False)
        self.register_buffer("has_direction", torch.tensor(has_direction), persistent=False)
        self.register_buffer("has_layer", torch.tensor(has_layer), persistent=False)

    def cut_off(self, cells: Container[CellPosition]) -> None:
        """Take away the up-samplings from `cells`, and with them whatever only these led to the last cell."""
        remaining = {}
        for n, (cell, there) in enumerate(zip(self.space.cells, self.pathways, strict=True)):
            remaining[cell] = there
            if "up" in there.directions and self.space.source(cell, "up") in cells:
                self.has_direction[n, DIRECTIONS.index("up")] = False
                remaining[cell] = Pathways(tuple(d for d in there.directions if d != "up"), there.layers)
        reached = self.space.reached(remaining)
        self.pathways = tuple(there if cell in reached else Pathways() for cell, there in remaining.items())

    def probabilities(self) -> dict[str, Tensor]:
        """Return the softmax of every level, keyed alpha, beta, gamma, delta; 0 at pathways that do not exist."""
        return {
            "alpha": _masked_softmax(self.alpha, self.has_op),
            "beta": _masked_softmax(self.beta, self.has_direction),
            "gamma": self.gamma.softmax(dim=-1),
            "delta": _masked_softmax(self.delta, self.has_layer),
        }

    def uniform_probabilities(self) -> dict[str, Tensor]:
        """Return what `probabilities` gives for equal logits."""
        return {
            "alpha": _masked_softmax(torch.zeros_like(self.alpha), self.has_op),
            "beta": _masked_softmax(torch.zeros_like(self.beta), self.has_direction),
            "gamma": torch.zeros_like(self.gamma).softmax(dim=-1),
            "delta": _masked_softmax(torch.zeros_like(self.delta), self.has_layer),
        }

    def entropies(self) -> dict[str, float]:
        """Return the mean entropy of every level as a share of its maximum: 1 undecided, 0 decided."""
        shares = {}
        with torch.no_grad():
            uniform = self.uniform_probabilities()
            for name, p in self.probabilities().items():
                num_options = (uniform[name] > 0).sum(dim=-1)  # not p > 0: a decided softmax underflows to 0
                open_rows = num_options > 1
                entropy = -(p * p.clamp_min(1e-12).log()).sum(dim=-1)[open_rows]
                maximum = num_options[open_rows].to(p).log()
                shares[name] = (entropy / maximum).mean().item() if open_rows.any() else math.nan
        return shares

    def sample(
        self, *, estimator: Estimator, temperature: float, generator: torch.Generator, with_gradient: bool
    ) -> Choices:
        """Draw the choices of one forward pass.

        Args:
            estimator: gradient of alpha.
            temperature: lambda_tem of Eq. (6).
            generator: source of randomness.
            with_gradient: True in architecture steps; in weight steps the choices are constants.
        """
        p = self.probabilities()
        ops = select(
            self.alpha.masked_fill(~self.has_op, OUT_OF_CHOICE),
            estimator=estimator,
            temperature=temperature,
            generator=generator,
            with_gradient=with_gradient,
        )
        width_factors = gumbel_straight_through(self.gamma, temperature=temperature, generator=generator)  # Eq. (9)
        widths = tuple(width_factors.detach().argmax(dim=-1).tolist())
        if not with_gradient:
            factors = None if ops.factors is None else ops.factors.detach()
            return Choices(
                ops=Selection(active=ops.active, factors=factors),
                widths=widths,
                width_factors=None,
                pathways=self.pathways,
                resolution_weights=p["beta"].detach(),
                dense_weights=p["delta"].detach(),
            )
        return Choices(
            ops=ops,
            widths=widths,
            width_factors=width_factors,
            pathways=self.pathways,
            resolution_weights=p["beta"],
            dense_weights=p["delta"],
        )


def _masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    shifted = logits.masked_fill(~mask, -torch.inf)
    has_any = mask.any(dim=-1, keepdim=True)  # a row without pathways has no probability at all
    return shifted.masked_fill(~has_any, 0.0).softmax(dim=-1) * mask
