import itertools
import math
from typing import Any

import pytest
import torch

from search_space import CellPosition, SearchSpace
from search_space.derive import keep_pathways
from search_space.space import max_kept

GRIDS = [(1, 1), (1, 4), (2, 3), (3, 5), (3, 6), (4, 12)]


def sources(space: SearchSpace, cell: CellPosition) -> set[CellPosition]:
    """Everything that `cell` can read, without x_{s,m}."""
    return {space.source(cell, direction) for direction in space.directions(cell)} | {
        CellPosition(cell.resolution, layer) for layer in space.dense_layers(cell)
    }


def test_three_resolutions_and_six_layers_give_twelve_cells() -> None:
    cells = SearchSpace(num_resolutions=3, num_layers=6).cells
    assert [cell for cell in cells if cell.resolution == 0] == [(0, layer) for layer in (1, 2, 3, 4, 5, 6)]
    assert [cell for cell in cells if cell.resolution == 1] == [(1, layer) for layer in (2, 3, 4, 5)]
    assert [cell for cell in cells if cell.resolution == 2] == [(2, layer) for layer in (3, 4)]
    assert len(cells) == 12


def test_the_last_cell_has_the_seven_pathways_that_the_paper_counts() -> None:
    space = SearchSpace()
    assert space.last_cell == (0, 6)
    assert space.dense_layers(space.last_cell) == (0, 1, 2, 3, 4, 5)
    assert space.directions(space.last_cell) == ("up", "same")
    assert len(sources(space, space.last_cell)) == 7


def test_directions_and_sources_by_hand() -> None:
    space = SearchSpace()
    assert space.directions(CellPosition(0, 1)) == ("same",)
    assert space.directions(CellPosition(1, 2)) == ("down",)
    assert space.directions(CellPosition(1, 4)) == ("up", "same", "down")
    assert space.source(CellPosition(1, 4), "up") == (2, 3)
    assert space.source(CellPosition(1, 4), "same") == (1, 3)
    assert space.source(CellPosition(1, 4), "down") == (0, 3)
    assert space.dense_layers(CellPosition(1, 4)) == (2, 3)
    assert space.dense_layers(CellPosition(1, 2)) == ()
    assert space.opened_from(CellPosition(0, 5)) == (0, 1)
    assert space.opened_from(CellPosition(1, 5)) == (1, 2)
    assert space.input_width_source(CellPosition(1, 2)) == (0, 1)
    assert space.input_width_source(CellPosition(1, 4)) == (1, 3)
    assert space.input_width_source(CellPosition(0, 1)) == (0, 0)


@pytest.mark.parametrize(("num_resolutions", "num_layers"), GRIDS)
def test_every_cell_is_reached_from_the_entry_and_reaches_the_exit(num_resolutions: int, num_layers: int) -> None:
    space = SearchSpace(num_resolutions=num_resolutions, num_layers=num_layers)
    assert len(space.cells) == sum(num_layers - 2 * r for r in range(num_resolutions))

    reached = {CellPosition(0, 0)}
    for cell in space.cells:  # in an order in which they can be computed
        assert sources(space, cell) <= reached, "a source comes after its reader"
        assert sources(space, cell)
        reached.add(cell)

    reaching = {space.last_cell}
    for cell in reversed(space.cells):
        assert cell in reaching, f"{cell} does not reach the exit"
        reaching |= sources(space, cell)


@pytest.mark.parametrize(("num_resolutions", "num_layers"), GRIDS)
def test_what_an_up_sampling_fuses_with_exists_before_it(num_resolutions: int, num_layers: int) -> None:
    space = SearchSpace(num_resolutions=num_resolutions, num_layers=num_layers)
    for cell in space.cells:
        if "up" in space.directions(cell):
            opened_from = space.opened_from(cell)
            assert opened_from in space.cells
            assert opened_from.resolution == cell.resolution
            assert opened_from.layer < cell.layer
            # It is where the coarser row begins.
            assert space.source(CellPosition(cell.resolution + 1, opened_from.layer + 1), "down") == opened_from


