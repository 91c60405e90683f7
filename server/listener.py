"""The door of the public listener: which routes exist, who may knock, how large a body may be.

Pure ASGI, without Flower. What is not named here is answered with 404, before anything is parsed; a fleet
request whose key is not admitted with 401, before its body is read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from typing import IO, Any

from wardround.core.errors import StorageError
from wardround.runtime.files import storing
from wardround.server.full_disk import DiskWatch

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = "/health"
STILL_S = 60.0
"""Seconds in which a request's body has to grow by `STEP`: a slow line is waited for as long as it moves."""
STEP = 1024
LARGEST_QUESTION = 64 * 1024
"""Bytes of a body to one of our own read-only routes."""
PIECE = 16 * 1024
"""Bytes of an answer that are handed to the connection at once; the next ones wait for these."""


@dataclass(frozen=True)
class OwnBody:
    """A route that judges the head of a request by itself, and then takes the body or not: none is kept.

    Attributes:
        app: Reads at most so much as it says, as long as it comes.
        methods: What it takes.
    """

    app: ASGIApp
    methods: frozenset[str]


@dataclass(frozen=True)
class Waiting:
    """Where bodies wait for a slow line, or for their turn: on disk, so that memory does not grow with sites.

    Attributes:
        folder: Of the files, which have no name; None takes the system's.
        large: Bytes above which a body is in a file.
        turns: Large bodies that are in memory together.
        disk: Is told where the disk has no room for one; the other side is answered 503, and tries again.
    """

    folder: Path | None = None
    large: int = 16 * 1024
    turns: int = 2
    disk: DiskWatch = field(default_factory=DiskWatch)
    _turns: asyncio.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_turns", asyncio.Semaphore(self.turns))

    def file(self) -> IO[bytes]:
        """An empty one."""
        return SpooledTemporaryFile(self.large, dir=None if self.folder is None else str(self.folder))

    @property
    def place(self) -> Path:
        """What an error names."""
        return (self.folder or Path(gettempdir())) / "bodies"

    def turn(self, size: int) -> AbstractAsyncContextManager[object]:
        """To have a body of this size in memory; a small one does not wait."""
        return self._turns if size > self.large else nullcontext()


