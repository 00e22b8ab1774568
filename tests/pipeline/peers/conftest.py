"""What the tests of the peers share: sources of both halves of the data, and weights that hide nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.data.part_data import Split
from pipeline.data.patches import PatchSource
from pipeline.peers import DartsSettings, search_darts
from pipeline.peers.darts import Supernet


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


@pytest.fixture
def search_twice(sources: dict[Split, PatchSource]) -> Callable[[Callable[[], Supernet[Any]]], list[Any]]:
    """Return a function that searches with seeds 0, 0 and 1: each time the genotype and the logits."""

    def search(build: Callable[[], Supernet[Any]], seed: int) -> tuple[Any, list[Any]]:
        built = []

        def build_and_keep() -> Supernet[Any]:
            built.append(build())
            return built[0]

        settings = DartsSettings(batch_size=2, warmup_share=0.25, arch_travel=1.0)
        genotype = search_darts(build_and_keep, sources, settings, seed=seed, device=torch.device("cpu"), num_batches=7)
        return genotype, [logits.tolist() for logits in built[0].arch.values()]

    return lambda build: [search(build, seed) for seed in (0, 0, 1)]
