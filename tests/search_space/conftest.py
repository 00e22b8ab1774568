"""What the search space tests share: two spaces, decided architecture parameters, random weights."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from search_space import ArchParameters, Genotype, SearchSpace, sample_genotype


@pytest.fixture
def space() -> SearchSpace:
    """The paper's grid and operators with few channels."""
    return SearchSpace(num_channels=16)


@pytest.fixture
def tiny_space() -> SearchSpace:
    """Four cells: (0, 1), (0, 2), (1, 2), (0, 3)."""
    return SearchSpace(num_channels=16, num_resolutions=2, num_layers=3, candidate_ops=("conv_d1", "skip"))


@pytest.fixture
def genotype(space: SearchSpace, generator: torch.Generator) -> Genotype:
    return sample_genotype(space, generator=generator)


@pytest.fixture
def make_arch() -> Callable[..., ArchParameters]:
    """Return a function that makes architecture parameters with normal logits; a large spread decides every choice."""

    def make(space: SearchSpace, *, seed: int = 0, spread: float = 2.0) -> ArchParameters:
        generator = torch.Generator().manual_seed(seed)
        arch = ArchParameters(space, generator=generator)
        with torch.no_grad():
            for logits in arch.parameters():
                logits.copy_(spread * torch.randn(logits.shape, generator=generator))
        return arch

    return make


@pytest.fixture
def randomise_weights() -> Callable[[nn.Module, int], None]:
    """Return a function that makes every weight random: zero-initialised ones would hide what they multiply."""

    def randomise(module: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.08 * torch.randn(parameter.shape, generator=generator))

    return randomise
