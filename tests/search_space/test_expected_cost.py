import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ops import OpSpec
from search_space import (
    DIRECTIONS,
    LEVEL_WEIGHTS,
    WIDTHS,
    ArchParameters,
    CellPosition,
    CostModel,
    Genotype,
    PartGenotype,
    SearchSpace,
    derive,
    genotype_macs,
    genotype_num_parameters,
    genotype_op_specs,
    op_macs,
    op_num_parameters,
    part_op_specs,
    restrict_to_budget,
    sample_genotype,
    space_op_specs,
)

MakeArch = Callable[..., ArchParameters]
DECIDED = 1e7  # spread of logits under which every softmax is exactly one-hot


def any_price(spec: OpSpec) -> float:
    """Return an arbitrary price from 1 to 2 ms that differs for every spec."""
    return 1 + zlib.crc32(repr(spec).encode()) / 2**32


def model(space: SearchSpace, price: Callable[[OpSpec], float] = any_price, part_index: int = 1) -> CostModel:
    return CostModel(part_index, space, price, height=32, width=48)


@pytest.mark.parametrize("part_index", range(3))
@pytest.mark.parametrize("seed", range(5))
def test_the_expected_total_of_a_decided_part_is_the_sum_over_its_operators(
    space: SearchSpace, make_arch: MakeArch, seed: int, part_index: int
) -> None:
    space = replace(space, candidate_ops=tuple(name for name in space.candidate_ops if name != "skip"))
    arch = make_arch(space, seed=seed, spread=DECIDED)
    assert all(((p == 0) | (p == 1)).all() for p in arch.probabilities().values())
    part = derive(arch)
    specs = part_op_specs(part_index, part, space, height=32, width=48)
    total = model(space, part_index=part_index).expected(arch).total
    assert total.item() == pytest.approx(sum(map(any_price, specs)), rel=1e-5)


def test_folded_skip_cells_cost_less_than_expected(space: SearchSpace, make_arch: MakeArch) -> None:
    """The expected cost counts the sums of skip cells where they stand, the network sums at their readers."""
    differences = []
    for seed in range(20):
        arch = make_arch(replace(space, candidate_ops=("skip", "conv_d1")), seed=seed, spread=DECIDED)
        costs = model(arch.space, lambda spec: float(spec.name == "add"))
        differences.append(costs.expected(arch).total.item() - costs.of(derive(arch)))
    assert min(differences) > -1e-4
    assert max(differences) > 0.9


def test_decided_parts_with_and_without_unreachable_cells_occur(space: SearchSpace, make_arch: MakeArch) -> None:
    sizes = {len(derive(make_arch(space, seed=seed, spread=DECIDED)).cells) for seed in range(5)}
    assert len(sizes) > 1
    assert min(sizes) < 12


def test_parameters_and_multiply_adds_are_prices(make_arch: MakeArch) -> None:
    space = SearchSpace(num_channels=16, candidate_ops=("conv_d1", "hin", "skip"))
    arch = make_arch(space, seed=1, spread=DECIDED)
    genotype = Genotype(num_channels=16, num_resolutions=3, num_layers=6, parts=(derive(arch),) * 3)
    parameters = model(space, op_num_parameters).expected(arch).total.item()
    assert parameters == pytest.approx(genotype_num_parameters(genotype)[1], rel=1e-5)
    macs = model(space, op_macs).expected(arch).total.item()
    assert macs == pytest.approx(genotype_macs(genotype, height=32, width=48)[1], rel=1e-5)


def test_the_uniform_architecture_has_a_regulariser_of_one(space: SearchSpace, make_arch: MakeArch) -> None:
    arch = make_arch(space, spread=0.0)
    cost = model(space).expected(arch)
    assert cost.regulariser.item() == pytest.approx(1, rel=1e-5)
    assert {name: level.item() for name, level in cost.levels.items()} == pytest.approx(
        {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}, rel=1e-5
    )
    assert sum(LEVEL_WEIGHTS.values()) == pytest.approx(1)


