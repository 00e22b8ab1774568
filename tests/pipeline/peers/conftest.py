"""What the tests of the peers share: sources of both halves of the data, and weights that hide nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.data.part_data import Split
from pipeline.data.patches import PatchSource


@pytest.fixture
def sources(source: PatchSource) -> dict[Split, PatchSource]:
    return {"weights": source, "architecture": source}


@pytest.fixture
def randomise(generator: torch.Generator) -> Callable[[nn.Module], None]:
    """Return a function that makes all weights, and the statistics of every normalisation, random."""

    def randomise_(network: nn.Module) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(generator=generator)
                    module.running_var.uniform_(0.5, 2.0, generator=generator)

    return randomise_
