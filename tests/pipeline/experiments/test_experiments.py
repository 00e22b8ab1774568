"""What holds for every experiment."""

import re
from collections.abc import Sequence

import pytest

from pipeline.cli import main
from pipeline.config import load_config
from pipeline.experiments import EXPERIMENTS, Experiment, load_experiment
from pipeline.experiments.runner import sized


@pytest.fixture(params=list(EXPERIMENTS))
def experiment(request: pytest.FixtureRequest) -> Experiment:
    return load_experiment(request.param)


def repeated(names: Sequence[str]) -> bool:
    return len(set(names)) != len(names)


def test_names_can_stand_in_files(experiment: Experiment) -> None:
    names = [variant.name for variant in experiment.variants]
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)
    assert not repeated(names)
    assert not repeated([column.key for column in experiment.columns])


def test_the_papers_figures_are_shown_and_have_a_column(experiment: Experiment) -> None:
    keys = {column.key for column in experiment.columns}
    assert all(set(variant.paper) <= keys for variant in experiment.variants)


def test_a_claims_number_is_what_the_papers_own_table_gives(experiment: Experiment) -> None:
    paper = {variant.name: dict(variant.paper) for variant in experiment.variants}
    for claim in experiment.claims:
        if claim.paper is not None:
            assert claim.margin(paper) == pytest.approx(claim.paper, abs=0.0051), claim.text


def test_a_cell_has_the_sizes_of_the_preset_and_its_own_seed() -> None:
    quick = load_config("quick")
    cell = sized(quick, 7)
    assert cell.seed == 7
    assert cell.search.batch_size == quick.experiment.search_batch_size != quick.search.batch_size
    assert cell.retrain.num_epochs == quick.experiment.train_epochs != quick.retrain.num_epochs
    assert cell.retrain.learning_rate == quick.retrain.learning_rate
    tiny = load_config("tiny")  # has no sizes for experiments: those of a run
    assert (sized(tiny, 0).search, sized(tiny, 0).retrain) == (tiny.search, tiny.retrain)


def test_sizes_of_experiments_do_not_change_what_a_run_is() -> None:
    assert load_config("quick").config_hash == load_config("quick", ["experiment.train_epochs=9"]).config_hash


def test_help_lists_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["experiment", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: denoise-nas experiment" in text
    assert all(f"{name}: " in text for name in EXPERIMENTS)


def test_an_unknown_experiment_is_named() -> None:
    with pytest.raises(ValueError, match="unknown experiment 'magic'; known are resampling, "):
        load_experiment("magic")
