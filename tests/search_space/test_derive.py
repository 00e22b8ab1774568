import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from search_space import (
    DIRECTIONS,
    WIDTHS,
    ArchParameters,
    CellGenotype,
    Genotype,
    PartGenotype,
    SearchSpace,
    choices_of,
    derive,
    derive_probabilities,
)
from search_space.derive import keep_pathways
from search_space.genotype import keep_reachable

Position = tuple[int, int]


@pytest.fixture
def arch(space: SearchSpace, make_arch: Callable[..., ArchParameters]) -> ArchParameters:
    return make_arch(space)


def prefer(arch: ArchParameters, beta: Mapping[Position, str], delta: Mapping[Position, int]) -> None:
    """Make the given pathways all but certain and, elsewhere, `same` or `down` and the feature one layer before."""
    with torch.no_grad():
        arch.beta.copy_(torch.tensor([-5.0, 5.0, 0.0]))
        arch.delta.copy_(5.0 * torch.arange(arch.space.num_layers))
        for n, cell in enumerate(arch.space.cells):
            if cell in beta:
                arch.beta[n, DIRECTIONS.index(beta[cell])] = 50.0
            if cell in delta:
                arch.delta[n, delta[cell]] = 50.0


def positions(part: PartGenotype) -> list[Position]:
    return [tuple(cell.position) for cell in part.cells]


@pytest.mark.parametrize(
    ("probabilities", "threshold", "kept"),
    [
        ([0.2, 0.5, 0.3], 0.5, [1, 2]),  # 0.5 does not exceed 0.5
        ([0.2, 0.6, 0.2], 0.5, [1]),
        ([0.2, 0.6, 0.2], 0.7, [0, 1]),  # of equals, the first
        ([0.2, 0.5, 0.3], 0.9, [0, 1, 2]),
        ([0.2, 0.5, 0.3], 0.0, [1]),
        ([0.0, 1.0, 0.0], 0.9, [1]),
        ([0.0, 0.5, 0.5], 0.99, [1, 2]),  # what does not exist is never kept
        ([0.25, 0.25, 0.25, 0.25], 0.5, [0, 1, 2]),
        ([0.0, 0.0], 0.5, []),
    ],
)
def test_the_smallest_prefix_above_the_threshold_is_kept(
    probabilities: list[float], threshold: float, kept: list[int]
) -> None:
    pathways = keep_pathways(torch.tensor(probabilities), threshold)
    assert [index for index, _ in pathways] == kept
    total = sum(probabilities[index] for index in kept)
    for index, weight in pathways:
        assert weight == pytest.approx(probabilities[index] / total)


def test_at_one_half_three_of_three_are_never_kept() -> None:
    logits = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    for scale in (1e-3, 1.0):
        counts = {len(keep_pathways(row, 0.5)) for row in (scale * logits).softmax(dim=-1)}
        assert max(counts) == 2
    assert len(keep_pathways(torch.full((3,), 1 / 3), 0.5)) == 2


def test_derive_picks_the_largest_alpha_and_gamma(space: SearchSpace, arch: ArchParameters) -> None:
    for cell in derive(arch).cells:
        n = space.cells.index(cell.position)
        assert cell.op == space.candidate_ops[int(arch.alpha[n].argmax())]
        assert cell.out_width == WIDTHS[int(arch.gamma[n].argmax())]
        source = space.input_width_source(cell.position)
        newest = 8 if source == (0, 0) else WIDTHS[int(arch.gamma[space.cells.index(source)].argmax())]
        assert cell.in_width == newest


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_derive_keeps_the_largest_beta_and_delta(
    space: SearchSpace, make_arch: Callable[..., ArchParameters], seed: int, threshold: float
) -> None:
    arch = make_arch(space, seed=seed)
    p = arch.probabilities()
    for cell in derive(arch, threshold=threshold).cells:
        n = space.cells.index(cell.position)
        named: list[tuple[Any, torch.Tensor]] = [
            (cell.dense_pathways, p["delta"][n]),
            ([(DIRECTIONS.index(d), weight) for d, weight in cell.resolution_pathways], p["beta"][n]),
        ]
        for pathways, probabilities in named:
            if not pathways:
                assert not space.dense_layers(cell.position)
                continue
            kept = {index: probabilities[index].item() for index, _ in pathways}
            dropped = [q.item() for index, q in enumerate(probabilities) if index not in kept]
            assert min(kept.values()) >= max(dropped, default=0.0)
            assert sum(kept.values()) > threshold
            assert sum(kept.values()) - min(kept.values()) <= threshold
            assert sum(weight for _, weight in pathways) == pytest.approx(1)


def test_cells_that_the_last_one_does_not_need_are_dropped(space: SearchSpace, arch: ArchParameters) -> None:
    prefer(arch, {}, {})
    assert positions(derive(arch)) == [(0, layer) for layer in range(1, 7)]  # never leaves the full resolution

    prefer(arch, {}, dict.fromkeys(space.cells, 0) | {(0, 6): 3})
    assert positions(derive(arch)) == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6)]

    prefer(arch, {(0, 6): "up"}, dict.fromkeys(space.cells, 0) | {(1, 5): 2, (1, 4): 2, (1, 3): 2})
    assert positions(derive(arch)) == [(0, 1), (1, 2), (1, 3), (1, 4), (1, 5), (0, 6)]

    prefer(arch, {(0, 6): "up", (1, 5): "up", (2, 4): "same"}, dict.fromkeys(space.cells, 0) | {(1, 5): 2, (2, 4): 3})
    assert positions(derive(arch)) == [(0, 1), (1, 2), (2, 3), (2, 4), (1, 5), (0, 6)]


