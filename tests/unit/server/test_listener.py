"""The door of the public listener, without Flower and without a socket."""

from __future__ import annotations

import asyncio
import base64
import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.server import listener
from wardround.server.full_disk import DiskWatch
from wardround.server.listener import Door, OwnBody, Waiting

KEY = b"north's key"
NAMED = (b"key", base64.b64encode(KEY))


class Inner:
    """An application that remembers what reached it."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert message == {"type": "http.request", "body": message["body"], "more_body": False}
        self.bodies.append(message["body"])
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"inner"})


def request(
    door: Door,
    path: str,
    *,
    method: str = "POST",
    headers: Iterable[tuple[bytes, bytes]] = (),
    pieces: Iterable[bytes] = (b"",),
    pause_s: float = 0.0,
) -> int:
    """The status of one request."""
    body = list(pieces)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not body:
            await asyncio.Event().wait()
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": body.pop(0), "more_body": bool(body)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": list(headers)}
    asyncio.run(asyncio.wait_for(door(scope, receive, send), 5))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return int(sent[0]["status"])


def door(fleet: Inner, ours: Inner | None = None, heard: list[bytes] | None = None) -> Door:
    """One that admits north."""
    return Door(
        fleet=fleet,
        largest={"/fleet/pull": 10},
        key_header=b"key",
        admitted=lambda key: key == KEY,
        heard=(heard if heard is not None else []).append,
        routes={"/ours": ours} if ours else {},
    )


@given(st.text(max_size=40), st.sampled_from(["GET", "POST", "PUT", "OPTIONS"]))
def test_what_is_not_named_does_not_exist(path: str, method: str) -> None:
    """Whatever the path; nothing reaches an application."""
    fleet = Inner()
    if path not in {"/health", "/fleet/pull"}:
        assert request(door(fleet), path, method=method, headers=[NAMED]) == 404
    assert fleet.bodies == []


@pytest.mark.parametrize("near", ["/fleet/pull/", "/fleet", "/fleet/pull/x", "//fleet/pull", "/FLEET/pull"])
def test_a_fleet_path_is_the_very_path(near: str) -> None:
    """Not a prefix."""
    assert request(door(Inner()), near, headers=[NAMED]) == 404


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"key", b"%%%")],
        [(b"key", base64.b64encode(b"another"))],
        [NAMED, NAMED],
        [(b"other", NAMED[1])],
    ],
)
def test_who_names_no_admitted_key_is_refused_unread(headers: list[tuple[bytes, bytes]]) -> None:
    """None, nonsense, somebody else's, two."""
    fleet, heard = Inner(), list[bytes]()
    assert request(door(fleet, heard=heard), "/fleet/pull", headers=headers, pieces=[b"x"]) == 401
    assert (fleet.bodies, heard) == ([], [])


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=4))
def test_a_body_arrives_whole_or_is_too_large(pieces: list[bytes]) -> None:
    """10 bytes are allowed here, however they are cut."""
    fleet, whole = Inner(), b"".join(pieces)
    status = request(door(fleet), "/fleet/pull", headers=[NAMED], pieces=pieces)
    assert (status, fleet.bodies) == ((200, [whole]) if len(whole) <= 10 else (413, []))


@pytest.mark.parametrize("declared", [b"11", b"-1", b"1e3", b""])
def test_a_declared_length_is_believed_when_it_is_too_large(declared: bytes) -> None:
    """Before a byte is read."""
    fleet = Inner()
    headers = [NAMED, (b"content-length", declared)]
    assert request(door(fleet), "/fleet/pull", headers=headers, pieces=[]) == 413


def test_a_body_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while; so is one of which hardly anything comes."""
    monkeypatch.setattr(listener, "STILL_S", 0.05)
    assert request(door(Inner()), "/fleet/pull", headers=[NAMED], pieces=[]) == 408
    drops = [b""] * 400
    assert request(door(Inner()), "/fleet/pull", headers=[NAMED], pieces=drops, pause_s=0.002) == 408


def test_a_slow_body_that_moves_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long all of it takes: ten times what may pass without a byte."""
    monkeypatch.setattr(listener, "STILL_S", 0.1)
    monkeypatch.setattr(listener, "STEP", 1)
    fleet = Inner()
    assert request(door(fleet), "/fleet/pull", headers=[NAMED], pieces=[b"x"] * 10, pause_s=0.05) == 200
    assert fleet.bodies == [b"x" * 10]


def test_a_site_is_heard_when_flower_has_let_it_in() -> None:
    """Not by naming a key."""
    heard: list[bytes] = []
    assert request(door(Inner(401), heard=heard), "/fleet/pull", headers=[NAMED]) == 401
    assert heard == []
    assert request(door(Inner(), heard=heard), "/fleet/pull", headers=[NAMED]) == 200
    assert heard == [KEY]


def test_health_and_our_routes_are_for_reading() -> None:
    """And only POST is a fleet request."""
    ours = Inner()
    both = door(Inner(), ours)
    assert request(both, "/health", method="GET") == 200
    assert request(both, "/health") == 405
    assert request(both, "/ours/x", method="GET") == 200
    assert request(both, "/ours", method="HEAD") == 200
    assert request(both, "/ours") == 405
    assert request(both, "/ours", method="GET", pieces=[bytes(2**17)]) == 413
    assert request(both, "/fleet/pull", method="GET", headers=[NAMED]) == 405
    assert len(ours.bodies) == 2


