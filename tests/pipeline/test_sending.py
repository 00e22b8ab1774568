"""Sending from a thread; what is sent to MLflow stands in `test_run_tracking.py` and `test_collect.py`."""

import logging
import threading
from collections.abc import Sequence

import pytest

from pipeline import sending
from pipeline.sending import BackgroundSender
from pipeline.tracking import TrackingError


class Server:
    """Takes items while it is up; counts what it was asked while it was down."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.is_up = True
        self.was_asked = threading.Event()

    def take(self, items: Sequence[int]) -> None:
        self.was_asked.set()
        if not self.is_up:
            raise TrackingError("nobody is there")
        self.items += items


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(sending, "_SECONDS", 0.01)
    return Server()


def ask(server: Server) -> None:
    server.was_asked.clear()
    assert server.was_asked.wait(10)


def test_items_of_a_server_that_was_away_arrive_once_and_in_order(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), BackgroundSender(server.take, promise="items wait") as sender:
        sender.add(1)
        ask(server)
        server.is_up = False
        for item in (2, 3):
            sender.add(item)
            ask(server)
        server.is_up = True
        ask(server)
        sender.add(4)
        assert sender.finish(lambda: server.take([5]))
    assert server.items == [1, 2, 3, 4, 5]
    assert [record.getMessage() for record in caplog.records] == ["MLflow fails; items wait: nobody is there"]


def test_a_server_that_stays_away_is_told_at_the_end(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.is_up = False
    with BackgroundSender(server.take, promise="items wait") as sender:
        sender.add(1)
        ask(server)
        assert not sender.finish(lambda: pytest.fail("sent the rest before the first"))
    assert caplog.text.count("nobody is there") == 1


def test_work_that_fails_does_not_wait_for_the_server(server: Server) -> None:
    with pytest.raises(ZeroDivisionError), BackgroundSender(server.take, promise="") as sender:
        sender.add(1)
        raise ZeroDivisionError
    assert sender.finish(lambda: None) and server.items == [1]
