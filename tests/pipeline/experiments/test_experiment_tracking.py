"""An experiment in MLflow without cells that run; what it holds at the end stands in `test_experiment_command.py`."""

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.experiments import Experiment
from pipeline.experiments.cells import CellRecord
from pipeline.experiments.experiment_tracking import ExperimentTracking
from pipeline.tracking import MlflowClient, MlflowException, TrackingError


def test_a_record_whose_sending_failed_half_way_is_in_mlflow_once(
    tmp_path: Path, two_variants: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the server went away")

    record = CellRecord(
        stage="run", variant="slow", seed=0, values={"psnr_db": 25.0}, started_at=0.0, seconds=1.0, device="none"
    )
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking = ExperimentTracking(tmp_path, uri, two_variants, load_config("tiny"))
    with monkeypatch.context() as away, pytest.raises(TrackingError, match="cannot log the parameters"):
        away.setattr(MlflowClient, "log_batch", refuse)
        tracking.send([record])
    tracking.send([record])
    tracking.send([record])
    client = MlflowClient(uri)
    (run,) = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()], "tags.kind = 'cell'"
    )
    assert run.info.status == "FINISHED" and run.data.metrics["psnr_db"] == 25
