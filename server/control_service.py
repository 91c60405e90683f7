"""`RunControl` over a desk: the operator's commands and followers come in here."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from wardround.core.errors import ConfigError, PeerError, PolicyError, StorageError
from wardround.runtime.control.client import BEAT_S
from wardround.runtime.control.faults import clipped
from wardround.runtime.control.methods import Call, Service
from wardround.runtime.control.protos import run_control_pb2 as pb
from wardround.runtime.control.server import ControlServer, serve
from wardround.runtime.control.sockets import TlsAddress, UnixSocket
from wardround.server.desk import Desk
from wardround.server.feed import Feed
from wardround.server.run_messages import event_message, log_message, run_message, status_message, why_text
from wardround.server.run_record import LARGEST_INITIAL_BYTES, RunRecord

RUN_CONTROL = pb.DESCRIPTOR.services_by_name["RunControl"]
PROTOCOL: Final = 1
"""Of `RunControl`: goes up with every change that an older client would misread."""
SOCKET_FOLDER = "control"
TOKEN_FILE = "operator.token"  # noqa: S105 - a file's name
LARGEST_TOKEN_BYTES = 4096
LONGEST_STOP_S = 60.0
MOST_ENDED = 1000
"""Ended runs in a list: the newest ones."""
LIST_REASON_BYTES = 300


def serve_control(desk: Desk, folder: Path, *, at: UnixSocket | TlsAddress | None = None) -> ControlServer:
    """Let the operator's commands reach a desk, until the returned server is closed.

    Args:
        desk: Started.
        folder: The server's folder; `operator.token` in it is asked for with every call.
        at: Where; the unix socket in the folder's `control/` by default.

    Raises:
        PolicyError: The token's file, or the socket's folder, is open to others.
        StorageError: There is no token, another process serves there, or the port is taken.
    """
    token = read_token(folder)
    return serve([_Service(desk).service()], at or socket_of(folder), token=token)


def socket_of(folder: Path) -> UnixSocket:
    """The control socket of a server folder."""
    return UnixSocket(Path(folder) / SOCKET_FOLDER)


def read_token(folder: Path) -> str:
    """The operator token of a server folder.

    Raises:
        PolicyError: Others may read the file.
        StorageError: It is not there, or is none.
    """
    path = Path(folder) / TOKEN_FILE
    require_own(path)
    try:
        text = path.read_bytes()[: LARGEST_TOKEN_BYTES + 1].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} is no operator token") from error
    if not 16 <= len(text) <= LARGEST_TOKEN_BYTES or not text.isprintable():  # noqa: PLR2004 - least length
        raise StorageError("the operator token is none", found=f"{path}: {len(text)} characters")
    return text


def require_own(path: Path) -> None:
    """Refuse a secret's file that others may read.

    Raises:
        PolicyError: They may.
        StorageError: It is not there.
    """
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise StorageError(
            f"there is no {path.name}", found=f"{path}: {error.strerror}",
            remedy="name the server's folder with --server, or in WARDROUND_SERVER",
        ) from error  # fmt: skip
    if mode & 0o077:
        raise PolicyError(
            f"others may read {path.name}", found=f"{path}: mode {mode:04o}", expected="mode 0600",
            remedy=f"chmod 600 {path}, and make a new one if somebody may have read it",
        )  # fmt: skip


class _Service:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def service(self) -> Service:
        handlers = {
            "Submit": self._submit, "List": self._list, "Status": self._status, "Why": self._why,
            "Drain": self._drain, "Stop": self._stop, "Resume": self._resume, "Exclude": self._exclude,
            "RunEvents": self._events, "Logs": self._logs,
        }  # fmt: skip
        return Service(RUN_CONTROL, PROTOCOL, handlers)

    def _submit(self, parts: Iterator[Any], _: Call) -> Any:
        first = next(parts, None)
        if first is None or first.WhichOneof("part") != "submission":
            raise PeerError("a submission begins with its plan", expected="Submission, then chunks")
        said = first.submission
        if not 0 < said.initial_bytes <= LARGEST_INITIAL_BYTES:
            raise ConfigError(
                "this is no initial adapter", found=f"{said.initial_bytes} bytes",
                expected=f"1 to {LARGEST_INITIAL_BYTES} bytes",
            )  # fmt: skip
        chunks = _chunks(parts, said.initial_bytes, said.initial_sha256)
        return self._message(self._desk.submit(said.signed_plan, chunks, said.submission))

    def _list(self, _: Any, __: Call) -> Any:
        records = self._desk.listed()
        places = {record.run_id: place for place, record in enumerate(records) if not record.status.ended}
        shown = [record for record in records if not record.status.ended]
        shown += [record for record in records if record.status.ended][:MOST_ENDED]
        runs = [run_message(record, places.get(record.run_id)) for record in shown]
        for run in runs:  # so that the list stays one message, however many they are
            run.reason = clipped(run.reason, LIST_REASON_BYTES)
        broken = dict(sorted(self._desk.unreadable.items())[-MOST_ENDED:])
        return pb.ListReply(
            runs=runs, left_out=len(records) - len(shown),
            unreadable={run_id: clipped(why, LIST_REASON_BYTES) for run_id, why in broken.items()},
        )  # fmt: skip

    def _status(self, request: Any, _: Call) -> Any:
        run = self._desk.run(request.run_id)
        return status_message(self._message(run.record), run.view)

    def _why(self, request: Any, _: Call) -> Any:
        run = self._desk.run(request.run_id)
        control, record = run.control, run.record
        ahead = self._desk.ahead_of(record.run_id)
        reply = pb.WhyReply(
            run=self._message(record), ahead=[run_message(each, i) for i, each in enumerate(ahead)]
        )
        waits_for = ""
        if control is not None:
            waits_for, reply.since = control.waiting.text, control.waiting.since
            reply.sites.extend(control.waiting.sites)
        reply.text = why_text(record, waits_for, len(ahead))
        return reply

    def _drain(self, request: Any, _: Call) -> Any:
        return self._message(self._desk.drain(request.run_id))

    def _stop(self, request: Any, _: Call) -> Any:
        asked = request.wait_s if 0 < request.wait_s < LONGEST_STOP_S else LONGEST_STOP_S
        return self._message(self._desk.stop(request.run_id, asked))

    def _resume(self, request: Any, _: Call) -> Any:
        return self._message(self._desk.resume(request.run_id))

    def _exclude(self, request: Any, _: Call) -> Any:
        return self._message(self._desk.exclude(request.run_id, request.site))

    def _events(self, request: Any, call: Call) -> Iterator[Any]:
        run = self._desk.run(request.run_id)
        return _followed(run.events, request, call, event_message, pb.RunEvent)

    def _logs(self, request: Any, call: Call) -> Iterator[Any]:
        run = self._desk.run(request.run_id)
        return _followed(run.lines, request, call, log_message, pb.LogLine)

    def _message(self, record: RunRecord) -> Any:
        ended = record.status.ended
        return run_message(record, None if ended else len(self._desk.ahead_of(record.run_id)))


def _chunks(parts: Iterator[Any], size_bytes: int, digest: bytes) -> Iterator[bytes]:
    """The chunks that follow; raises PeerError where they do not come to what was announced."""
    seen, hashed = 0, hashlib.sha256()
    for part in parts:
        if part.WhichOneof("part") != "chunk":
            raise PeerError("a submission has one plan", expected="nothing but chunks after it")
        seen += len(part.chunk)
        if seen > size_bytes:
            break
        hashed.update(part.chunk)
        yield part.chunk
    if seen != size_bytes or hashed.digest() != digest:
        raise PeerError(
            "the initial adapter did not arrive as it was sent", found=f"{seen} bytes",
            expected=f"{size_bytes} bytes with the digest that was announced", remedy="submit it again",
        )  # fmt: skip


def _followed(
    feed: Feed[Any], request: Any, call: Call, message_of: Callable[[Any], Any], kind: Any
) -> Iterator[Any]:
    """What a feed holds and gets, numbered; beats in between, so that silence means a fault."""
    number = request.after if request.epoch == feed.epoch else 0
    beaten = time.monotonic()
    yield kind(epoch=feed.epoch)
    while call.active:
        batch = feed.after(number, BEAT_S / 4 if request.follow else 0.0)
        for place, (count, record) in enumerate(batch.records):
            message = message_of(record)
            message.epoch, message.number = feed.epoch, count
            message.missed = 0 if place else batch.missed
            yield message
            number = count
        if batch.ended or not (request.follow or batch.records):
            return
        if batch.records:
            beaten = time.monotonic()
        elif time.monotonic() - beaten >= BEAT_S:
            beaten = time.monotonic()
            yield kind(epoch=feed.epoch)
