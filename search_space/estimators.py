"""Three gradients for one categorical choice: softmax mixture, Gumbel straight-through, sampled.

Used by `arch_parameters` for the operator (any of the three) and the width (Gumbel). Table II of "Denoising
Designs-inherited Search Framework for Image Denoising", arXiv 2502.13359.

Every estimator turns the logits of N choices among K candidates into the candidates that have to be run and the factors
they are multiplied with: cell output = sum over active i of factor_i O_i(x). What differs is how many run, and what
reaches the logits in the backward pass. Logits are unconstrained; the paper's log(alpha) is read as log_softmax (E1).

Legend: N choices (cells), K candidates.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Estimator = Literal["mixture", "gumbel", "sampled"]
ESTIMATORS: tuple[Estimator, ...] = ("mixture", "gumbel", "sampled")
OUT_OF_CHOICE = -1e4  # a logit that is never sampled and never run; finite, so that log-probabilities are


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which candidates run, and with what factors.

    Attributes:
        active: for each of the N choices, the indices of the candidates to run.
        factors: (N, K) factor of every candidate, or None where all active ones count 1 and no gradient is asked for.
    """

    active: tuple[tuple[int, ...], ...]
    factors: Tensor | None


def select(
    logits: Tensor, *, estimator: Estimator, temperature: float, generator: torch.Generator, with_gradient: bool = True
) -> Selection:
    """Make N choices among K candidates.

    Args:
        logits: (N, K) architecture parameters; `OUT_OF_CHOICE` takes a candidate away.
        estimator: `mixture` (Eqs. 3, 4: all run), `gumbel` (Eqs. 5, 7: all run, the sampled one counts 1 in the
            forward pass), `sampled` (Eqs. 5, 8: only the sampled one runs).
        temperature: lambda_tem of Eq. (6), used by `gumbel`.
        generator: source of randomness.
        with_gradient: False in weight steps: samples need no factor, and `gumbel` runs only the sampled one, which
            counts 1 where the others count 0.

    Raises:
        ValueError: unknown estimator.
    """
    num_candidates = logits.shape[1]
    if estimator == "mixture":
        return Selection(active=_everything(logits), factors=logits.softmax(dim=-1))  # Eq. (3)
    if estimator == "gumbel":
        factors = gumbel_straight_through(logits, temperature=temperature, generator=generator)
        if not with_gradient:
            return Selection(active=tuple((index,) for index in factors.argmax(dim=-1).tolist()), factors=None)
        return Selection(active=_everything(logits), factors=factors)
    if estimator != "sampled":
        raise ValueError(f"`estimator` must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    sampled = torch.multinomial(logits.detach().softmax(dim=-1).cpu(), 1, generator=generator)
    active = tuple((index,) for index in sampled.flatten().tolist())
    if not with_gradient:
        return Selection(active=active, factors=None)
    log_p = logits.log_softmax(dim=-1)
    # 1 in the forward pass; its gradient makes that of the output O_s(x) * grad log p_s, Eq. (8) for every logit (E3).
    one_hot = F.one_hot(sampled.flatten(), num_candidates).to(logits)
    return Selection(active=active, factors=one_hot * (1 + log_p - log_p.detach()))


def _everything(logits: Tensor) -> tuple[tuple[int, ...], ...]:
    """Return for each choice the candidates that are not taken away."""
    rows = (logits.detach() > OUT_OF_CHOICE / 2).tolist()
    return tuple(tuple(index for index, is_there in enumerate(row) if is_there) for row in rows)


def gumbel_straight_through(logits: Tensor, *, temperature: float, generator: torch.Generator) -> Tensor:
    """Sample one-hot rows whose gradient is that of the relaxed sample, Eqs. (5) to (7).

    Args:
        logits: (N, K).
        temperature: lambda_tem > 0.
        generator: source of randomness.

    Returns:
        (N, K), one 1 per row; backward passes through z~ of Eq. (6), with the full inner sum in Eq. (7) (E2).
    """
    gumbel = gumbel_noise(logits.shape, generator).to(logits)
    relaxed = ((logits.log_softmax(dim=-1) + gumbel) / temperature).softmax(dim=-1)  # Eq. (6), E1
    one_hot = F.one_hot(relaxed.argmax(dim=-1), logits.shape[-1]).to(logits)
    return one_hot + relaxed - relaxed.detach()


def gumbel_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw G of Eq. (5): the argmax of logits + G is a sample of their softmax."""
    return -torch.empty(shape).exponential_(generator=generator).log()
