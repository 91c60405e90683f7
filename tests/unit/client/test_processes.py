"""How the site's processes are started again, and what they are told."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.client import kept_process
from wardround.client.child import (
    CERTIFICATE,
    CLOCK,
    CLOSED,
    DEADLINE,
    NOT_ADMITTED,
    NOT_YET,
    NodeSettings,
    WorkerSettings,
    follow_orders,
    read_settings,
)
from wardround.client.kept_process import MINUTE_OVER, REASONS, SILENT, KeptProcess, Restarts
from wardround.client.processes import SiteProcesses, SiteSettings
from wardround.core.errors import InternalError, StorageError
from wardround.runtime.passphrases import VARIABLE

SECRET = "ab" * 32


@given(st.integers(-31, 255), st.integers(1, 10**6))
def test_a_process_is_always_started_again_and_never_at_once(code: int, in_a_row: int) -> None:
    """Half a second to a minute; sooner after fewer ends."""
    pause = Restarts().pause_s(code, in_a_row)
    assert 0.5 <= pause <= 60.0
    assert pause <= Restarts().pause_s(code, in_a_row + 1)


def test_a_refusal_that_needs_a_person_is_not_hammered() -> None:
    """While the one that ends within a minute is tried again every few seconds."""
    rule = Restarts()
    for code in (NOT_ADMITTED, CLOCK, CERTIFICATE):
        assert rule.pause_s(code, 1) == 15.0
    assert rule.pause_s(NOT_YET, 1) == rule.pause_s(NOT_YET, 40) == 3.0
    assert rule.pause_s(DEADLINE, 1) == 0.5
    assert {NOT_ADMITTED, CLOCK, CERTIFICATE, NOT_YET, DEADLINE, CLOSED} == set(REASONS)


def test_settings_travel_whole_and_show_no_secret() -> None:
    """As one line; what does not fit is refused without its values."""
    settings = WorkerSettings(node="127.0.0.1:1", secret=SECRET, factory="a.b:c", deadline_s=1)
    line = settings.model_dump_json().encode() + b"\n"
    assert read_settings(WorkerSettings, io.BytesIO(line)) == settings
    assert SECRET not in repr(settings)
    for bad in (b"", b"{}\n", line.replace(b'"node"', b'"knot"'), b'{"secret": "' + SECRET.encode() + b'"}'):
        with pytest.raises(InternalError) as caught:
            read_settings(WorkerSettings, io.BytesIO(bad))
        assert SECRET not in str(caught.value)
    with pytest.raises(InternalError, match="settings"):
        read_settings(NodeSettings, io.BytesIO(line))


def test_orders_are_obeyed_until_the_pipe_closes() -> None:
    """A broken one is passed over."""
    orders: list[object] = []
    ended: list[bool] = []
    lines = b'{"a": 1}\nnonsense\n[2]\n{"b": 3}\n'
    follow_orders(orders.append, lambda: ended.append(True), io.BytesIO(lines)).join(5)
    assert orders == [{"a": 1}, {}, {"b": 3}]
    assert ended == [True]


def test_nothing_secret_stands_on_a_command_line_or_in_an_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the secret nor a path of a key; the output of both goes to files of their owner."""
    begun: list[tuple[list[str], dict[str, str], bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], *, env: dict[str, str], **more: object) -> None:
            begun.append((command, env, b""))
            idle = [sys.executable, "-c", "input()"]
            super().__init__(idle, env=env, **more)  # type: ignore[call-overload]  # passed on as given

    monkeypatch.setattr(subprocess, "Popen", Popen)
    settings = SiteSettings(
        server="127.0.0.1:1", ca=tmp_path / "ca.pem", transport_key=lambda: "a key",
        factory="a:b", record=lambda _: None, deadline_s=1.0, logs=tmp_path / "logs",
    )  # fmt: skip
    site = SiteProcesses(settings)
    secret = json.loads(site._worker.settings().model_dump_json())["secret"]
    site._node.start()
    site._worker.start()
    site.stop()
    assert len(begun) == 2
    for command, environment, _ in begun:
        text = " ".join([*command, *environment.keys(), *environment.values()])
        assert secret not in text
        assert "transport.key" not in text
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    other = SiteProcesses(settings)
    other.stop()
    assert secret != json.loads(other._worker.settings().model_dump_json())["secret"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "logs").iterdir()} == {0o600}


CHATTY = "import time\nwhile True:\n    print('x' * 99, flush=True)\n    time.sleep(0.002)"


@pytest.fixture
def chatty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The worker of a site, whose process writes 100 bytes every few milliseconds."""

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **more: object) -> None:
            super().__init__([sys.executable, "-c", CHATTY], **more)  # type: ignore[call-overload]  # as given

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(kept_process, "LARGEST_LOG", 5000)
    settings = SiteSettings(
        server="127.0.0.1:1", ca=tmp_path / "ca.pem", transport_key=lambda: "a key",
        factory="a:b", record=lambda _: None, deadline_s=1.0, logs=tmp_path / "logs",
    )  # fmt: skip
    site = SiteProcesses(settings)
    yield site._worker
    site.stop()


def test_a_process_is_not_told_the_passphrase(chatty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the supervisor's environment stays there."""
    monkeypatch.setenv(VARIABLE, "a dozen words or so")
    chatty.start()
    try:
        told = Path(f"/proc/{chatty.state.pid}/environ").read_bytes()
        assert b"PATH=" in told
        assert VARIABLE.encode() not in told
    finally:
        chatty.end(5.0)