def test_the_regulariser_has_no_unit(space: SearchSpace, make_arch: MakeArch) -> None:
    arch = make_arch(space)
    in_ms, in_seconds = (
        model(space, lambda spec, unit=unit: unit * any_price(spec)).expected(arch) for unit in (1.0, 1e-3)
    )
    assert in_ms.regulariser.item() == pytest.approx(in_seconds.regulariser.item(), rel=1e-4)
    assert in_ms.total.item() == pytest.approx(1e3 * in_seconds.total.item(), rel=1e-4)


def test_a_part_of_one_cell_by_hand(make_arch: MakeArch) -> None:
    space = SearchSpace(num_channels=16, num_resolutions=1, num_layers=1, candidate_ops=("conv_d1", "skip", "hin"))
    arch = make_arch(space)
    p = arch.probabilities()

    def price(name: str, in_channels: int, out_channels: int) -> float:
        return any_price(
            OpSpec(name=name, in_channels=in_channels, out_channels=out_channels, base_channels=16, height=32, width=48)
        )

    widths = (16, 14, 12, 10, 8)
    expected = price("conv_d1", 16, 16) + price("add", 16, 16)  # the stem of part 1, and its long skip
    for width, p_width in zip(widths, p["gamma"][0].tolist(), strict=True):
        cell = sum(
            p_op * price(name, 16, width)
            for name, p_op in zip(space.candidate_ops, p["alpha"][0].tolist(), strict=True)
        )
        expected += p_width * (cell + price("conv3x3", width, 16))
    assert model(space).expected(arch).total.item() == pytest.approx(expected, rel=1e-5)


def test_the_expected_total_is_the_mean_over_all_widths(tiny_space: SearchSpace, make_arch: MakeArch) -> None:
    """Reach probabilities treat pathways as independent; where only widths vary, all is exact."""
    space = replace(tiny_space, candidate_ops=("conv_d1",))
    arch = make_arch(space, seed=2)
    with torch.no_grad():
        arch.beta.mul_(DECIDED)
        arch.delta.mul_(DECIDED)
        arch.beta[space.cells.index(space.last_cell), DIRECTIONS.index("up")] = 1e9
        arch.delta[space.cells.index(space.last_cell), 1] = 1e9
    part = derive(arch)
    assert [tuple(cell.position) for cell in part.cells] == [(0, 1), (1, 2), (0, 3)]
    p = arch.probabilities()["gamma"].tolist()
    mean = 0.0
    for widths in itertools.product(range(len(WIDTHS)), repeat=len(space.cells)):  # (0, 2) makes the last input's
        out_widths = {cell: WIDTHS[width] for cell, width in zip(space.cells, widths, strict=True)}
        cells = tuple(
            replace(
                cell, out_width=out_widths[cell.position],
                in_width=out_widths.get(space.input_width_source(cell.position), WIDTHS[0]),
            )
            for cell in part.cells
        )  # fmt: skip
        specs = part_op_specs(1, PartGenotype(cells=cells), space, height=32, width=48)
        mean += math.prod(p[n][width] for n, width in enumerate(widths)) * sum(map(any_price, specs))
    assert model(space).expected(arch).total.item() == pytest.approx(mean, rel=1e-6)


def test_gradients_push_towards_what_is_cheap(space: SearchSpace, make_arch: MakeArch) -> None:
    # Only swin costs, in proportion to its channels, and down-sampling.
    def price(spec: OpSpec) -> float:
        return {"swin": spec.out_channels, "down": 50.0}.get(spec.name, 0.0)

    arch = make_arch(space, spread=0.0)
    model(space, price).expected(arch).regulariser.backward()
    swin = space.candidate_ops.index("swin")
    gamma = arch.gamma.grad
    for n, cell in enumerate(space.cells):
        others = [i for i in range(len(space.candidate_ops)) if i != swin]
        assert arch.alpha.grad[n, swin] > 0
        assert (arch.alpha.grad[n, others] < 0).all()
        assert gamma[n, 0] > 0 > gamma[n, -1], "the widest costs most"
        assert (gamma[n].diff() < 0).all()
        if cell == CellPosition(1, 4):  # up, same or down
            assert arch.beta.grad[n, 2] > 0


