"""One run on an MLflow server or in a SQLite database: the one module that imports mlflow.

Called by the commands and by the collection, always from one process per run. The loops never see a `Tracker`: they
take a callable `log(metrics, step)`, which is `Tracker.log_metrics` here and anything else in a test.
"""

import fcntl
import http.client
import json
import logging
import math
import os
import re
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

# Read by mlflow when it is imported; a user's own setting wins.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # "View run ..." at the end of every run
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")  # waits a minute for a server that restarts, not four
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds

from mlflow import MlflowClient  # noqa: E402  the settings above come first
from mlflow.entities import Experiment, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from ops.files import write_atomically  # noqa: E402
from pipeline.plain import dotted  # noqa: E402

# Limits of MLflow's API, see mlflow.utils.validation.
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000
CONNECT_TIMEOUT = 5  # seconds
RUN_ID_FILE = "mlflow_run_id"  # in the folder of whatever has a run


class TrackingError(ValueError):
    """MLflow refuses, or its server went away."""


TRACKING_ERRORS = (TrackingError, OSError)  # what may happen to whoever writes

_SQLITE_PREFIX = "sqlite:///"
_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Tracker:
    """Write parameters, metrics and files of one run, which stays marked as running until it is ended.

    Attributes:
        tracking_uri: of the server or database, absolute.
        experiment_id: of the experiment that the run is in.
        run_id: of the run; give it to `open` to write on.
    """

    def __init__(
        self, client: MlflowClient, *, tracking_uri: str, experiment_id: str, run_id: str, status: str = "FINISHED"
    ) -> None:
        self.tracking_uri = tracking_uri
        self.experiment_id = experiment_id
        self.run_id = run_id
        self._client = client
        self._status = status  # that `leave` gives it
        self._skipped: set[str] = set()

    @classmethod
    def open(
        cls,
        tracking_uri: str,
        experiment_name: str,
        run_name: str,
        *,
        kind: str,
        tags: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        run_id: str | None = None,
        remember: Path | None = None,
    ) -> Self:
        """Create a run, or go on with one, in an experiment that is created when it is missing.

        A SQLite database is created on first use; processes that do so at the same time wait for each other. Its
        artifacts lie in `artifacts` beside it, wherever the command was started. A server decides that itself.

        Args:
            tracking_uri: `http://host:port`, or `sqlite:///path/to/mlflow.db`; a relative path is made absolute.
            experiment_name: groups the runs, for example a collection.
            run_name: what a table of runs shows.
            kind: of the run, as a tag to filter by: `search`, `retrain`, `architecture`.
            tags: further tags.
            parent_run_id: makes the run a child of another one.
            run_id: the run to go on with, instead of a new one.
            remember: file that keeps the run's id, so that the next call goes on with it.

        Raises:
            ConnectionError: the server does not answer within seconds.
            TrackingError: the URI is neither of the two, does not lead to MLflow, or the database, experiment or run
                is not usable.
        """
        if remember is not None and remember.exists():
            run_id = remember.read_text(encoding="utf-8").strip()
        tracking_uri, artifacts = _prepare(tracking_uri, run_id)
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        all_tags = {**(tags or {}), "kind": kind}
        if parent_run_id is not None:
            all_tags["mlflow.parentRunId"] = parent_run_id
        all_tags = {key: _shorten(value, MAX_TAG_LENGTH) for key, value in all_tags.items()}
        status = "FINISHED"
        with _refusals(f"cannot open run {run_name!r} at {tracking_uri}"):
            experiment_id = _experiment(client, experiment_name, artifacts).experiment_id
            if run_id is None:
                run_id = client.create_run(experiment_id, run_name=run_name, tags=all_tags).info.run_id
            else:
                status = _resume(client, run_id, run_name=run_name, experiment_id=experiment_id, tags=all_tags)
        if remember is not None:
            write_atomically(remember, run_id + "\n")
        return cls(client, tracking_uri=tracking_uri, experiment_id=experiment_id, run_id=run_id, status=status)

    def reach(self) -> None:
        """Ask the server for an answer.

        Raises:
            ConnectionError: none within seconds, where a call would try for a minute.
        """
        if not self.tracking_uri.startswith(_SQLITE_PREFIX):
            _reach(self.tracking_uri)

    def child(self, run_name: str, *, kind: str, tags: Mapping[str, str], run_id: str | None = None) -> "Tracker":
        """Create a child run in the same experiment, or go on with one; cheaper than `open`, which asks more."""
        all_tags = {key: _shorten(value, MAX_TAG_LENGTH) for key, value in {**tags, "kind": kind}.items()}
        all_tags["mlflow.parentRunId"] = self.run_id
        if run_id is None:
            with self._refusals("create a child of"):
                run_id = self._client.create_run(self.experiment_id, run_name=run_name, tags=all_tags).info.run_id
        return Tracker(self._client, tracking_uri=self.tracking_uri, experiment_id=self.experiment_id, run_id=run_id)

    def children(self, tag: str) -> dict[str, tuple[str, bool]]:
        """Return run id and whether it is finished of every child run, by its value of `tag`."""
        found: dict[str, tuple[str, bool]] = {}
        token = None
        while True:
            query = f"tags.mlflow.parentRunId = '{self.run_id}'"
            with self._refusals("list the children of"):
                page = self._client.search_runs([self.experiment_id], query, max_results=1000, page_token=token)
            for run in page:
                if tag in run.data.tags:
                    found[run.data.tags[tag]] = (run.info.run_id, run.info.status == "FINISHED")
            token = page.token
            if not token:
                return found

    def share_view(self, name: str, state: Mapping[str, Any]) -> None:
        """Store a view of the experiment's table of runs, which `?viewStateShareKey=NAME` opens in the web page."""
        key = f"mlflow.sharedViewState.{name}"
        with self._refusals("share the view of"):
            self._client.set_experiment_tag(self.experiment_id, key, json.dumps(state))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; nested mappings become dotted names, long values are shortened to MLflow's limit.

        Raises:
            TrackingError: a name is not allowed, or the run has another value for it, which MLflow never changes.
        """
        entries = [Param(key, _shorten(str(value), MAX_PARAM_LENGTH)) for key, value in dotted(params)]
        with self._refusals("log the parameters of"):
            for batch in _batches(entries, MAX_PARAMS_PER_BATCH):
                self._client.log_batch(self.run_id, params=batch)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step in one call. Values that are not finite are left out, with a warning per name.

        MLflow would store infinity as 1.8e308, which ruins every chart, and one bad value should not end a long search.
        """
        self.log_history([{"step": step} | dict(metrics)])

    def log_history(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Log many steps at once: each row holds `step` and metrics; values are treated as in `log_metrics`.

        A row may hold its `time_ms` since 1970, by default now; with it, logging the row again changes nothing.
        """
        now = time.time() * 1000
        self._log_metrics(
            [
                (name, value, int(row.get("time_ms", now)), int(row["step"]))
                for row in rows
                for name, value in row.items()
                if name not in ("step", "time_ms")
            ]
        )

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file to the run, into `folder` of its artifacts.

        Raises:
            FileNotFoundError: there is no such file.
            TrackingError: it cannot be stored.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"artifact {path} does not exist or is not a file")
        with self._refusals("store a file of", Exception):  # a store's own client raises whatever it likes
            self._client.log_artifact(self.run_id, str(path), folder)

    def set_description(self, markdown: str) -> None:
        """Set the text at the top of the run's page."""
        with self._refusals("describe"):
            self._client.set_tag(self.run_id, "mlflow.note.content", _shorten(markdown, MAX_TAG_LENGTH))

    def rename(self, run_name: str) -> None:
        """Give the run another name in tables of runs."""
        with self._refusals("rename"):
            self._client.update_run(self.run_id, name=run_name)

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Mark the run as ended."""
        with self._refusals("end"):
            self._client.set_terminated(self.run_id, status)

    def leave(self) -> None:
        """Mark the run as it was marked when it was opened, after something was added to it; a new one as FINISHED."""
        if self._status != "RUNNING":
            with self._refusals("end"):
                self._client.set_terminated(self.run_id, self._status)

    def _log_metrics(self, values: Sequence[tuple[str, float, int, int]]) -> None:
        entries = []
        for name, value, time_ms, step in values:
            if math.isfinite(value):
                entries.append(Metric(name, float(value), time_ms, step))
            elif name not in self._skipped:
                self._skipped.add(name)
                _logger.warning(
                    "metric %r is %s at step %d: values that are not finite are left out", name, value, step
                )
        with self._refusals("log the metrics of"):
            for batch in _batches(entries, MAX_METRICS_PER_BATCH):
                self._client.log_batch(self.run_id, metrics=batch)

    def _refusals(self, action: str, kind: type[Exception] = MlflowException) -> AbstractContextManager[None]:
        return _refusals(f"cannot {action} run {self.run_id} at {self.tracking_uri}", kind)


def how_to_see(tracking_uri: str, page: str = "") -> str:
    """Return what a user does to see his runs; `page` is the part of the address after the server's."""
    if not tracking_uri.startswith(_SQLITE_PREFIX):
        return f"see it at {tracking_uri.rstrip('/')}{page}"
    command = f"see it with: mlflow ui --backend-store-uri {tracking_uri}"
    return f"{command}\nthen http://127.0.0.1:5000{page}" if page else command


@contextmanager
def _refusals(what: str, kind: type[Exception] = MlflowException) -> Iterator[None]:
    """Let an error of MLflow say in one line what failed.

    Raises:
        TrackingError: for every error of that kind.
    """
    try:
        yield
    except kind as error:
        raise TrackingError(f"{what}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _prepare(tracking_uri: str, run_id: str | None) -> tuple[str, Path | None]:
    """Make sure that the URI leads somewhere; return it absolute, and the folder of artifacts of a database."""
    if tracking_uri.startswith(("http://", "https://")):
        _reach(tracking_uri)
        return tracking_uri.rstrip("/"), None
    path = tracking_uri.removeprefix(_SQLITE_PREFIX)
    if path == tracking_uri or path in ("", ":memory:"):
        raise TrackingError(
            "`tracking_uri` must be http://host:port or sqlite:///path/to/mlflow.db "
            f"(put `mlflow server` in front of any other store), got {tracking_uri!r}"
        )
    database = Path(path).absolute()
    if run_id is not None and not database.exists():
        raise TrackingError(f"database {database} does not exist, it should hold run {run_id}")
    artifacts = database.parent / "artifacts"
    tracking_uri = f"{_SQLITE_PREFIX}{database}"
    _create_database(database, tracking_uri, artifacts)
    return tracking_uri, artifacts


def _reach(tracking_uri: str) -> None:
    """Ask the server once: mlflow itself would try for minutes."""
    try:
        with urllib.request.urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=CONNECT_TIMEOUT):
            pass
    except urllib.error.HTTPError as error:
        error.close()  # it answered; whether it is MLflow the next request tells
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConnectionError(f"no MLflow server answers at {tracking_uri}: {error}") from error


def _create_database(database: Path, tracking_uri: str, artifacts: Path) -> None:
    """Create the tables, one process at a time: mlflow fails when two of them meet an empty database.

    Raises:
        TrackingError: the file is no database, or not one of this version of MLflow.
    """
    from alembic.util import CommandError
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # here: clients of a server need no SQL
    from sqlalchemy.exc import SQLAlchemyError

    database.parent.mkdir(parents=True, exist_ok=True)
    with _lock(database.with_name(f".{database.name}.lock")), _quiet("mlflow.store.db.utils", "alembic"):
        try:
            with closing(sqlite3.connect(database)) as connection:  # mlflow would try a damaged file for two minutes
                connection.execute("PRAGMA schema_version")
            SqlAlchemyStore(tracking_uri, artifacts.as_uri())
        except (MlflowException, CommandError, SQLAlchemyError, sqlite3.Error) as error:
            cause = getattr(error, "orig", None) or error  # SQLAlchemy's own message repeats its SQL
            raise TrackingError(f"database {database} cannot be used: {_one_line(cause)}") from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes
        yield


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Hide progress messages of loggers, but not their warnings."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _experiment(client: MlflowClient, name: str, artifacts: Path | None) -> Experiment:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None if artifacts is None else (artifacts / re.sub(r"[^\w.-]+", "_", name)).as_uri()
        try:
            return client.get_experiment(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)  # another process was quicker
    assert experiment is not None
    if experiment.lifecycle_stage != "active":
        raise TrackingError(f"experiment {name!r} was deleted; restore it or choose another name")
    return experiment


def _resume(client: MlflowClient, run_id: str, *, run_name: str, experiment_id: str, tags: Mapping[str, str]) -> str:
    """Mark a run as running; return how it was marked."""
    run = client.get_run(run_id)
    if run.info.experiment_id != experiment_id:
        raise TrackingError(f"run {run_id} is in experiment {run.info.experiment_id}, not in {experiment_id}")
    client.update_run(run_id, status="RUNNING", name=run_name)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return run.info.status


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _batches(entries: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]
