import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from search_space import (
    CellGenotype,
    CellPosition,
    Genotype,
    PartGenotype,
    SearchSpace,
    build_network,
    genotype_macs,
    genotype_num_parameters,
    genotype_op_specs,
    network_macs,
    num_parameters,
    part_op_specs,
    sample_genotype,
)
from search_space.fold import fold_skips


def make_genotype(space: SearchSpace, seed: int) -> Genotype:
    return sample_genotype(space, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(20))
def test_random_genotypes_build_run_and_differentiate(space: SearchSpace, seed: int) -> None:
    network = build_network(make_genotype(space, seed))
    with torch.no_grad():
        for part in network.parts:  # a zero tail would hide the cells
            part.tail.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(seed))
    noisy = torch.rand(1, 3, 37, 31, generator=torch.Generator().manual_seed(seed))
    denoised = network(noisy)
    assert denoised.shape == noisy.shape
    assert denoised.isfinite().all()
    (denoised - noisy).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("seed", range(5))
def test_op_specs_have_the_parameters_of_the_network(space: SearchSpace, seed: int) -> None:
    genotype = make_genotype(space, seed)
    network = build_network(genotype)
    for index, part in enumerate(network.parts):
        pathway_weights = sum(
            cell.source_weights.numel() for cell in part.cells.values() if cell.source_weights is not None
        )
        assert genotype_num_parameters(genotype)[index] == num_parameters(part) - pathway_weights


@pytest.mark.parametrize("seed", range(5))
def test_op_specs_have_the_multiply_adds_of_the_network(space: SearchSpace, seed: int) -> None:
    genotype = make_genotype(space, seed)
    network = build_network(genotype)
    assert sum(genotype_macs(genotype, height=32, width=48)) == network_macs(network, height=32, width=48)
    # At odd sizes, up-sampled features are cropped, which the sum does not know.
    assert sum(genotype_macs(genotype, height=37, width=31)) == pytest.approx(
        network_macs(network, height=37, width=31), rel=0.05
    )


def test_op_specs_by_hand() -> None:
    space = SearchSpace(num_channels=32, num_resolutions=2, num_layers=3)

    def cell(
        position: tuple[int, int], op: str, in_width: int, out_width: int, direction, *layers: int
    ) -> CellGenotype:
        return CellGenotype(
            position=CellPosition(*position),
            op=op,
            in_width=in_width,
            out_width=out_width,
            resolution_pathways=((direction, 1.0),),
            dense_pathways=tuple((layer, 1 / len(layers)) for layer in layers),
        )

    part = PartGenotype(
        cells=(
            cell((0, 1), "conv_d1", 8, 6, "same", 0),
            cell((0, 2), "skip", 6, 7, "same", 0, 1),
            cell((1, 2), "hin", 6, 4, "down"),
            cell((0, 3), "swin", 7, 5, "up", 2),
        )
    )
    specs = part_op_specs(2, part, space, height=9, width=12)
    found = [(s.name, s.in_channels, s.out_channels, s.height, s.width) for s in specs]
    assert found == [
        ("conv_d1", 32, 32, 9, 12),
        ("conv3x3", 20, 32, 9, 12),
        ("add", 32, 32, 9, 12),
        ("conv3x3", 32, 3, 9, 12),
        ("conv_d1", 32, 24, 9, 12),
        # The skip cell is folded into the last one, which then sums the stem and layer 1.
        ("hin", 24, 16, 5, 6),  # 9 rows are rounded up to 5
        ("down", 24, 24, 9, 12),
        ("swin", 28, 20, 9, 12),
        ("up", 16, 28, 5, 6),
        ("add", 28, 28, 9, 12),
        ("add", 28, 28, 9, 12),
    ]
    assert {s.base_channels for s in specs} == {32}
    genotype = Genotype(num_channels=32, num_resolutions=2, num_layers=3, parts=(part, part, part))
    assert genotype_op_specs(genotype, height=9, width=12)[2] == specs
    assert genotype_op_specs(genotype, height=9, width=12)[0][0].in_channels == 3
    assert build_network(genotype)(torch.zeros(1, 3, 9, 12)).shape == (1, 3, 9, 12)


def test_pathway_weights_are_learned_where_there_are_several(genotype: Genotype) -> None:
    network = build_network(genotype)
    for part, module in zip(genotype.parts, network.parts, strict=True):
        for position, weights in fold_skips(part, genotype.space).items():
            learned = module.cells[f"r{position.resolution}_l{position.layer}"].source_weights
            expected = list(weights.values())
            if len(expected) == 1:
                assert learned is None
            else:
                assert isinstance(learned, torch.nn.Parameter)
                assert learned.tolist() == pytest.approx(expected)


def test_features_are_the_outputs_of_the_parts(genotype: Genotype) -> None:
    network = build_network(genotype)
    noisy = torch.rand(2, 3, 13, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network.features(noisy)
        torch.testing.assert_close(network(noisy), noisy + features[2])
    assert [tuple(feature.shape) for feature in features] == [(2, 16, 13, 10), (2, 16, 13, 10), (2, 3, 13, 10)]


def test_images_of_a_batch_do_not_influence_each_other(
    genotype: Genotype, randomise_weights: Callable[[nn.Module, int], None]
) -> None:
    network = build_network(genotype)
    randomise_weights(network, 0)
    noisy = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(noisy)[1:2], network(noisy[1:2]), rtol=1e-4, atol=1e-5)


def test_counting_multiply_adds_changes_nothing(genotype: Genotype) -> None:
    network = build_network(genotype)
    before = copy.deepcopy(network.state_dict())
    network.train()
    assert network_macs(network, height=16, width=16) > 0
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
