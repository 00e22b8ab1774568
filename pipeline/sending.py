"""Send what work leaves to MLflow from a thread of its own, so that work never waits for a server, nor ends with it.

Called by the tracking of runs and of collections. Whatever is sent is on disk before: nothing is lost here.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar

from pipeline.tracking import TRACKING_ERRORS

UNSENT_FILE = "mlflow_unsent"  # in a folder of a run or a collection while MLflow lacks something of it

_T = TypeVar("_T")
_SECONDS = 3.0  # between two attempts
_logger = logging.getLogger(__name__)


class BackgroundSender(Generic[_T]):
    """Send items in order every few seconds, from one thread; use it as a context manager.

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
