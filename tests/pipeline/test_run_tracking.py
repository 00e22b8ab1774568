"""Metrics of a run: on disk first, in MLflow once, whatever happens in between."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import run_tracking
from pipeline.config import load_config
from pipeline.run import Run, open_run
from pipeline.run_tracking import Journal, RunTracking
from pipeline.tracking import MlflowClient, MlflowException

NAME = "part0/l_dp_weights"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture
def run(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """An opened run, whose numbers and files at the end are left out: there is no work."""
    monkeypatch.setattr(run_tracking, "record_run", lambda run, tracker, summary: tracker.rename("done"))
    yield open_run(load_config("tiny", [f"output={tmp_path / 'run'}", f"tracking.uri={database}"]))


def history(database: str, run_id: str, name: str = NAME) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(database).get_metric_history(run_id, name)]


def test_each_name_and_step_is_kept_once_and_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    assert journal.add({"a": 1.0, "b": 2}, 1) is not None
    assert journal.add({"a": 9.0}, 1) is None
    assert journal.add({"a": 9.0, "c": 3.0}, 1)["c"] == 3.0
    with path.open("a") as file:
        file.write('{"step": 2, "time_ms"')
    again = Journal(path)
    assert [{k: v for k, v in row.items() if k != "time_ms"} for row in again.rows] == [
        {"step": 1, "a": 1.0, "b": 2.0}, {"step": 1, "c": 3.0},
    ]  # fmt: skip
    assert again.add({"a": 1.0}, 1) is None and again.add({"a": 0.5}, 2) is not None
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 1, 2]


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: KeyError\('step'\); remove it"):
        Journal(tmp_path / "metrics.jsonl")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a full disk is /dev/full")
def test_a_full_disk_names_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device; mend that .*metrics\.jsonl"):
        journal.add({"a": 1.0}, 1)
    assert journal.rows == []


def test_a_run_that_is_interrupted_and_told_again_has_each_point_once(run: Run, database: str) -> None:
    with pytest.raises(ZeroDivisionError), RunTracking(run) as first:
        first.log({NAME: 1.0}, 1)
        first.log({NAME: 0.5}, 2)
        raise ZeroDivisionError
    assert MlflowClient(database).get_run(first.run_id).info.status == "FAILED"
    for _ in range(2):  # the second sends all lines again
        assert RunTracking.has_unsent(run.folder)
        with RunTracking(run) as second:
            second.log({NAME: 0.7}, 2)  # an epoch that was repeated
            second.log({NAME: 0.2}, 3)
    with RunTracking(run) as third:
        third.finish({})
    assert first.run_id == second.run_id == third.run_id
    assert history(database, first.run_id) == [(1, 1.0), (2, 0.5), (3, 0.2)]
    assert MlflowClient(database).get_run(first.run_id).info.status == "FINISHED"
    assert not RunTracking.has_unsent(run.folder)


def test_a_run_that_goes_on_with_what_may_change_reaches_mlflow(run: Run, database: str) -> None:
    with RunTracking(run) as first:
        first.log({NAME: 1.0}, 1)
    changed = run.config.with_settings(
        {"search.max_bad_steps": 100, "collect.shared_steps": 7, "experiment.search_epochs": 2}
    )
    assert changed.config_hash == run.config.config_hash
    with RunTracking(replace(run, config=changed)) as second:
        second.log({NAME: 0.5}, 2)
        second.finish({})
    assert history(database, first.run_id) == [(1, 1.0), (2, 0.5)]
    assert not RunTracking.has_unsent(run.folder)


def test_a_server_that_goes_away_is_one_warning_and_gets_everything_later(
    run: Run, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("the server went away")

    with RunTracking(run) as tracking, monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", refuse)
        for epoch in range(1, 4):
            tracking.log({NAME: 1 / epoch}, epoch)
        tracking.finish({})
    assert RunTracking.has_unsent(run.folder)
    assert caplog.text.count("MLflow fails; the run goes on, its metrics stay on disk until they can be sent") == 1
    with monkeypatch.context() as away:  # away when the command is given again, too
        away.setattr(MlflowClient, "get_experiment_by_name", refuse)
        with RunTracking(run) as tracking:
            tracking.log({NAME: 0.25}, 4)
            tracking.finish({})
    assert RunTracking.has_unsent(run.folder)
    with RunTracking(run) as tracking:
        tracking.finish({})
    assert history(database, tracking.run_id) == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 0.25)]
    assert not RunTracking.has_unsent(run.folder)


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("diverged"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_work_that_ends_early_says_so_in_mlflow(run: Run, database: str, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), RunTracking(run) as tracking:
        raise error
    assert MlflowClient(database).get_run(tracking.run_id).info.status == status


def test_the_error_of_the_work_matters_more_than_that_of_the_server(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("the server went away")

    with pytest.raises(ZeroDivisionError), RunTracking(run) as tracking:
        monkeypatch.setattr(MlflowClient, "set_terminated", refuse)
        raise ZeroDivisionError
    assert caplog.text.count(f"run {tracking.run_id} stays marked as running: cannot end run") == 1


def start_server(database: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a tracking server in a process group of its own, and wait until it answers."""
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port), "--backend-store-uri",
         f"sqlite:///{database}", "--artifacts-destination", str(database.parent / "artifacts")],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return server
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_real_server_that_is_killed_gets_everything_when_it_is_back(run: Run, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    object.__setattr__(run, "config", run.config.with_settings({"tracking.uri": f"http://127.0.0.1:{port}"}))
    database = tmp_path / "served" / "mlflow.db"
    database.parent.mkdir()
    server = start_server(database, port)
    try:
        with RunTracking(run) as tracking:
            tracking.log({NAME: 1.0}, 1)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            tracking.log({NAME: 0.5}, 2)
            tracking.finish({})
        assert RunTracking.has_unsent(run.folder)
        server = start_server(database, port)
        with RunTracking(run) as tracking:
            tracking.finish({})
        assert history(f"sqlite:///{database}", tracking.run_id) == [(1, 1.0), (2, 0.5)]
        assert not RunTracking.has_unsent(run.folder)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