def test_widths_are_eighths_of_the_channels() -> None:
    space = SearchSpace(num_channels=64)
    assert [space.channels(width) for width in (8, 7, 6, 5, 4)] == [64, 56, 48, 40, 32]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_channels": 24}, "`num_channels` must be a multiple of 16, got 24"),
        ({"num_channels": 0}, "`num_channels` must be an integer from 16 to 1024, got 0"),
        ({"num_channels": 10**9}, "`num_channels` must be an integer from 16 to 1024, got 1000000000"),
        ({"num_channels": 16.0}, r"`num_channels` must be an integer from 16 to 1024, got 16\.0"),
        ({"num_channels": "16"}, "`num_channels` must be an integer from 16 to 1024, got '16'"),
        ({"num_channels": 1024}, r"`num_channels` must be smaller for a grid of 12 cells .*, got 1024"),
        ({"num_resolutions": 0}, "`num_resolutions` must be an integer from 1 to 6, got 0"),
        ({"num_resolutions": True}, "`num_resolutions` must be an integer from 1 to 6, got True"),
        ({"num_resolutions": 3, "num_layers": 4}, "`num_layers` must be an integer from 5 to 64, got 4"),
        ({"candidate_ops": ()}, "`candidate_ops` must name at least one operator"),
        ({"candidate_ops": ("skip", "skip")}, "`candidate_ops` must not repeat"),
        ({"candidate_ops": ("skip", "pool")}, "`candidate_ops` must be among conv_d1, .*, got pool"),
        ({"candidate_ops": ("down",)}, "`candidate_ops` must be among .*, got down"),
    ],
)
def test_impossible_spaces_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpace(**settings)


def kept_sets(num_pathways: int, threshold: float) -> set[tuple[int, ...]]:
    """Every set of pathways that the threshold rule keeps for some probabilities, found by trying many."""
    if num_pathways == 0:
        return {()}
    logits = torch.randn(200, num_pathways, generator=torch.Generator().manual_seed(0))
    rows = torch.cat((3 * logits, 1e-4 * logits)).softmax(dim=-1)  # decided and nearly uniform
    return {tuple(index for index, _ in keep_pathways(row, threshold)) for row in rows}


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("num_pathways", [1, 2, 3, 4])
def test_most_pathways_that_the_threshold_keeps(num_pathways: int, threshold: float) -> None:
    assert max_kept(num_pathways, threshold) == max(map(len, kept_sets(num_pathways, threshold)))


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize(("num_resolutions", "num_layers"), [(1, 2), (2, 3)])
def test_log10_size_equals_a_count_of_all_settings(num_resolutions: int, num_layers: int, threshold: float) -> None:
    space = SearchSpace(
        num_resolutions=num_resolutions, num_layers=num_layers, candidate_ops=("skip",), num_channels=16
    )
    settings_of_cells = [
        list(
            itertools.product(
                space.candidate_ops,
                (8, 7, 6, 5, 4),
                kept_sets(len(space.directions(cell)), threshold),
                kept_sets(len(space.dense_layers(cell)), threshold),
            )
        )
        for cell in space.cells
    ]
    count = sum(1 for _ in itertools.product(*settings_of_cells))
    assert space.log10_size(threshold=threshold) == pytest.approx(math.log10(count), abs=1e-9)


def test_log10_size_of_the_paper_grid_by_hand() -> None:
    resolution_sets = (2**4) * (2 * 6 * 6) * 2  # row by row; 2 and 3 pathways have 2 and 6 sets, 1 has one
    dense_sets = (2 * 6 * 10 * 25 * 41) * (2 * 6)  # 2, 3, 4, 5, 6 earlier features, then 2, 3
    settings = (8 * 5) ** 12 * resolution_sets * dense_sets
    assert SearchSpace().log10_size() == pytest.approx(math.log10(settings), abs=1e-9)
