"""A collection in MLflow without searching; what it holds at the end stands in `test_collect.py`."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.collect import collection_hash
from pipeline.collection_tracking import CollectionTracking, track_study
from pipeline.config import load_config
from pipeline.priors import NUM_PARTS
from pipeline.tracking import MlflowClient, MlflowException, TrackingError
from search_space import SearchSpace, sample_genotype

NOBODY = "http://127.0.0.1:9"


def test_a_collection_begins_with_its_server_and_goes_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config("tiny")
    with pytest.raises(ConnectionError, match=f"no MLflow server answers at {NOBODY}"):
        CollectionTracking(tmp_path, NOBODY, config)
    (tmp_path / "mlflow_run_id").write_text("0123\n")
    tracking = CollectionTracking(tmp_path, NOBODY, config)
    with tracking.sender() as sender:
        assert not sender.finish(lambda: tracking.end([]))
    assert caplog.text.count("MLflow fails; records stay on disk for `denoise-nas track`: no MLflow server") == 1
    assert (tmp_path / "mlflow_unsent").exists()


def test_a_collection_that_goes_on_with_what_may_change_reaches_mlflow(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = load_config("tiny")
    first = CollectionTracking(tmp_path, uri, config).reach()
    changed = config.with_settings({"search.max_bad_steps": 100, "collect.supernets": "elsewhere"})
    assert collection_hash(changed) == collection_hash(config)
    second = CollectionTracking(tmp_path, uri, changed).reach()
    assert second.run_id == first.run_id
    params = MlflowClient(uri).get_run(second.run_id).data.params
    assert params["search.num_epochs"] == "3" and params["collect.warm_start"] == "True"


def test_track_and_analyze_leave_an_unfinished_collection_as_it_was(tmp_path: Path) -> None:
    uri, report = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "report.html"
    report.write_text("")
    config = load_config("tiny")

    def tracking() -> CollectionTracking:
        return CollectionTracking(tmp_path, uri, config)

    def status() -> str:
        return MlflowClient(uri).get_run((tmp_path / "mlflow_run_id").read_text().strip()).info.status

    with pytest.raises(KeyboardInterrupt), tracking() as first, first.sender():
        first.reach()
        raise KeyboardInterrupt
    for _ in range(2):
        assert tracking().catch_up([]) == 0
        track_study(tmp_path, uri, config, [report])
        assert status() == "KILLED" and (tmp_path / "mlflow_unsent").exists()
    tracking().mark_finished()  # and the server was away then
    tracking().catch_up([])
    assert status() == "FINISHED" and not (tmp_path / "mlflow_unsent").exists()
    track_study(tmp_path, uri, config, [report])
    assert status() == "FINISHED"


def test_a_record_whose_sending_failed_half_way_is_in_mlflow_once(
    tmp_path: Path, tiny_space: SearchSpace, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the server went away")

    genotype = sample_genotype(tiny_space, generator=generator)
    numbers = {f"{name}_part{part}": 1.0 for name in ("macs", "predicted_ms") for part in range(NUM_PARTS)}
    record = numbers | {
        "key": "random-00000", "origin": "random", "index": 0, "seed": 0, "genotype_id": genotype.genotype_id,
        "genotype": json.dumps(genotype.to_dict()), "varied": "{}", "proxy_psnr_db": 25.0, "predicted_ms": 3.0,
        "macs": 1e6, "num_parameters": 1000, "image_size": 64,
    }  # fmt: skip
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking = CollectionTracking(tmp_path, uri, load_config("tiny"))
    with monkeypatch.context() as away, pytest.raises(TrackingError, match="cannot store a file"):
        away.setattr(MlflowClient, "log_artifact", refuse)
        tracking.send([record])
    assert tracking.send([record]) == 1
    assert tracking.send([record]) == 0
    (run,) = MlflowClient(uri).search_runs([tracking.reach().experiment_id], "tags.kind = 'architecture'")
    assert run.info.status == "FINISHED" and run.data.tags["record"] == "random-00000"