@pytest.mark.parametrize("seed", range(20))
def test_what_an_up_sampling_fuses_with_is_kept(
    space: SearchSpace, make_arch: Callable[..., ArchParameters], seed: int
) -> None:
    part = derive(make_arch(space, seed=seed))
    for cell in part.cells:
        if any(direction == "up" for direction, _ in cell.resolution_pathways):
            assert space.opened_from(cell.position) in space.sources(cell.position, cell.pathways)
            assert tuple(space.opened_from(cell.position)) in positions(part)


def test_a_cell_that_only_an_up_sampling_fuses_with_is_kept(space: SearchSpace) -> None:
    directions = {(0, 6): "up", (1, 5): "up", (2, 4): "down", (1, 3): "down", (1, 2): "down"}
    cells = [
        CellGenotype(
            position=position,
            op="skip",
            in_width=8,
            out_width=8,
            resolution_pathways=((directions.get(position, space.directions(position)[-1]), 1.0),),
            dense_pathways=(),
        )
        for position in space.cells
    ]
    # (0, 6) <- (1, 5) <- (2, 4) <- (1, 3) <- (0, 2) <- (0, 1); (1, 2) is there for the fusion in (1, 5).
    part = keep_reachable(cells, space)
    assert positions(part) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (1, 5), (0, 6)]


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_thresholds_that_make_no_sense_are_refused(arch: ArchParameters, threshold: float) -> None:
    with pytest.raises(ValueError, match=r"`threshold` must lie in \[0, 1\), got"):
        derive(arch, threshold=threshold)


@pytest.mark.parametrize("seed", range(10))
def test_choices_of_a_part_derive_the_part_again(
    space: SearchSpace, make_arch: Callable[..., ArchParameters], seed: int
) -> None:
    part = derive(make_arch(space, seed=seed))
    choices = choices_of(part, space)
    for cell in part.cells:
        n = space.cells.index(cell.position)
        assert choices.ops.active[n] == (space.candidate_ops.index(cell.op),)
        assert choices.pathways[n] == cell.pathways
        assert WIDTHS[choices.widths[n]] == cell.out_width
        assert choices.resolution_weights[n].sum().item() == pytest.approx(1)
        for direction, weight in cell.resolution_pathways:
            assert choices.resolution_weights[n, DIRECTIONS.index(direction)].item() == pytest.approx(weight)
        for layer, weight in cell.dense_pathways:
            assert choices.dense_weights[n, layer].item() == pytest.approx(weight)
        source = space.input_width_source(cell.position)
        width = 8 if source == (0, 0) else WIDTHS[choices.widths[space.cells.index(source)]]
        assert width == cell.in_width
    for n, position in enumerate(space.cells):
        if tuple(position) not in positions(part):
            assert choices.ops.active[n] == choices.pathways[n].directions == choices.pathways[n].layers == ()


def test_choices_need_the_operators_in_the_space(genotype: Genotype) -> None:
    space = SearchSpace(num_channels=16, candidate_ops=("conv_d1",))
    with pytest.raises(ValueError, match="operator '.*' of cell .* is not in the space"):
        choices_of(genotype.parts[0], space)


def test_choices_need_inputs_as_wide_as_their_sources(genotype: Genotype, space: SearchSpace) -> None:
    for part in genotype.parts:
        for index, cell in enumerate(part.cells):
            wrong = replace(cell, in_width=WIDTHS[WIDTHS.index(cell.in_width) - 1])
            source = space.input_width_source(cell.position)
            if tuple(source) not in [(0, 0), *positions(part)]:
                continue  # of a cell that the part lacks: it may have any width
            cells = (*part.cells[:index], wrong, *part.cells[index + 1 :])
            name = re.escape(str(tuple(cell.position)))
            with pytest.raises(ValueError, match=rf"`in_width` of cell {name} must be the width \d of cell"):
                choices_of(PartGenotype(cells=cells), space)


@pytest.mark.parametrize("name", ["resolution_pathways", "dense_pathways"])
def test_choices_need_weights_that_sum_to_one(genotype: Genotype, space: SearchSpace, name: str) -> None:
    *before, last = genotype.parts[0].cells
    halved = [(source, weight / 2) for source, weight in getattr(last, name)]
    wrong = replace(last, **{name: tuple(halved)})
    with pytest.raises(ValueError, match=rf"the weights of `{name}` of cell \(0, 6\) must sum to 1, got \[0\."):
        choices_of(PartGenotype(cells=(*before, wrong)), space)


def test_stored_probabilities_derive_the_same_part(tiny_space: SearchSpace) -> None:
    """Logits of a search that has hardly begun are so close that rounding them would order them otherwise."""
    for seed in range(20):
        arch = ArchParameters(tiny_space, generator=torch.Generator().manual_seed(seed))
        stored = {name: torch.tensor(values.tolist()) for name, values in arch.probabilities().items()}
        assert derive_probabilities(stored, tiny_space, threshold=0.5) == derive(arch, threshold=0.5)