def test_the_log_of_a_process_that_lives_long_is_bounded(chatty: Any, tmp_path: Path) -> None:
    """It goes on in the same file, from its beginning; the former one is kept, and both hold whole lines."""
    log, former = tmp_path / "logs" / "worker.log", tmp_path / "logs" / "worker.1.log"
    chatty.start()
    try:
        pid, written, cuts, before = chatty.state.pid, 0, 0, 0
        while cuts < 3:
            chatty.look()
            size = log.stat().st_size
            cuts += size < before
            before, written = size, max(written, size)
            time.sleep(0.01)
        assert chatty.state.pid == pid
        assert written < 50_000
        assert former.stat().st_size > 5000
        assert former.stat().st_mode & 0o777 == 0o600
        time.sleep(0.1)
        assert set(log.read_bytes()) <= set(b"x\n")  # no hole where the file was cut
    finally:
        chatty.end(5)


def test_a_disk_that_is_full_keeps_no_process_from_starting(
    chatty: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it says goes where the supervisor's output goes."""

    def full(_: Path) -> None:
        raise StorageError("cannot write logs", found="No space left on device")

    monkeypatch.setattr(kept_process, "private_folder", full)
    chatty.start()
    try:
        deadline = time.monotonic() + 20
        while "x" * 99 not in capfd.readouterr().out:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        chatty.end(5)


def test_a_former_log_that_cannot_be_kept_bounds_the_log_all_the_same(
    chatty: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk has no room for the copy: the log begins anew."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_process.shutil, "copyfile", full)
    log = tmp_path / "logs" / "worker.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * 6000)
    chatty._bound_log()
    assert log.read_bytes() == b""
    assert not log.with_suffix(".1.log").exists()


def child_of(
    monkeypatch: pytest.MonkeyPatch, program: str, silent_s: float, restarts: Restarts | None = None
) -> KeptProcess:
    """A child that runs a program of the test's; it reads its settings into `line`."""

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **more: Any) -> None:
            read = "import json, os, sys, time; line = json.loads(sys.stdin.readline())\n"
            super().__init__([command[0], "-c", read + program], **more)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    settings = WorkerSettings(node="127.0.0.1:1", secret=SECRET, factory="a.b:c", deadline_s=1)
    return KeptProcess("worker", "none", lambda: settings, restarts or Restarts(), None, silent_s)


def looked_after(child: KeptProcess, seconds: float) -> list[int]:
    """How it ended, looked at for so long."""
    codes, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        code = child.look()
        if code is not None:
            codes.append(code)
        time.sleep(0.02)
    return codes


BEATING = "while True: os.write(line['beats'], b'.'); time.sleep(0.1)"


def test_a_process_without_a_sign_of_life_is_killed_and_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped, it can neither end nor be asked to; one that beats lives on."""
    child = child_of(monkeypatch, BEATING, silent_s=1.5)
    assert looked_after(child, 3.0) == []
    first = child.process
    assert first is not None
    os.kill(first.pid, signal.SIGSTOP)
    assert looked_after(child, 4.0) == [-signal.SIGKILL]
    assert child.state.reason == SILENT
    assert child.process is not None
    assert (child.process.pid != first.pid, child.state.restarts) == (True, 1)
    child.process.kill()
    assert looked_after(child, 0.3) == [-signal.SIGKILL]
    assert child.state.reason == "signal 9", "of this end, which was another"
    child.end(1.0)


def test_a_supervisor_that_was_stopped_itself_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the time that it did not look, a second counts."""
    child = child_of(monkeypatch, "time.sleep(60)", silent_s=2.5)
    child.look()
    for gap in (0.0, 1000.0, 1000.0):
        child.looked -= gap
        assert child.look() is None
    child.looked -= 1000.0
    assert child.look() == -signal.SIGKILL


def test_each_start_reads_the_settings_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a transport key that was rotated among them; where there is none it is not hammered."""
    keys: list[Path | None] = [Path("old"), None, Path("new")]
    told: list[str] = []

    def present() -> WorkerSettings:
        key = keys.pop(0)
        if key is None:
            raise StorageError("the key is not there")
        told.append(str(key))
        return WorkerSettings(node=str(key), secret=SECRET, factory="a.b:c", deadline_s=1)

    quick = Restarts(least_s=0.05, refused_s=0.5)
    child = child_of(monkeypatch, "sys.exit(3)", 60.0, quick)
    child.settings = present
    failed = 0
    end = time.monotonic() + 20
    while len(told) < 2 and time.monotonic() < end:
        try:
            child.look()
        except StorageError:
            failed += 1
        time.sleep(0.01)
    assert (told, failed) == (["old", "new"], 1)
    child.end(1.0)


def test_no_descriptor_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many restarts."""
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    child = child_of(monkeypatch, "sys.exit(3)", 60.0, Restarts(least_s=0.01, most_s=0.01))
    assert len(looked_after(child, 2.0)) > 3
    child.end(1.0)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_a_site_that_runs_twice_is_told_that_its_folder_was_copied() -> None:
    """Not after a node that was killed, which the server lets in again within a minute."""
    child = KeptProcess("node", "none", WorkerSettings, Restarts(), None, 30.0)
    child.code, child.in_a_row = NOT_YET, MINUTE_OVER
    assert MINUTE_OVER * Restarts().not_yet_s > 90
    assert child.state.reason == REASONS[NOT_YET]
    child.in_a_row += 1
    assert "another machine runs with a copy" in child.state.reason
    child.code = DEADLINE
    assert child.state.reason == REASONS[DEADLINE]
