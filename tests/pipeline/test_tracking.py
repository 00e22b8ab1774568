import http.server
import logging
import math
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.tracking import MlflowClient, MlflowException, Tracker, TrackingError, how_to_see


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a database in a folder that does not exist yet; the first test creates it, in seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'runs' / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, and find it empty afterwards."""
    folder = tmp_path / "working_directory"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture
def open_tracker(database: str, request: pytest.FixtureRequest) -> Callable[..., Tracker]:
    def open_(**settings) -> Tracker:
        return Tracker.open(database, request.node.name, "a017", **{"kind": "search"} | settings)

    return open_


def stored(tracker: Tracker):
    return MlflowClient(tracking_uri=tracker.tracking_uri).get_run(tracker.run_id)


def history(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=tracker.tracking_uri)
    return [(metric.step, metric.value) for metric in client.get_metric_history(tracker.run_id, name)]


def test_a_run_carries_its_name_kind_tags_and_parent(open_tracker: Callable[..., Tracker]) -> None:
    parent = open_tracker(kind="collection")
    run = stored(open_tracker(kind="architecture", tags={"device": "laptop"}, parent_run_id=parent.run_id))
    assert run.info.run_name == "a017"
    assert run.info.status == "RUNNING"
    assert run.data.tags["kind"] == "architecture"
    assert run.data.tags["device"] == "laptop"
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id


def test_params_are_flattened_and_shortened(open_tracker: Callable[..., Tracker]) -> None:
    tracker = open_tracker()
    many = {f"p{index}": index for index in range(150)}
    tracker.log_params({"search": {"num_steps": 3, "adam": {"lr": 1e-3}}, "note": "x" * 7000, "none": None, **many})
    params = stored(tracker).data.params
    assert params["search.num_steps"] == "3"
    assert params["search.adam.lr"] == "0.001"
    assert params["none"] == "None"
    assert params["p149"] == "149"
    assert len(params["note"]) == 6000
    assert params["note"].endswith("x...")


def test_a_changed_param_is_an_error(open_tracker: Callable[..., Tracker]) -> None:
    tracker = open_tracker()
    tracker.log_params({"seed": 0})
    tracker.log_params({"seed": 0})
    with pytest.raises(ValueError, match="cannot log the parameters of run"):
        tracker.log_params({"seed": 1})


def test_metrics_of_a_step_go_in_one_call(
    open_tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = open_tracker()
    calls: list[int] = []
    log_batch = MlflowClient.log_batch

    def counting(self: MlflowClient, run_id: str, metrics=(), **others) -> None:
        calls.append(len(metrics))
        log_batch(self, run_id, metrics=metrics, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    tracker.log_metrics({"part1/loss": 0.5, "part1/psnr_db": 30}, 7)
    assert calls == [2]
    assert history(tracker, "part1/loss") == [(7, 0.5)]
    calls.clear()
    tracker.log_history([{"step": step, "loss": step / 2, "psnr_db": 30} for step in range(600)])
    assert calls == [1000, 200]
    assert history(tracker, "loss") == [(step, step / 2) for step in range(600)]
    calls.clear()
    tracker.log_metrics({}, 0)
    tracker.log_history([])
    assert calls == []


def test_metrics_that_are_not_finite_are_left_out_with_one_warning_each(
    open_tracker: Callable[..., Tracker], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker()
    with caplog.at_level(logging.WARNING, logger="pipeline.tracking"):
        for step in range(3):
            tracker.log_metrics({"psnr_db": math.inf, "loss": math.nan, "ssim": 1.0}, step)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "metric 'psnr_db' is inf at step 0",
        "metric 'loss' is nan at step 0",
    ]
    assert stored(tracker).data.metrics == {"ssim": 1.0}


def test_artifacts_lie_beside_the_database(open_tracker: Callable[..., Tracker], tmp_path: Path) -> None:
    tracker = open_tracker()
    picture = tmp_path / "comparison.png"
    picture.write_bytes(b"png")
    tracker.log_artifact(picture, "pictures")
    tracker.log_artifact(str(picture))
    folder = Path(tracker.tracking_uri.removeprefix("sqlite:///")).parent / "artifacts"
    copies = sorted(folder.rglob(f"*{tracker.run_id}*/**/comparison.png"))
    assert [copy.parent.name for copy in copies] == ["artifacts", "pictures"]
    with pytest.raises(FileNotFoundError, match="missing.png does not exist"):
        tracker.log_artifact(tmp_path / "missing.png")


def test_the_description_is_kept_within_the_limit(open_tracker: Callable[..., Tracker]) -> None:
    tracker = open_tracker()
    tracker.set_description("# Search\n" + "x" * 9000)
    note = stored(tracker).data.tags["mlflow.note.content"]
    assert note.startswith("# Search\n")
    assert len(note) == 8000


def test_a_run_can_be_continued(open_tracker: Callable[..., Tracker]) -> None:
    first = open_tracker()
    first.log_metrics({"loss": 1.0}, 0)
    first.end()
    assert stored(first).info.status == "FINISHED"
    second = open_tracker(run_id=first.run_id, tags={"resumed": "yes"})
    assert stored(second).info.status == "RUNNING"
    second.log_metrics({"loss": 0.5}, 1)
    assert second.run_id == first.run_id
    assert history(second, "loss") == [(0, 1.0), (1, 0.5)]
    assert stored(second).data.tags["resumed"] == "yes"


def test_runs_and_experiments_that_cannot_be_used_are_named(
    open_tracker: Callable[..., Tracker], database: str
) -> None:
    tracker = open_tracker()
    with pytest.raises(ValueError, match="cannot open run 'a017' at sqlite:.*no_such_run"):
        open_tracker(run_id="no_such_run")
    with pytest.raises(ValueError, match=f"run {tracker.run_id} is in experiment {tracker.experiment_id}, not in"):
        Tracker.open(database, "another", "a017", kind="search", run_id=tracker.run_id)
    MlflowClient(tracking_uri=database).delete_experiment(tracker.experiment_id)
    with pytest.raises(ValueError, match="was deleted; restore it or choose another name"):
        open_tracker()


def test_a_relative_path_is_made_absolute(
    database: str, open_tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_tracker()  # the database exists, whichever test runs first
    folder = Path(database.removeprefix("sqlite:///")).parent
    monkeypatch.chdir(folder)
    assert Tracker.open("sqlite:///mlflow.db", "relative", "a017", kind="search").tracking_uri == database


def test_a_database_that_cannot_be_used_is_one_line(database: str, tmp_path: Path) -> None:
    Tracker.open(database, "usable", "a017", kind="search")  # the database exists, whichever test runs first
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"no database, but longer than nothing" * 100)
    with pytest.raises(TrackingError, match=rf"^database {path} cannot be used: file is not a database$"):
        Tracker.open(f"sqlite:///{path}", "experiment", "run", kind="search")
    whole = Path(database.removeprefix("sqlite:///")).read_bytes()
    path.write_bytes(whole[:8192] + bytes(len(whole) - 8192))
    with pytest.raises(TrackingError, match=rf"^database {path} cannot be used: database disk image is malformed$"):
        Tracker.open(f"sqlite:///{path}", "experiment", "run", kind="search")
    path.write_bytes(whole)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    message = rf"^database {path} cannot be used: Detected out-of-date database schema .*mlflow db upgrade"
    with pytest.raises(TrackingError, match=message) as refused:
        Tracker.open(f"sqlite:///{path}", "experiment", "run", kind="search")
    assert "\n" not in str(refused.value)


def test_no_database_is_created_for_a_run_that_it_should_hold(tmp_path: Path) -> None:
    (tmp_path / "mlflow_run_id").write_text("0123\n")
    with pytest.raises(TrackingError, match=rf"^database {tmp_path}/other/mlflow.db does not exist, .* hold run 0123$"):
        Tracker.open(
            f"sqlite:///{tmp_path}/other/mlflow.db", "experiment", "run", kind="search",
            remember=tmp_path / "mlflow_run_id",
        )  # fmt: skip
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda tracker, path: tracker.log_metrics({"loss": 1.0}, 0), "log_batch"),
        (lambda tracker, path: tracker.log_params({"seed": 1}), "log_batch"),
        (lambda tracker, path: tracker.log_artifact(path), "log_artifact"),
        (lambda tracker, path: tracker.set_description("text"), "set_tag"),
        (lambda tracker, path: tracker.rename("name"), "update_run"),
        (lambda tracker, path: tracker.child("name", kind="row", tags={}), "create_run"),
        (lambda tracker, path: tracker.children("row"), "search_runs"),
        (lambda tracker, path: tracker.share_view("name", {}), "set_experiment_tag"),
        (lambda tracker, path: tracker.end(), "set_terminated"),
    ],
)
def test_whatever_mlflow_refuses_is_one_error_of_ours(
    open_tracker: Callable[..., Tracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    call: Callable[[Tracker, Path], object], name: str,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("went\naway")

    tracker = open_tracker()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(MlflowClient, name, refuse)
    with pytest.raises(TrackingError, match=rf"^cannot [\w ]+ run {tracker.run_id} at sqlite:.*: went away$"):
        call(tracker, tmp_path / "file")


def test_runs_on_a_server_are_seen_at_its_address() -> None:
    assert how_to_see("http://head:5000/") == "see it at http://head:5000"
    assert how_to_see("http://head:5000", "/#/experiments/1") == "see it at http://head:5000/#/experiments/1"
    command = "see it with: mlflow ui --backend-store-uri sqlite:////runs/mlflow.db"
    assert how_to_see("sqlite:////runs/mlflow.db") == command
    assert how_to_see("sqlite:////runs/mlflow.db", "/#/x") == f"{command}\nthen http://127.0.0.1:5000/#/x"


def test_an_artifact_store_that_lacks_its_client_is_one_error_of_ours(
    open_tracker: Callable[..., Tracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'boto3'")

    tracker = open_tracker()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    with pytest.raises(TrackingError, match=r"^cannot store a file of run .*: No module named 'boto3'$"):
        tracker.log_artifact(tmp_path / "file")


def test_a_port_that_is_no_number_is_an_error_of_ours() -> None:
    with pytest.raises(ConnectionError, match="no MLflow server answers at http://host:abc: nonnumeric port: 'abc'"):
        Tracker.open("http://host:abc", "experiment", "run", kind="search")


@pytest.mark.parametrize("uri", ["", "runs/mlflow.db", "sqlite://", "sqlite:///:memory:", "postgresql://host/db"])
def test_other_stores_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="`tracking_uri` must be http://host:port or sqlite:///path"):
        Tracker.open(uri, "experiment", "run", kind="search")


def test_a_server_that_is_not_there_is_an_error_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "CONNECT_TIMEOUT", 0.2)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        start = time.perf_counter()
        with pytest.raises(ConnectionError, match=f"no MLflow server answers at {uri}: "):
            Tracker.open(uri, "experiment", "run", kind="search")
        closed.listen()  # now it accepts, and never answers
        with pytest.raises(ConnectionError, match=f"no MLflow server answers at {uri}: timed out"):
            Tracker.open(uri, "experiment", "run", kind="search")
    assert time.perf_counter() - start < 5


def test_a_server_that_is_not_mlflow_is_an_error() -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802  named by the standard library
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            uri = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(ValueError, match=f"cannot open run 'run' at {uri}: .*404"):
                Tracker.open(uri, "experiment", "run", kind="search")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_telemetry_and_links_are_off_unless_the_user_sets_them() -> None:
    names = ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    program = f"import os, pipeline.tracking; print(*(os.environ[name] for name in {names}))"
    command = [sys.executable, "-c", program]
    root = Path(tracking.__file__).parents[1]
    for setting in ("true", "false"):
        output = subprocess.check_output(command, cwd=root, env=environment, text=True)
        assert output.split() == ["true", setting]
        environment["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "false"


def _open_and_log(uri: str, barrier, results) -> None:
    barrier.wait()
    tracker = Tracker.open(uri, "shared", "run", kind="search")
    tracker.log_metrics({"loss": 1.0}, 0)
    tracker.end()
    results.put(tracker.experiment_id)


@pytest.mark.slow
def test_processes_that_meet_a_missing_database_wait_for_each_other(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_open_and_log, args=(uri, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert results.get() == results.get()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("shared")
    assert len(client.search_runs([experiment.experiment_id])) == 2


@pytest.mark.slow
def test_a_real_server_takes_the_same_run(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        picture = tmp_path / "comparison.png"
        picture.write_bytes(b"png")
        tracker = _open_when_up(f"http://127.0.0.1:{port}/")
        tracker.log_params({"seed": 0})
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.log_artifact(picture, "pictures")
        tracker.end()
        run = stored(tracker)
        client = MlflowClient(tracking_uri=tracker.tracking_uri)
        assert (run.info.status, run.data.metrics, run.data.params) == ("FINISHED", {"loss": 1.0}, {"seed": "0"})
        assert [entry.path for entry in client.list_artifacts(tracker.run_id, "pictures")] == [
            "pictures/comparison.png"
        ]
    finally:
        server.terminate()
        server.wait(20)


def _open_when_up(uri: str) -> Tracker:
    deadline = time.monotonic() + 60
    while True:
        try:
            return Tracker.open(uri, "experiment", "run", kind="search")
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
