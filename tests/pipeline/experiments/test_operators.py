"""Feature statistics of the special operators."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import load_weights, save_weights
from pipeline.data.part_data import CachedFeatures, PatchSet
from pipeline.experiments import CellJob
from pipeline.experiments.operators import (
    EXPERIMENT,
    FEATURES_FILE,
    OPERATORS,
    feature_statistics,
    operator_outputs,
    run,
)
from search_space import Choices, PartSupernet, SearchSpace, Selection

SMALL = ("search.num_patches=8", "retrain.num_epochs=1", "retrain.steps_per_epoch=2")


@pytest.fixture
def supernet() -> PartSupernet:
    torch.manual_seed(0)
    space = SearchSpace(num_channels=16, num_resolutions=2, num_layers=3, candidate_ops=OPERATORS)
    return PartSupernet(1, space, generator=torch.Generator().manual_seed(0))


def test_all_operators_see_the_same_input_and_the_path_goes_on(supernet: PartSupernet) -> None:
    x = torch.rand(2, 16, 12, 8)
    path = [2, 0, 1, 1]
    with torch.no_grad():
        outputs = operator_outputs(supernet, x, path)
        uniform = supernet.arch.uniform_probabilities()
        choices = Choices(
            ops=Selection(active=tuple((index,) for index in path), factors=None), widths=(0,) * len(path),
            width_factors=None, pathways=supernet.arch.pathways,
            resolution_weights=uniform["beta"], dense_weights=uniform["delta"],
        )  # fmt: skip
        whole = supernet(x, choices)
        again = operator_outputs(supernet, x, [0, 0, 1, 1])
        closed = supernet.close(x, supernet.stem(x), outputs[-1][OPERATORS[path[-1]]])
    assert torch.allclose(closed, whole, atol=1e-6)
    assert all(torch.equal(outputs[0][name], again[0][name]) for name in OPERATORS)
    assert not torch.equal(outputs[1]["hin"], again[1]["hin"])  # its input is another operator's output


def test_mean_and_deviation_are_those_of_all_elements(supernet: PartSupernet, patch_set: PatchSet) -> None:
    data = CachedFeatures(patch_set, 1, torch.device("cpu"))
    values = feature_statistics(supernet, data, batch_size=2, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(16):
        x, _ = data.sample("architecture", 2, generator)
        torch.randint(3, (4,), generator=generator)
        with torch.no_grad():
            drawn.append(operator_outputs(supernet, x, [0] * 4)[0]["swin"])  # the first cell comes before any path
    swin = torch.stack(drawn).double()
    assert values["mean_swin_r0_l1"] == pytest.approx(swin.mean().item(), rel=1e-4)
    assert values["std_swin_r0_l1"] == pytest.approx(swin.std(correction=0).item(), rel=1e-4)
    stds = [value for key, value in values.items() if key.startswith("std_swin_")]
    assert values["std_swin"] == pytest.approx(sum(stds) / 4)


def test_a_cell_leaves_statistics_and_features(make_job: Callable[..., CellJob]) -> None:
    job = make_job("part-2", *SMALL)
    values = run(job)
    assert values.keys() >= {column.key for column in EXPERIMENT.columns}
    stored = load_weights(job.folder / FEATURES_FILE)
    assert stored["noisy"].shape == (3, 32, 32)
    assert all(stored[name].shape == (32, 32) and (stored[name] >= 0).all() for name in OPERATORS)
    assert run(make_job("part-2", *SMALL)) == values


def test_the_figures_are_drawn(tmp_path: Path) -> None:
    cells = [f"{statistic}_{name}_{cell}" for statistic in ("mean", "std") for name in OPERATORS
             for cell in ("r0_l1", "r0_l2")]  # fmt: skip
    for part_index in range(3):
        folder = tmp_path / "files" / f"part-{part_index}-seed4"
        folder.mkdir(parents=True)
        save_weights(
            folder / FEATURES_FILE, {"noisy": torch.rand(3, 8, 8)} | {name: torch.rand(8, 8) for name in OPERATORS}
        )
    values = {4: {f"part-{index}": {key: 0.5 for key in cells} for index in range(3)}}
    paths = EXPERIMENT.draw(values, tmp_path)
    assert [path.name for path in paths] == ["statistics.png", "features.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)
