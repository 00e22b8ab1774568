from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops import fit_channels
from search_space import (
    ESTIMATORS,
    WIDTHS,
    ArchParameters,
    Choices,
    Genotype,
    PartGenotype,
    PartNetwork,
    PartSupernet,
    SearchSpace,
    build_network,
    choices_of,
    derive,
    inherit_weights,
)
from search_space.supernet import cell_key

Randomise = Callable[[nn.Module, int], None]
MakeArch = Callable[..., ArchParameters]


def make_input(part_index: int, channels: int, size: tuple[int, int] = (37, 31), seed: int = 5) -> Tensor:
    shape = (1, 3 if part_index == 0 else channels, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def supernet(space: SearchSpace, generator: torch.Generator, randomise_weights: Randomise) -> PartSupernet:
    supernet = PartSupernet(1, space, generator=generator)
    randomise_weights(supernet, 7)
    return supernet


def sample(supernet: PartSupernet, *, estimator: str = "sampled", with_gradient: bool, seed: int = 0) -> Choices:
    generator = torch.Generator().manual_seed(seed)
    return supernet.arch.sample(estimator=estimator, temperature=1.0, generator=generator, with_gradient=with_gradient)


@pytest.mark.parametrize("size", [(37, 31), (5, 3)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part_index", range(3))
def test_a_derived_part_with_the_weights_of_its_supernet_equals_it(
    space: SearchSpace,
    make_arch: MakeArch,
    randomise_weights: Randomise,
    part_index: int,
    seed: int,
    size: tuple[int, int],
) -> None:
    supernet = PartSupernet(part_index, space, generator=torch.Generator().manual_seed(seed))
    randomise_weights(supernet, seed)
    part = derive(make_arch(space, seed=seed))
    network = PartNetwork(part_index, part, space)
    inherit_weights(network, supernet)
    x = make_input(part_index, space.num_channels, size)
    with torch.no_grad():
        expected = supernet(x, choices_of(part, space))
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
        # The test can fail: the cells reach the output, and another architecture gives another one.
        other = derive(make_arch(space, seed=seed + 100))
        assert (supernet(x, choices_of(other, space)) - expected).abs().max() > 1e-3
        nn.init.zeros_(supernet.tail.weight)
        assert (supernet(x, choices_of(part, space)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("part_index", range(3))
def test_an_untrained_supernet_is_its_stem_or_the_identity(
    space: SearchSpace, generator: torch.Generator, part_index: int
) -> None:
    supernet = PartSupernet(part_index, space, generator=generator)
    x = make_input(part_index, space.num_channels)
    with torch.no_grad():
        output = supernet(x, sample(supernet, with_gradient=False))
        features = supernet.stem(x) if part_index == 0 else x
        expected = features if supernet.image is None else supernet.image(features)
    torch.testing.assert_close(output, expected)
    assert output.shape == (1, 3 if part_index == 2 else 16, 37, 31)


@pytest.mark.parametrize("estimator", ["gumbel", "sampled"])
def test_operators_that_were_not_sampled_get_no_gradient(
    supernet: PartSupernet, space: SearchSpace, estimator: str
) -> None:
    choices = sample(supernet, estimator=estimator, with_gradient=False)
    supernet(make_input(1, 16), choices).square().mean().backward()
    for n, cell in enumerate(space.cells):
        mixed = supernet.cells[cell_key(cell)]
        for index, name in enumerate(space.candidate_ops):
            for parameter in mixed.ops[name].parameters():
                if (index,) != choices.ops.active[n]:
                    assert parameter.grad is None, f"{cell_key(cell)} {name}"
        sampled = list(mixed.ops[space.candidate_ops[choices.ops.active[n][0]]].parameters())
        assert not sampled or any(parameter.grad is not None for parameter in sampled)
    assert all(logits.grad is None for logits in supernet.arch.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_what_a_part_lacks_gets_no_gradient(
    supernet: PartSupernet, space: SearchSpace, make_arch: MakeArch, seed: int
) -> None:
    part = derive(make_arch(space, seed=seed))
    supernet(make_input(1, 16), choices_of(part, space)).square().mean().backward()
    cells = {cell.position: cell for cell in part.cells}
    assert len(cells) < len(space.cells)
    for position in space.cells:
        used = set()
        if position in cells:
            used = {cells[position].op} | set(cells[position].pathways.directions)
        mixed = supernet.cells[cell_key(position)]
        for name, module in [*mixed.ops.items(), ("up", mixed.up), ("down", mixed.down)]:
            gradients = [] if module is None else [parameter.grad for parameter in module.parameters()]
            assert all(gradient is None for gradient in gradients) or name in used, f"{cell_key(position)} {name}"
            assert not gradients or any(gradient is not None for gradient in gradients) or name not in used


def test_cells_that_are_cut_off_are_not_run(supernet: PartSupernet, space: SearchSpace) -> None:
    everything = supernet.arch.pathways
    supernet.arch.cut_off([cell for cell in space.cells if cell.resolution == 1])
    choices = sample(supernet, with_gradient=False)
    x = make_input(1, 16)
    output = supernet(x, choices)
    output.square().mean().backward()
    touched = {name.split(".")[0] for name, p in supernet.cells.named_parameters() if p.grad is not None}
    assert touched and all(key.startswith("r0") for key in touched)
    with torch.no_grad():  # run, they count 0
        torch.testing.assert_close(supernet(x, replace(choices, pathways=everything)), output)


def test_a_part_without_dense_pathways_equals_its_supernet(
    supernet: PartSupernet, space: SearchSpace, make_arch: MakeArch
) -> None:
    part = derive(make_arch(space))
    part = PartGenotype(cells=tuple(replace(cell, dense_pathways=()) for cell in part.cells))
    network = PartNetwork(1, part, space)
    inherit_weights(network, supernet)
    x = make_input(1, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(x), supernet(x, choices_of(part, space)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_architecture_step_reaches_every_choice(space: SearchSpace, estimator: str, supernet: PartSupernet) -> None:
    choices = sample(supernet, estimator=estimator, with_gradient=True)
    supernet(make_input(1, 16, (9, 12)), choices).square().mean().backward()
    moved = {name: (logits.grad != 0).any(dim=1).tolist() for name, logits in supernet.arch.named_parameters()}
    assert all(logits.grad.isfinite().all() for logits in supernet.arch.parameters())
    assert moved["alpha"] == [True] * 12
    assert moved["beta"] == [len(space.directions(cell)) > 1 for cell in space.cells]
    assert sum(moved["gamma"]) >= 6  # not where the narrowest width is sampled or every reader cuts the output further
    assert moved["delta"] == [len(space.dense_layers(cell)) > 1 for cell in space.cells]


def test_mixture_and_gumbel_run_everything(supernet: PartSupernet) -> None:
    for estimator in ("mixture", "gumbel"):
        supernet.zero_grad()
        supernet(make_input(1, 16, (9, 12)), sample(supernet, estimator=estimator, with_gradient=True)).sum().backward()
        without = [name for name, parameter in supernet.named_parameters() if parameter.grad is None]
        assert all("adapter" in name for name in without), without


def test_a_mixture_is_the_weighted_sum_of_the_operators(
    supernet: PartSupernet, space: SearchSpace, randomise_weights: Randomise
) -> None:
    mixed = supernet.cells["r0_l1"]
    x = make_input(1, 16, (9, 12))
    factors = torch.rand(8, generator=torch.Generator().manual_seed(2))
    everything = tuple(range(8))
    with torch.no_grad():
        total = mixed(x, everything, factors, 12, None)
        parts = [factor * mixed.ops[name](x, 12) for factor, name in zip(factors, space.candidate_ops, strict=True)]
    torch.testing.assert_close(total, torch.stack(parts).sum(dim=0))  # Eq. (3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("op", ["conv_d1", "conv_r", "skip"])
def test_the_gradient_of_the_widths_is_that_of_running_every_width(
    op: str, seed: int, randomise_weights: Randomise
) -> None:
    """One run with nested factors against one run per width: sum over k of z_k O_k, O_k zero-padded (Eqs. 5 to 7)."""
    space = SearchSpace(num_channels=16, num_resolutions=1, num_layers=1, candidate_ops=(op,))
    supernet = PartSupernet(1, space, generator=torch.Generator().manual_seed(0))
    randomise_weights(supernet, seed)
    x = make_input(1, 16, (9, 12))
    choices = sample(supernet, with_gradient=True, seed=seed)
    output = supernet(x, choices)
    output.square().sum().backward()
    nested = supernet.arch.gamma.grad.clone()

    supernet.zero_grad()
    z = sample(supernet, with_gradient=True, seed=seed).width_factors[0]  # the same draw
    sampled = space.channels(WIDTHS[choices.widths[0]])
    stem = supernet.stem(x)
    outputs = [fit_channels(supernet.cells["r0_l1"].ops[op](stem, space.channels(width)), 16) for width in WIDTHS]
    mixed = torch.stack([factor * y for factor, y in zip(z, outputs, strict=True)]).sum(dim=0)
    brute = supernet.tail(mixed[:, :sampled]) + x  # the tail sees the sampled width
    torch.testing.assert_close(output, brute)
    brute.square().sum().backward()
    torch.testing.assert_close(nested, supernet.arch.gamma.grad, rtol=1e-4, atol=1e-4)
    # Wider outputs, cut to the sampled width, are equal: the narrowest sample tells nothing about the widths.
    assert (nested.abs().max().item() > 1e-2) == (sampled > 8)


@pytest.mark.parametrize("seed", range(5))
def test_every_sampled_architecture_validates_builds_runs_and_learns(
    space: SearchSpace, make_arch: MakeArch, randomise_weights: Randomise, seed: int
) -> None:
    parts = tuple(derive(make_arch(space, seed=3 * seed + i)) for i in range(3))
    genotype = Genotype(num_channels=16, num_resolutions=3, num_layers=6, parts=parts)
    network = build_network(genotype)
    randomise_weights(network, seed)
    denoised = network(torch.rand(2, 3, 13, 10, generator=torch.Generator().manual_seed(seed)))
    assert denoised.shape == (2, 3, 13, 10)
    denoised.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_weight_parameters_leave_out_the_architecture_parameters(supernet: PartSupernet) -> None:
    weights = {id(p) for p in supernet.weight_parameters()}
    arch = {id(p) for p in supernet.arch.parameters()}
    assert not weights & arch
    assert weights | arch == {id(p) for p in supernet.parameters()}


def test_weights_are_inherited_by_name_and_prefix(
    supernet: PartSupernet, space: SearchSpace, make_arch: MakeArch
) -> None:
    part = derive(make_arch(space))
    network = PartNetwork(1, part, space)
    inherit_weights(network, supernet)
    last = part.cells[-1]
    channels = space.channels(last.out_width)
    torch.testing.assert_close(network.tail.weight, supernet.tail.weight[:, :channels])
    torch.testing.assert_close(network.stem.conv.weight, supernet.stem.conv.weight)
    x = make_input(1, space.channels(last.in_width), (8, 8))
    op = supernet.cells["r0_l6"].ops[last.op]
    torch.testing.assert_close(network.cells["r0_l6"].op(x), op(x, channels), rtol=1e-5, atol=1e-5)


def test_weights_cannot_be_inherited_from_a_supernet_without_the_operator(
    space: SearchSpace, generator: torch.Generator, make_arch: MakeArch
) -> None:
    small = PartSupernet(1, SearchSpace(num_channels=16, candidate_ops=("skip",)), generator=generator)
    with pytest.raises(KeyError, match="the supernet has no operator"):
        inherit_weights(PartNetwork(1, derive(make_arch(space)), space), small)


def test_a_part_index_beyond_the_last_is_refused(space: SearchSpace, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="`part_index` must be 0, 1 or 2, got 3"):
        PartSupernet(3, space, generator=generator)


def test_equal_seeds_give_equal_gradients(space: SearchSpace, supernet: PartSupernet) -> None:
    gradients = []
    for _ in range(2):
        supernet.zero_grad()
        target = torch.zeros(1, 16, 9, 12)
        output = supernet(make_input(1, 16, (9, 12)), sample(supernet, with_gradient=True, seed=3))
        F.mse_loss(output, target).backward()
        gradients.append(torch.cat([logits.grad.flatten() for logits in supernet.arch.parameters()]))
    torch.testing.assert_close(*gradients)
