"""Measuring a line: members only, so much and so often, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from wardround.core.errors import StorageError
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.runtime.server_about import LARGEST_PROBE
from wardround.runtime.signed_requests import HEADER, PROBE, ROUTES, sign_request
from wardround.server.listener import Door, OwnBody
from wardround.server.probe_route import MOST_AT_ONCE, PROBES, WINDOW_S, Turns, probe_route

NOW = 1_795_000_000.0
PATH = ROUTES + PROBE
SIGNER, STRANGER = KeySigner.fresh(), KeySigner.fresh()
MEMBERS = Roster({"north": SIGNER.public, "south": SIGNER.public})


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class Asking:
    """Asks the door of a server that has the route."""

    def __init__(self, route: OwnBody) -> None:
        async def fleet(*_: Any) -> None:
            raise AssertionError("not for Flower")

        self.door = Door(fleet, {}, b"key", lambda _: False, lambda _: None, routes={PATH: route})
        self.read = 0

    def __call__(
        self,
        method: str = "POST",
        path: str = PATH,
        *,
        signer: KeySigner = SIGNER,
        site: str = "north",
        pieces: Sequence[bytes] = (b"",),
        headers: Sequence[tuple[bytes, bytes]] = (),
        signed: str | None = None,
    ) -> tuple[int, bytes]:
        """Status and body."""
        body, sent = list(pieces), list[dict[str, Any]]()

        async def receive() -> dict[str, Any]:
            if not body:
                await asyncio.Event().wait()
            self.read += 1
            return {"type": "http.request", "body": body.pop(0), "more_body": bool(body)}

        async def send(message: Any) -> None:
            sent.append(message)

        header = sign_request(signer, site, path, NOW, signed or method)
        scope = {
            "type": "http", "path": path, "method": method,
            "headers": [(HEADER.encode(), header.encode()), *headers],
        }  # fmt: skip
        asyncio.run(asyncio.wait_for(self.door(scope, receive, send), 10))
        return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


@pytest.fixture
def clock() -> Clock:
    """Of the turns."""
    return Clock()


@pytest.fixture
def asking(clock: Clock) -> Asking:
    """A server that admits north and south."""
    return Asking(probe_route(lambda: MEMBERS, lambda: NOW, Turns(clock)))


def test_what_goes_up_is_counted(asking: Asking) -> None:
    """Up to the bound."""
    status, body = asking(pieces=[b"x" * 1000, b"y" * 24])
    assert (status, json.loads(body)) == (200, {"bytes": 1024})
    assert asking(pieces=[bytes(LARGEST_PROBE)])[0] == 200


def test_what_comes_down_is_as_long_as_was_asked_for(asking: Asking) -> None:
    """And is not made of one byte, which a proxy could pack."""
    status, body = asking("GET", f"{PATH}/70000")
    assert (status, len(body)) == (200, 70_000)
    assert len(set(body)) > 200


@pytest.mark.parametrize("path", [f"{PATH}/0", f"{PATH}/{LARGEST_PROBE + 1}", f"{PATH}/9999999999", PATH])
def test_another_size_is_none(asking: Asking, path: str) -> None:
    """Beyond the bound, or nothing."""
    assert asking("GET", path)[0] == 404


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_stranger_is_refused_before_a_byte_is_read(asking: Asking, method: str) -> None:
    """Another key, no member, a signature for the other method."""
    path = PATH if method == "POST" else f"{PATH}/10"
    other = "GET" if method == "POST" else "POST"
    for more in ({"signer": STRANGER}, {"site": "west"}, {"signed": other}):
        assert asking(method, path, pieces=[b"x"], **more)[0] == 401  # type: ignore[arg-type]  # mypy: mixed values
    assert asking.read == 0


def test_too_much_is_not_read_to_the_end(asking: Asking) -> None:
    """Where it is declared nothing is read; where it is not, no more than the bound."""
    declared = (b"content-length", str(LARGEST_PROBE + 1).encode())
    assert asking(pieces=[b"x"], headers=[declared])[0] == 413
    assert asking(pieces=[b"x"], headers=[(b"content-length", b"-1")])[0] == 413
    assert asking.read == 0
    assert asking(pieces=[bytes(LARGEST_PROBE), b"x", b"never read"])[0] == 413
    assert asking.read == 2


def test_a_member_has_so_many_turns_a_minute(asking: Asking, clock: Clock) -> None:
    """And takes none of another's."""
    assert [asking()[0] for _ in range(PROBES + 1)] == [200] * PROBES + [429]
    assert asking(site="south")[0] == 200
    clock.now += WINDOW_S
    assert asking()[0] == 200


def test_few_are_at_work_at_once(clock: Clock) -> None:
    """Whoever they are of; one that ends makes room, and memory does not grow with who asked once."""
    turns = Turns(clock)
    assert [turns.take(f"site{number}") for number in range(MOST_AT_ONCE + 1)] == [True] * MOST_AT_ONCE + [
        False
    ]
    turns.give_back()
    assert turns.take("one more")
    clock.now += WINDOW_S
    turns.take("late")
    assert set(turns._asked) <= {"late"}


def test_a_body_that_does_not_come_ends(clock: Clock) -> None:
    """And its turn with it."""
    turns = Turns(clock)
    asking = Asking(probe_route(lambda: MEMBERS, lambda: NOW, turns, body_s=0.0))
    assert asking(pieces=())[0] == 408
    assert turns._at_work == 0


def test_a_roster_that_cannot_be_read_shuts_everybody_out() -> None:
    """And says nothing of it."""

    def broken() -> Roster:
        raise StorageError("cannot read /somewhere")

    status, body = Asking(probe_route(broken, lambda: NOW))()
    assert status == 503
    assert b"somewhere" not in body