@dataclass(frozen=True)
class Door:
    """Lets through what a site's client needs, and nothing else.

    Attributes:
        fleet: Flower's application, which authenticates nodes.
        largest: Fleet path → most bytes of a body; a path that is not here does not exist.
        key_header: Header in which a node names its key, base64.
        admitted: Whether a named key is on the roster. That its owner speaks is Flower's to check.
        heard: Called with the key of each fleet request that Flower has answered well.
        routes: Our own routes, by path; what lies beneath the path is theirs as well, but for what a longer
            path has. Read-only ones, but for an `OwnBody`.
        waiting: Where large bodies wait.
    """

    fleet: ASGIApp
    largest: Mapping[str, int]
    key_header: bytes
    admitted: Callable[[bytes], bool]
    heard: Callable[[bytes], None]
    routes: Mapping[str, ASGIApp | OwnBody] = field(default_factory=dict)
    waiting: Waiting = field(default_factory=Waiting)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        if path == HEALTH:
            await _answer(
                send, 200 if method in {"GET", "HEAD"} else 405, b"" if method == "HEAD" else b"ok\n"
            )
        elif path in self.largest:
            await self._fleet(scope, receive, send)
        elif (app := self._route(path)) is not None:
            allowed = app.methods if isinstance(app, OwnBody) else {"GET", "HEAD"}
            if method not in allowed:
                await _answer(send, 405)
            elif isinstance(app, OwnBody):
                await app.app(scope, receive, send)
            else:
                await _with_body(app, LARGEST_QUESTION, scope, receive, send, self.waiting)
        else:
            await _answer(send, 404)

    def _route(self, path: str) -> ASGIApp | OwnBody | None:
        for prefix, app in sorted(self.routes.items(), key=lambda route: -len(route[0])):
            if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                return app
        return None

    async def _fleet(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _answer(send, 405)
            return
        key = _named_key(scope, self.key_header)
        if key is None or not self.admitted(key):
            await _answer(send, 401)
            return

        async def heard(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:  # noqa: PLR2004 - HTTP's OK
                self.heard(key)
            await send(message)

        await _with_body(self.fleet, self.largest[scope["path"]], scope, receive, heard, self.waiting)


def _named_key(scope: Scope, header: bytes) -> bytes | None:
    values = [value for name, value in scope["headers"] if name == header]
    if len(values) != 1:
        return None
    try:
        return base64.b64decode(values[0], validate=True)
    except binascii.Error:
        return None


async def _with_body(
    app: ASGIApp, largest: int, scope: Scope, receive: Receive, send: Send, waiting: Waiting
) -> None:
    """Read the body up to a bound and hand the request on; 413 where it is larger, 408 where it stops."""
    declared = [value for name, value in scope["headers"] if name == b"content-length"]
    if any(not value.isdigit() or int(value) > largest for value in declared):
        await _answer(send, 413)
        return
    try:
        with storing(waiting.place, only_disk=True):
            found = await _worked_at(app, largest, scope, receive, waiting)
    except StorageError as error:
        waiting.disk.refused("bodies", error)
        found = HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(found, int):
        await _answer(send, found)
    elif found is not None:
        await _sent(send, *found)


async def _worked_at(
    app: ASGIApp, largest: int, scope: Scope, receive: Receive, waiting: Waiting
) -> tuple[MutableMapping[str, Any], IO[bytes]] | int | None:
    """Head and body of the application's answer, or a status instead; None where nobody waits for one.

    Raises:
        OSError: The disk takes a body in neither way.
    """
    with waiting.file() as body:
        try:
            async with asyncio.timeout(STILL_S) as limit:
                told = 0
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None  # the other side has gone
                    body.write(message.get("body", b""))
                    if body.tell() > largest:
                        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                    if not message.get("more_body", False):
                        break
                    if body.tell() - told >= STEP:
                        told = body.tell()
                        limit.reschedule(asyncio.get_running_loop().time() + STILL_S)
        except TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT
        size = body.tell()
        async with waiting.turn(size):
            start, answer = await _answered(app, scope, receive, body, waiting)
    if max(size, answer.tell()) > waiting.large:
        waiting.disk.works("bodies")
    return start, answer


async def _sent(send: Send, start: MutableMapping[str, Any], answer: IO[bytes]) -> None:
    with answer:
        answer.seek(0, os.SEEK_END)
        left = answer.tell()
        answer.seek(0)
        await send(start)
        while True:
            piece = answer.read(PIECE)
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
            if left <= 0:
                break


async def _answered(
    app: ASGIApp, scope: Scope, receive: Receive, body: IO[bytes], waiting: Waiting
) -> tuple[MutableMapping[str, Any], IO[bytes]]:
    """The head of the application's answer, and a file with its body."""
    body.seek(0)
    whole: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": body.read(), "more_body": False}
    ]

    async def replay() -> MutableMapping[str, Any]:
        return whole.pop() if whole else await receive()

    heads: list[MutableMapping[str, Any]] = []
    answer = waiting.file()

    async def keep(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            heads.append(message)
        else:
            answer.write(message.get("body", b""))

    try:
        await app(scope, replay, keep)
        (start,) = heads
        answer.flush()  # where the disk is full it says so here, and not when half of it is sent
    except BaseException:
        answer.close()
        raise
    return start, answer


async def _answer(send: Send, status: int, body: bytes = b"") -> None:
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"text/plain")]
    if status == 401:  # noqa: PLR2004 - HTTP's Unauthorized
        headers.append((b"www-authenticate", b"Flower-Node"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
