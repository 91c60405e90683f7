"""A worker that has nothing to do is told for how long; what it serves may want to know, or not."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.clientapp import ClientApp

from wardround.client import worker, worker_process
from wardround.client.child import CLOSED, WorkerSettings
from wardround.client.resident import Resident


class EndedError(Exception):
    """The test has seen enough."""


def test_a_worker_is_told_for_how_long_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since its last message, or its beginning; never while it answers."""
    now, told, tasks = [100.0], list[float](), [None, None, "task", None, None]

    def next_task(_: Any) -> Any:
        if not tasks:
            raise EndedError
        return tasks.pop(0)

    def serve_one(*_: Any) -> None:
        now[0] += 1000

    def sleep(_: float) -> None:
        now[0] += 5

    monkeypatch.setattr(worker, "_client", lambda *_: None)
    monkeypatch.setattr(worker, "_next_task", next_task)
    monkeypatch.setattr(worker, "_serve_one", serve_one)
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(worker.time, "sleep", sleep)
    with pytest.raises(EndedError):
        worker.serve_tasks("127.0.0.1:1", b"s", ClientApp(), 1.0, told.append)
    assert told == [0.0, 5.0, 0.0, 5.0]


@pytest.mark.parametrize("rests", [False, True])
def test_a_factory_gives_an_app_or_one_with_an_idle_side(
    monkeypatch: pytest.MonkeyPatch, rests: bool
) -> None:
    """The process serves both."""
    app, told, served = ClientApp(), list[float](), list[Any]()
    settings = WorkerSettings(
        node="127.0.0.1:1", secret="00" * 32, factory="x:y", arguments={}, deadline_s=1.0
    )
    monkeypatch.setattr(worker_process, "read_settings", lambda _: settings)
    monkeypatch.setattr(worker_process, "show_life", lambda _: None)
    monkeypatch.setattr(worker_process, "follow_orders", lambda *_: None)
    monkeypatch.setattr(worker_process, "keep_loopback_off_proxies", lambda: None)
    monkeypatch.setattr(worker_process, "made", lambda _: Resident(app, told.append) if rests else app)
    monkeypatch.setattr(worker, "serve_tasks", lambda *given, **_: served.extend(given))
    assert worker_process.main() == CLOSED  # it serves until it is told to close
    assert served[2] is app
    served[4](7.0)
    assert told == ([7.0] if rests else [])
