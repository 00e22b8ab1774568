"""The command, through Ray with the tiny preset: all Ray tests of experiments are here, so that one cluster serves."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.cluster import ray_session
from pipeline.config import load_config
from pipeline.experiments import EXPERIMENTS, load_experiment
from pipeline.experiments.cells import read_records, values_by_seed
from pipeline.experiments.experiment import Inputs, Values
from pipeline.experiments.runner import run_cells
from pipeline.settings import RayConfig
from pipeline.tracking import MlflowClient, MlflowException

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with ray_session(RayConfig()):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The folder of a finished tiny `resampling` with one seed."""
    folder = tmp_path_factory.mktemp("experiments") / "resampling"
    assert main(["experiment", "resampling", "--config", "tiny", "--seeds", "1", "--output", str(folder)]) == 0
    return folder


def started(folder: Path) -> dict[str, float]:
    """Return when the task of every record began."""
    paths = sorted(folder.glob("run/*.json")) + sorted(folder.glob("measure/*.json"))
    return {f"{path.parent.name}/{path.stem}": json.loads(path.read_text())["started_at"] for path in paths}


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["experiment", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("denoise-nas: error: ") and error.count("\n") == 1
    return error


def test_every_cell_leaves_a_record_and_timings_come_after_all_runs(finished: Path) -> None:
    times = started(finished)
    variants = [variant.name for variant in load_experiment("resampling").variants]
    assert set(times) == {f"{stage}/{name}-seed0" for stage in ("run", "measure") for name in variants}
    timings = [json.loads(path.read_text()) for path in finished.glob("measure/*.json")]
    runs = [json.loads(path.read_text()) for path in finished.glob("run/*.json")]
    assert min(t["started_at"] for t in timings) >= max(r["started_at"] + r["seconds"] for r in runs)
    timings.sort(key=lambda record: record["started_at"])
    for earlier, later in zip(timings, timings[1:], strict=False):  # one at a time
        assert later["started_at"] >= earlier["started_at"] + earlier["seconds"] - 0.01
    results = json.loads((finished / "results.json").read_text())
    assert results["seeds"] == [0]
    assert results["verdict"] == "not decided"  # one seed tells no spread


def test_finished_cells_are_never_repeated(finished: Path) -> None:
    before = started(finished)
    (finished / "run" / "model-4-seed0.json").unlink()  # what a kill leaves: a cell that was in flight is missing
    command = ["experiment", "resampling", "--config", "tiny", "--output", str(finished)]
    assert main([*command, "--seeds", "2"]) == 0
    after = started(finished)
    assert len(after) == 2 * len(before)
    assert after.pop("run/model-4-seed0") > before.pop("run/model-4-seed0")
    assert {name: after[name] for name in before} == before
    assert json.loads((finished / "results.json").read_text())["seeds"] == [0, 1]


def test_a_missing_package_leaves_its_row_empty_until_it_is_there(tmp_path: Path, inputs: Inputs) -> None:
    found = load_experiment("resampling")
    needy, other = found.variants[:2]

    def run_with(package: str) -> Values:
        asked = replace(found, variants=(replace(needy, package=package), other), measure=None)
        run_cells(asked, load_config("tiny"), inputs, seeds=[0], folder=tmp_path, progress=lambda *_: None,
                  on_record=lambda _: None)  # fmt: skip
        (values,) = values_by_seed(read_records(tmp_path), asked).values()
        assert "psnr_db" in values[other.name]
        return values[needy.name]

    assert run_with("no_such_package") == {}
    assert "psnr_db" in run_with("json")


def test_mlflow_holds_every_cell_and_the_table(finished: Path) -> None:
    client = MlflowClient(f"sqlite:///{finished.parent / 'mlflow.db'}")
    run_id = (finished / "mlflow_run_id").read_text().strip()
    parent = client.get_run(run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["model-1/psnr_db"] > 10
    assert parent.data.params["retrain.learning_rate"] == "0.001"
    assert {file.path for file in client.list_artifacts(run_id)} >= {"table.md", "table.csv", "results.json"}
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'")
    assert sorted(child.data.tags["record"] for child in children) == sorted(started(finished))
    assert all(child.info.status == "FINISHED" for child in children)


@pytest.mark.parametrize("method", ["get_experiment_by_name", "log_artifact"])
def test_a_server_that_is_away_costs_an_experiment_nothing(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, method: str,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the server went away")

    (finished / "results.json").unlink()
    seeds = str(len(list(finished.glob("run/model-1-*.json"))))
    monkeypatch.setattr(MlflowClient, method, refuse)
    command = ["experiment", "resampling", "--config", "tiny", "--seeds", seeds, "--output", str(finished)]
    assert main(command) == 0
    assert (finished / "results.json").exists()
    assert "## resampling: " in capsys.readouterr().out
    assert caplog.text.count("MLflow fails; records and tables stay on disk") == 1


def test_a_failed_cell_is_named_and_the_others_are_kept(
    capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "model-2-seed3").write_text("in the way of the cell's folder")
    command = ["resampling", "--config", "tiny", "--seeds", "1", "--output", str(folder), "seed=3"]
    line = error_line(capsys, *command)
    assert "1 of 5 cells failed, the others are kept: model-2, seed 3: FileExistsError" in line
    assert len(started(folder)) == 4
    (folder / "files" / "model-2-seed3").unlink()
    assert main(["experiment", *command]) == 0
    assert len(started(folder)) == 10


def test_a_wrong_command_gives_one_line_and_begins_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = ", ".join(EXPERIMENTS)
    assert f"unknown experiment 'resample'; known are {known}" in error_line(capsys, "resample")
    assert "`--seeds` must be at least 1, got 0" in error_line(capsys, "resampling", "--seeds", "0")
    assert f"give the name of an experiment ({known})" in error_line(capsys)
    line = error_line(capsys, "resampling", "retrain.num_epochs=3")
    assert "`retrain.num_epochs` has no effect in an experiment with preset quick" in line
    assert "unknown key `experiment.epochs`" in error_line(capsys, "resampling", "experiment.epochs=3")
    assert "`experiment.train_epochs` must be at least 1, got 0" in error_line(
        capsys, "resampling", "experiment.train_epochs=0"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_experiment_is_refused(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    line = error_line(capsys, "resampling", "--config", "tiny", "--output", str(finished), "experiment.toy_epochs=1")
    assert "holds the experiment 'resampling' with settings" in line


def test_prior_searches_its_parts_in_processes_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "prior"
    settings = ["search.num_epochs=2", "search.num_patches=8", "retrain.num_epochs=1"]
    assert main(["experiment", "prior", "--config", "tiny", "--seeds", "1", "--output", str(folder), *settings]) == 0
    values = json.loads((folder / "results.json").read_text())["values"]["0"]
    assert values["parts"]["memory_mb"] < values["whole"]["memory_mb"]
    assert values["parts"]["search_seconds"] > values["parts"]["features_seconds"] > 0
    assert values["whole"]["search_seconds"] > 0
    assert all(values[name]["measured_ms"] > 0 for name in ("parts", "whole"))
    ends = [json.loads(path.read_text()) for path in sorted((folder / "run").glob("*.json"))]
    ends.sort(key=lambda record: record["started_at"])
    assert ends[1]["started_at"] >= ends[0]["started_at"] + ends[0]["seconds"] - 0.01  # alone on the machine


def test_operators_leave_their_figures(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "operators"
    settings = ["search.num_patches=8", "retrain.num_epochs=1", "retrain.steps_per_epoch=2"]
    command = ["experiment", "operators", "--config", "tiny", "--seeds", "1", "--output", str(folder), *settings]
    assert main(command) == 0
    page = tmp_path / "docs" / "page.md"
    assert main(["experiment", "--report", str(folder), str(finished), "--output", str(page)]) == 0
    text = page.read_text()
    assert text.index("## resampling: ") < text.index("## operators: ")  # in the order of the paper
    assert "(page/operators/statistics.png)" in text
    assert (page.parent / "page" / "operators" / "statistics.png").stat().st_size > 10_000


def test_a_page_is_written_by_the_command(capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert main(["experiment", "--report", str(finished), "--output", str(page)]) == 0
    assert "## resampling: " in page.read_text()
    assert "give either the name of an experiment or --report" in error_line(
        capsys, "resampling", "--report", str(finished)
    )
