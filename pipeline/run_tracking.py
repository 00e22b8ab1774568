"""One run in MLflow: metrics while it works, then its numbers and files; all of it on disk first.

Called by the commands `run` and `baseline train`. Metrics go to `metrics.jsonl` in the run's folder, each name and step
once however often a run is interrupted, and from there to MLflow: a line that is sent again changes nothing, since it
carries its time.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ops.files import naming_file, write_atomically
from pipeline.config import Config
from pipeline.run import Run
from pipeline.sending import UNSENT_FILE, BackgroundSender, FolderRun
from pipeline.summary import record_run
from pipeline.tracking import RUN_ID_FILE, Tracker

JOURNAL_FILE = "metrics.jsonl"

Row = dict[str, float]


class Journal:
    """Metrics on disk, one line per step: its time, its number, its metrics.

    Attributes:
        rows: as `Tracker.log_history` takes them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a killed process may have left half a line
        if whole != text:
            write_atomically(path, whole)
        try:
            self.rows: list[Row] = [json.loads(line) for line in whole.splitlines()]
            self._known = {(name, row["step"]) for row in self.rows for name in row}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}; remove it to go on without the metrics so far") from error

    def add(self, metrics: dict[str, float], step: int) -> Row | None:
        """Write the metrics of a step; return the row, or None where all of them are known."""
        new = {name: float(value) for name, value in metrics.items() if (name, step) not in self._known}
        if not new:
            return None
        row = {"step": step, "time_ms": int(time.time() * 1000)} | new
        with naming_file(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        self._known |= {(name, step) for name in new}
        return row


class RunTracking(FolderRun):
    """The MLflow run of a run's folder; use it as a context manager around the work.

    A server that goes away while the run works is one warning: what it misses is sent when it is back, at the latest
    by the same command once more.

    Args:
        run: settings and folder.
        kind: as a tag to filter by.
        params: settings beside those of the run.

    Raises:
        ConnectionError: the server does not answer when a run begins.
        ValueError: the URI, the remembered run or the journal cannot be used.
    """

    def __init__(self, run: Run, *, kind: str = "architecture", params: Mapping[str, Any] | None = None) -> None:
        self._run = run
        self._kind = kind
        self._params = dict(params or {})
        self._journal = Journal(run.path(JOURNAL_FILE))
        self._sender: BackgroundSender[Row] = BackgroundSender(
            self._send, promise="the run goes on, its metrics stay on disk until they can be sent"
        )
        super().__init__(run.folder)
        write_atomically(run.path(UNSENT_FILE), "the same command sends what MLflow lacks\n")
        for row in self._journal.rows:
            self._sender.add(row)

    @property
    def run_id(self) -> str:
        """The id of the MLflow run."""
        return self._run.path(RUN_ID_FILE).read_text(encoding="utf-8").strip()

    @staticmethod
    def has_unsent(folder: Path) -> bool:
        """Tell whether MLflow lacks something of the run in `folder`."""
        return (folder / UNSENT_FILE).exists()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Keep metrics of a step on disk, and send them soon."""
        row = self._journal.add(metrics, step)
        if row is not None:
            self._sender.add(row)

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """Send what is missing, the numbers and files of a `summary`, and end the MLflow run."""
        if self._sender.finish(lambda: self._end(summary)):
            self._run.path(UNSENT_FILE).unlink()

    def __enter__(self) -> Self:
        self._sender.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sender.__exit__()
        super().__exit__(kind, error, traceback)

    def _open(self) -> Tracker:
        config = self._run.config
        tracker = Tracker.open(
            config.tracking_uri, config.tracking.experiment, f"{config.name} seed {config.seed}", kind=self._kind,
            tags={"preset": config.name, "config_hash": config.config_hash}, remember=self._run.path(RUN_ID_FILE),
        )  # fmt: skip
        tracker.log_params(self._params | run_params(config))
        return tracker

    def _send(self, rows: Sequence[Row]) -> None:
        self.reach().log_history(rows)

    def _end(self, summary: dict[str, Any] | None) -> None:
        tracker = self.reach()
        if summary is not None:
            record_run(self._run, tracker, summary)
        tracker.end()


def run_params(config: Config) -> dict[str, Any]:
    """Return the settings that a run in MLflow shows."""
    settings = config.lasting_settings()
    for key in ("ray", "tracking", "prior_train", "collect", "experiment", "output", "name"):
        del settings[key]
    return settings | {"config_hash": config.config_hash}
