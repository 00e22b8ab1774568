"""Send what work leaves to MLflow so that work never waits for a server, nor ends with it.

Called by whatever is tracked: runs, baselines, collections, experiments, evaluations. What is sent is on disk before:
nothing is lost here.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from pipeline.tracking import RUN_ID_FILE, TRACKING_ERRORS, Tracker

UNSENT_FILE = "mlflow_unsent"  # in a folder of a run or a collection while MLflow lacks something of it

_T = TypeVar("_T")
_SECONDS = 3.0  # between two attempts
_logger = logging.getLogger(__name__)


class FolderRun(ABC):
    """The MLflow run of a folder: opened at once for new work, and when it is needed for work that goes on.

    So a server that is away stops nothing that began. Use it as a context manager: work that fails marks the run as
    FAILED, or KILLED after Ctrl-C; work that is finished ends it itself.

    Args:
        folder: of the work; remembers the run.

    Raises:
        ConnectionError: the server does not answer when work begins.
        TrackingError: the database, the server or the URI cannot be used when work begins.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tracker: Tracker | None = None
        if not (folder / RUN_ID_FILE).exists():
            self.reach()

    @abstractmethod
    def _open(self) -> Tracker:
        """Open the run that the folder remembers, or a new one."""

    def reach(self) -> Tracker:
        """Return the run's tracker, quick to fail where no server answers.

        Raises:
            ConnectionError: it does not answer.
            TrackingError: the run cannot be opened.
        """
        if self._tracker is None:
            self._tracker = self._open()
        self._tracker.reach()
        return self._tracker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self._tracker is None:
            return
        try:
            self.reach().end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except TRACKING_ERRORS as second:  # the first error matters more
            _logger.warning("run %s stays marked as running: %s", self._tracker.run_id, second)


class BackgroundSender(Generic[_T]):
    """Send items in order every few seconds, from a thread of its own; use it as a context manager.

    Items that cannot be sent wait for the next attempt. The first failure is a warning, the only one.

    Args:
        send: takes the items that wait; may be given the same ones again after it failed.
        promise: what becomes of items that never arrive, for the warning.
    """

    def __init__(self, send: Callable[[Sequence[_T]], object], *, promise: str) -> None:
        self._send = send
        self._promise = promise
        self._waiting: list[_T] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._has_warned = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def add(self, item: _T) -> None:
        """Send `item` with the next attempt."""
        self._waiting.append(item)

    def finish(self, last: Callable[[], object]) -> bool:
        """Send what waits, then call `last`, which sends the rest; return whether all arrived."""
        self._stop.set()
        self._thread.join()
        return self._attempt(self._send_waiting) and self._attempt(last)

    def _work(self) -> None:
        while not self._stop.wait(_SECONDS):
            self._attempt(self._send_waiting)

    def _send_waiting(self) -> None:
        items = list(self._waiting)
        if items:
            self._send(items)
            del self._waiting[: len(items)]

    def _attempt(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except TRACKING_ERRORS as error:
            if not self._has_warned:
                _logger.warning("MLflow fails; %s: %s", self._promise, error)
            self._has_warned = True
            return False
        return True