def test_pathways_that_do_not_exist_get_no_gradient(space: SearchSpace, make_arch: MakeArch) -> None:
    arch = make_arch(space)
    cost = model(space).expected(arch)
    (cost.total + cost.regulariser).backward()
    assert all(logits.grad.isfinite().all() for logits in arch.parameters())
    assert (arch.beta.grad[~arch.has_direction] == 0).all()
    assert (arch.delta.grad[~arch.has_layer] == 0).all()


def test_a_dearer_operator_raises_the_level_of_its_choice_only(space: SearchSpace, make_arch: MakeArch) -> None:
    undecided = make_arch(space, spread=0.0)
    price = model(space, lambda spec: 10.0 if spec.name == "swin" else 1.0)
    with torch.no_grad():
        undecided.alpha[:, space.candidate_ops.index("swin")] = 3.0
    levels = price.expected(undecided).levels
    assert levels["alpha"].item() > 1.2
    assert levels["beta"].item() == pytest.approx(1, rel=1e-5)
    assert levels["gamma"].item() == pytest.approx(1, rel=1e-5)


def test_nothing_saves_the_frame(space: SearchSpace, make_arch: MakeArch) -> None:
    costs = model(space)
    for seed in range(3):
        assert costs.expected(make_arch(space, seed=seed, spread=DECIDED)).total.item() > costs.minimum_frame_cost
    frame = part_op_specs(1, derive(make_arch(space)), space, height=32, width=48)[:3]
    assert costs.minimum_frame_cost <= sum(map(any_price, frame))


def price_by_size(spec: OpSpec) -> float:
    """Give a price in proportion to the pixels, 1 for most operators at full size, much more for swin."""
    return {"swin": 40.0, "hin": 4.0, "add": 0.0}.get(spec.name, 1.0) * spec.height * spec.width / (32 * 48)


def test_a_budget_takes_away_what_does_not_fit(space: SearchSpace, make_arch: MakeArch) -> None:
    arch, costs = make_arch(space), model(space, price_by_size)
    # The frame of part 1 costs 2; swin costs 40 at full size, 10 + 1.25 at half, 2.5 + 1.5625 at a quarter of the side.
    assert restrict_to_budget(arch, costs, 10.0) == 6 + 4
    swin = space.candidate_ops.index("swin")
    for n, cell in enumerate(space.cells):
        p = arch.probabilities()["alpha"][n]
        assert (p[swin] > 0).item() == (cell.resolution == 2)
        assert p.sum().item() == pytest.approx(1)
        assert (p > 0).sum() >= 7
    assert all(cell.op != "swin" or cell.position.resolution == 2 for cell in derive(arch).cells)
    with torch.no_grad():
        for logits in arch.parameters():
            logits.zero_()
    assert costs.expected(arch).regulariser.item() == pytest.approx(1, rel=1e-5)


def test_a_wide_budget_takes_nothing_away_and_a_tight_one_the_coarse_cells(
    space: SearchSpace, make_arch: MakeArch
) -> None:
    arch = make_arch(space)
    assert restrict_to_budget(arch, model(space, price_by_size), 1e6) == 0
    assert arch.has_op.all()
    # Frame 2, cheapest operator at full size 1: nothing is left for the way down and up (1.25).
    restrict_to_budget(arch, model(space, price_by_size), 3.2)
    assert {cell.position.resolution for cell in derive(arch).cells} == {0}


def test_the_space_lists_what_any_architecture_calls(space: SearchSpace) -> None:
    priced = space_op_specs(space, height=37, width=31)
    assert len(set(priced)) == len(priced)
    for seed in range(20):
        genotype = sample_genotype(space, generator=torch.Generator().manual_seed(seed))
        called = {spec for specs in genotype_op_specs(genotype, height=37, width=31) for spec in specs}
        assert called <= set(priced)
