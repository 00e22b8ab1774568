"""What holds for every experiment."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.config import load_config
from pipeline.experiments import EXPERIMENTS, Experiment, load_experiment
from pipeline.experiments.runner import sized


@pytest.fixture(params=list(EXPERIMENTS))
def experiment(request: pytest.FixtureRequest) -> Experiment:
    return load_experiment(request.param)


def _never(*_: object, **__: object) -> None:
    raise ValueError("the experiment begins")


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
            assert claim.estimate({0: paper}).value == pytest.approx(claim.paper, abs=0.0051), claim.text


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


@pytest.mark.parametrize(("setting", "required", "got"), [("arch_samples", "1", "4"),
                                                          ("precision", "'float32'", "'bfloat16'")])  # fmt: skip
@pytest.mark.parametrize("name", ["nas", "prior"])
def test_a_setting_that_not_all_compared_searches_have_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, setting: str,
    required: str, got: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.run.open_run", _never)
    value = got.strip("'")
    command = ["experiment", name, "--config", "tiny", "--output", str(tmp_path / "run"), f"search.{setting}={value}"]
    assert main(command) == 2
    assert f"`search.{setting}` must be {required} in the experiment {name}, some of whose searches" in (
        error := capsys.readouterr().err
    )
    assert error.endswith(f", got {got}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "value", "reason"),
    [
        (
            "search_patch_size",
            "30",
            "`search.patch_size` and cannot be 30: `search.patch_size` must be a multiple of 4",
        ),
        (
            "search_batch_size",
            "300",
            "`search.batch_size` and cannot be 300: `search.num_patches` must be at least two",
        ),
        ("arch_learning_rate", "-1", "`search.arch_learning_rate` and cannot be -1.0: "),
        ("distilled_patches", "999999999", "`retrain.distilled_patches` and cannot be 999999999: "),
    ],
)
def test_an_impossible_size_is_refused_before_anything_begins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: str, value: str,
    reason: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.run.open_run", _never)
    command = ["experiment", "levels", "--config", "tiny", "--output", str(tmp_path / "run")]
    assert main([*command, f"experiment.{size}={value}"]) == 2
    assert f"`experiment.{size}` stands for {reason}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image_size", [48, 80])
def test_images_must_fit_the_sizes_of_the_experiment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_size: int
) -> None:
    """Those of 48 pixels are smaller than a patch, those of 80 are when they are cut in two."""
    monkeypatch.setattr("pipeline.run.claimed", _never)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (image_size, image_size)).save(tmp_path / "image.png")
    command = ["experiment", "levels", "--config", "tiny", f"data.training=[{tmp_path}]"]
    assert main([*command, "experiment.search_patch_size=64"]) == 2
    error = capsys.readouterr().err
    assert (
        "must have at least 64 pixels" if image_size == 48 else "pieces of at least `search.patch_size` 64"
    ) in error


def test_only_comparisons_with_other_searches_require_settings() -> None:
    assert {name for name in EXPERIMENTS if load_experiment(name).required_settings} == {"nas", "prior"}


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