def test_a_large_body_waits_on_disk_for_its_turn() -> None:
    """However many come at once, so many are in memory; small ones pass by."""
    inside = most = 0
    go = asyncio.Event()

    async def fleet(scope: Any, receive: Any, send: Any) -> None:
        nonlocal inside, most
        body = (await receive())["body"]
        if len(body) > 10:
            inside += 1
            most = max(most, inside)
            await go.wait()
            inside -= 1
        else:
            go.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def one(where: Door, body: bytes) -> bytes:
        pieces, sent = [body], list[dict[str, Any]]()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": pieces.pop(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/fleet/pull", "method": "POST", "headers": [NAMED]}
        await where(scope, receive, send)
        return b"".join(message["body"] for message in sent[1:])

    async def all_of_them() -> list[bytes]:
        where = Door(
            fleet, {"/fleet/pull": 100}, b"key", lambda _: True, lambda _: None,
            waiting=Waiting(large=10, turns=2),
        )  # fmt: skip
        asked = [asyncio.create_task(one(where, bytes(50 + i))) for i in range(8)]
        await asyncio.sleep(0.05)
        small = await asyncio.wait_for(one(where, b"small"), 5)
        return [*await asyncio.wait_for(asyncio.gather(*asked), 5), small]

    assert asyncio.run(all_of_them()) == [*(bytes(50 + i) for i in range(8)), b"small"]
    assert most == 2


def test_a_slow_reader_holds_no_answer_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in a file without a name, and goes out in pieces, each when the one before is on its way."""
    monkeypatch.setattr(listener, "PIECE", 1000)
    answer = bytes(range(256)) * 100
    files, sizes, got = [], list[int](), bytearray()

    class Watched(Waiting):
        def file(self) -> Any:
            files.append(super().file())
            return files[-1]

    async def fleet(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            assert files[-1]._rolled
            sizes.append(len(message["body"]))
            got.extend(message["body"])
            assert message["more_body"] == (len(got) < len(answer))

    where = Door(
        fleet, {"/fleet/pull": 10}, b"key", lambda _: True, lambda _: None,
        waiting=Watched(tmp_path, large=5000),
    )  # fmt: skip
    scope = {"type": "http", "path": "/fleet/pull", "method": "POST", "headers": [NAMED]}
    asyncio.run(where(scope, receive, send))
    assert bytes(got) == answer
    assert max(sizes) == 1000
    assert all(file.closed for file in files)
    assert list(tmp_path.iterdir()) == []


class FullFile:
    """A file on a full disk: what is written stays in memory until somebody wants it there."""

    def __init__(self, fails: str) -> None:
        self.fails, self.closed = fails, False

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any) -> Any:
            if name == self.fails:
                raise OSError(errno.ENOSPC, "No space left on device")
            return 0

        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("which", "fails"), [("body", "write"), ("body", "seek"), ("answer", "write"), ("answer", "flush")]
)
def test_a_body_for_which_there_is_no_room_is_put_off(
    which: str, fails: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On its way in or out: 503, whole, and one line in the log however often; then it works again."""
    files: list[FullFile] = []

    class Full(Waiting):
        made = 0

        def file(self) -> Any:
            type(self).made += 1
            if (type(self).made % 2 == 1) != (which == "body"):
                return super().file()
            files.append(FullFile(fails))
            return files[-1]

    disk = DiskWatch()
    where = {"fleet": Inner(), "largest": {"/push": 10**6}, "key_header": b"key"}
    where |= {"admitted": KEY.__eq__, "heard": lambda _: None}
    door = Door(**where, waiting=Full(tmp_path, disk=disk))
    for _ in range(2):
        Full.made = 0
        assert request(door, "/push", headers=[NAMED], pieces=[bytes(20_000)]) == 503
    assert all(file.closed for file in files)
    assert sum("cannot be kept" in line for line in caplog.messages) == 1
    assert str(tmp_path) in caplog.text
    assert disk.lasting(0.0) is not None
    well = Door(**where, waiting=Waiting(tmp_path, disk=disk))
    assert request(well, "/push", headers=[NAMED], pieces=[bytes(20_000)]) == 200
    assert disk.lasting(0.0) is None


def test_a_route_with_a_body_of_its_own_is_handed_it_unread() -> None:
    """By the longest path that fits, and for its own methods alone."""
    seen: list[str] = []

    async def own(scope: Any, receive: Any, send: Any) -> None:
        del receive
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    ours = Inner()
    routes: dict[str, Any] = {"/ours": ours, "/ours/probe": OwnBody(own, frozenset({"POST"}))}
    both = Door(Inner(), {}, b"key", lambda _: False, lambda _: None, routes=routes)
    assert request(both, "/ours/probe", pieces=[b"x" * 100_000]) == 201
    assert request(both, "/ours/probe/5", method="POST") == 201
    assert request(both, "/ours/probe", method="GET") == 405
    assert request(both, "/ours/probed", method="POST") == 405
    assert request(both, "/ours/probed", method="GET") == 200
    assert seen == ["/ours/probe", "/ours/probe/5"]
