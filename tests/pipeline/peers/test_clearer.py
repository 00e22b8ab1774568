import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.peers import (
    ClearerGenotype,
    ClearerNetwork,
    ClearerSpace,
    ClearerSupernet,
)

CPU = torch.device("cpu")
SPACE = ClearerSpace(num_channels=(4, 6, 8), modules_per_stage=2)
MIXED = ("fusion", "parallel", "parallel", "fusion")


def genotype_of(*modules: str) -> ClearerGenotype:
    return ClearerGenotype(num_channels=SPACE.num_channels, modules=modules)


@pytest.fixture
def supernet(randomise: Any) -> ClearerSupernet:
    supernet = ClearerSupernet(SPACE)
    randomise(supernet)
    return supernet


def network_with_weights_of(supernet: ClearerSupernet, genotype: ClearerGenotype) -> ClearerNetwork:
    network = ClearerNetwork(genotype)
    weights = supernet.skeleton.state_dict()
    network.skeleton.load_state_dict({name: weights[name] for name in network.skeleton.state_dict()})
    return network


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_at_full_scale_are_those_of_the_release() -> None:
    """12.56 M for the supernet; derived networks from 4.36 M (all fusion) to 8.72 M (all parallel)."""
    space = ClearerSpace()
    assert space.num_modules == 12
    with torch.device("meta"):
        assert num_parameters(ClearerSupernet(space)) == pytest.approx(12.56e6, abs=1e4)
        for name, expected in (("fusion", 4.36e6), ("parallel", 8.72e6)):
            genotype = ClearerGenotype(num_channels=space.num_channels, modules=(name,) * 12)
            assert num_parameters(ClearerNetwork(genotype)) == pytest.approx(expected, abs=1e4)


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("modules", [("fusion",) * 4, ("parallel",) * 4, MIXED])
def test_derived_network_is_the_supernet_under_one_hot_choices(
    supernet: ClearerSupernet, modules: tuple[str, ...], is_training: bool, generator: torch.Generator
) -> None:
    """What the release's aliasing of the branches breaks."""
    network = network_with_weights_of(supernet, genotype_of(*modules)).train(is_training)
    supernet.train(is_training)
    noisy = torch.rand(2, 3, 13, 18, generator=generator)
    one_hot = torch.tensor([[float(name == "parallel"), float(name == "fusion")] for name in modules])
    torch.testing.assert_close(network(noisy), supernet(noisy, one_hot), rtol=1e-5, atol=1e-5)


def test_candidates_leave_their_input_alone(supernet: ClearerSupernet, generator: torch.Generator) -> None:
    """Otherwise the second one of a mixed module would read what the first one made of it."""
    branches = [torch.randn(1, 4, 9, 7, generator=generator), torch.randn(1, 6, 5, 4, generator=generator)]
    before = [branch.clone() for branch in branches]
    for candidate in supernet.skeleton.mixed[0].values():
        candidate(branches)
        assert all(torch.equal(a, b) for a, b in zip(branches, before, strict=True))


@pytest.mark.parametrize("size", [(37, 31), (5, 3), (1, 1)])
def test_images_of_any_size_keep_it(size: tuple[int, int], generator: torch.Generator) -> None:
    denoised = ClearerNetwork(genotype_of(*MIXED)).eval()(torch.rand(1, 3, *size, generator=generator))
    assert denoised.shape == (1, 3, *size)
    assert denoised.isfinite().all()


def test_gradients_reach_every_choice_and_every_weight(supernet: ClearerSupernet, generator: torch.Generator) -> None:
    noisy, clean = torch.rand(2, 2, 3, 16, 16, generator=generator)
    supernet.loss(noisy, clean).backward()
    assert (supernet.arch["alpha"].grad != 0).all()
    assert all(parameter.grad is not None for parameter in supernet.parameters())


def test_entropy_in_the_loss_drives_choices_apart(supernet: ClearerSupernet, generator: torch.Generator) -> None:
    clean = torch.rand(1, 3, 16, 16, generator=generator)

    def loss(logit: float) -> Tensor:
        with torch.no_grad():
            supernet.arch["alpha"].copy_(torch.tensor([[logit, 0.0]]).expand(4, 2))
            return supernet.loss(clean, clean) - nn.functional.mse_loss(supernet(clean), clean)

    assert loss(0.0).item() == pytest.approx(0.01 * 0.30103, rel=1e-3)  # log10(2)
    assert loss(1.0) < loss(0.5) < loss(0.0)


def test_derive_takes_the_likelier_candidate(supernet: ClearerSupernet) -> None:
    with torch.no_grad():
        supernet.arch["alpha"].copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.2, 0.1], [-2.0, -1.0]]))
    assert supernet.derive() == genotype_of(*MIXED)


def test_search_is_reproducible_by_seed(search_twice: Callable[..., Any]) -> None:
    first, again, other = search_twice(lambda: ClearerSupernet(SPACE))
    assert first == again != other


def test_genotype_survives_json() -> None:
    genotype = genotype_of(*MIXED)
    assert ClearerGenotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: genotype_of("fusion", "parallel", "fusion"), "`modules` must fill 2 stages evenly, got 3"),
        (lambda: genotype_of("fusion", "serial"), "`modules` must be among parallel, fusion, got 'serial'"),
        (lambda: ClearerSpace(num_channels=(8,)), r"at least two positive counts, got \(8,\)"),
        (lambda: ClearerSpace(modules_per_stage=0), "`modules_per_stage` must be at least 1, got 0"),
    ],
)
def test_impossible_records_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
