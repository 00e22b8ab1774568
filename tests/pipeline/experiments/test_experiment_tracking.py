"""An experiment in MLflow without cells that run; what it holds at the end stands in `test_experiment_command.py`."""

import threading
from pathlib import Path

import pytest

from pipeline import sending
from pipeline.config import load_config
from pipeline.experiments import Experiment
from pipeline.experiments.cells import CellRecord, claim_experiment
from pipeline.experiments.experiment_tracking import ExperimentTracking
from pipeline.tracking import MlflowClient, MlflowException, TrackingError

RECORD = CellRecord(
    stage="run", variant="slow", seed=0, values={"psnr_db": 25.0}, started_at=0.0, seconds=1.0, device="none"
)


def test_an_experiment_that_goes_on_with_what_may_change_reaches_mlflow(
    tmp_path: Path, two_variants: Experiment
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = load_config("tiny")
    first = ExperimentTracking(tmp_path, uri, two_variants, config).reach()
    changed = config.with_settings({"search.max_bad_steps": 100, "retrain.num_workers": 2})
    claim_experiment(tmp_path, two_variants, config)
    claim_experiment(tmp_path, two_variants, changed)
    assert ExperimentTracking(tmp_path, uri, two_variants, changed).reach().run_id == first.run_id


def test_a_record_whose_sending_failed_half_way_is_in_mlflow_once(
    tmp_path: Path, two_variants: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the server went away")

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking = ExperimentTracking(tmp_path, uri, two_variants, load_config("tiny"))
    with monkeypatch.context() as away, pytest.raises(TrackingError, match="cannot log the parameters"):
        away.setattr(MlflowClient, "log_batch", refuse)
        tracking.send([RECORD])
    tracking.send([RECORD])
    tracking.send([RECORD])
    client = MlflowClient(uri)
    (run,) = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()], "tags.kind = 'cell'"
    )
    assert run.info.status == "FINISHED" and run.data.metrics["psnr_db"] == 25


def test_a_server_that_answers_and_refuses_is_one_warning(
    tmp_path: Path, two_variants: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = threading.Semaphore(0)

    def refuse(*_: object, **__: object) -> None:
        attempts.release()
        raise MlflowException("the disk is full")

    monkeypatch.setattr(sending, "_SECONDS", 0.01)
    tracking = ExperimentTracking(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}", two_variants, load_config("tiny"))
    for method in ("log_batch", "set_terminated"):
        monkeypatch.setattr(MlflowClient, method, refuse)
    with tracking.sender() as sender:
        sender.add(RECORD)
        for _ in range(5):
            assert attempts.acquire(timeout=10)
    (warning,) = caplog.messages
    assert "records and tables stay on disk, the same command sends them later: cannot log the parameters" in warning
