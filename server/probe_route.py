"""A route on which members measure their line: so many bytes down, or up to be thrown away.

    GET  /v1/wardround/probe/BYTES    that many bytes that mean nothing
    POST /v1/wardround/probe          {"bytes": how many came}

Head first: who is no member, or asks too often, is refused before a byte of the body is read. What comes is
counted and forgotten; nothing is written anywhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from wardround.core.errors import PeerError, WardroundError
from wardround.privacy.secagg.identity import Roster
from wardround.runtime.server_about import LARGEST_PROBE
from wardround.runtime.signed_requests import HEADER, PROBE, ROUTES, check_request
from wardround.server.listener import PIECE, OwnBody, Receive, Scope, Send

PROBES: Final = 8
"""So many probes of one member within `WINDOW_S`: a check takes four."""
WINDOW_S: Final = 60.0
MOST_AT_ONCE: Final = 2
"""Probes at work: a line that carries a round is not theirs."""
_DOWN: Final = re.compile(re.escape(ROUTES + PROBE) + r"/([1-9][0-9]{0,6})")


@dataclass
class Turns:
    """Who may probe now; for one event loop.

    Attributes:
        clock: Seconds, monotonic.
    """

    clock: Callable[[], float] = time.monotonic
    _asked: dict[str, list[float]] = field(default_factory=dict)
    _at_work: int = 0

    def take(self, site: str) -> bool:
        """Whether it is this site's turn; then `give_back` has to follow."""
        now = self.clock()
        for name, times in list(self._asked.items()):
            self._asked[name] = [at for at in times if now - at < WINDOW_S]
            if not self._asked[name]:
                del self._asked[name]
        if self._at_work >= MOST_AT_ONCE or len(self._asked.get(site, ())) >= PROBES:
            return False
        self._asked.setdefault(site, []).append(now)
        self._at_work += 1
        return True

    def give_back(self) -> None:
        """A probe has ended."""
        self._at_work -= 1


def probe_route(
    roster: Callable[[], Roster],
    now: Callable[[], float] = time.time,
    turns: Turns | None = None,
    body_s: float = 120.0,
) -> OwnBody:
    """The route.

    Args:
        roster: The members' keys, as of now.
        now: Seconds since 1970.
        turns: Bounds how often.
        body_s: Seconds within which a body has to be there.
    """
    turns = turns or Turns()
    noise = os.urandom(LARGEST_PROBE)  # nothing on the way can make it smaller

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        values = [value for name, value in scope["headers"] if name == HEADER.encode()]
        header = values[0].decode("latin-1") if len(values) == 1 else ""
        try:
            members = await asyncio.to_thread(roster)  # a file, which may be large
            asked = check_request(header, path, members, now(), method)
        except PeerError as error:
            await _say(send, HTTPStatus.UNAUTHORIZED, f"{error.what}\n")
            return
        except WardroundError:
            await _say(send, HTTPStatus.SERVICE_UNAVAILABLE, "the server cannot read its roster\n")
            return
        wanted = _wanted(path, method)
        if wanted is None:
            await _say(send, HTTPStatus.NOT_FOUND, "there is no such probe\n")
        elif _declared(scope) > LARGEST_PROBE:
            await _say(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST_PROBE} bytes\n")
        elif not turns.take(asked.site):
            await _say(send, HTTPStatus.TOO_MANY_REQUESTS, "too many probes: try again in a minute\n")
        else:
            try:
                if method == "GET":
                    await _down(send, memoryview(noise)[:wanted])
                else:
                    await _up(receive, send, body_s)
            finally:
                turns.give_back()

    return OwnBody(app, frozenset({"GET", "POST"}))


def _wanted(path: str, method: str) -> int | None:
    """Bytes that are asked for; 0 of an upload, None of what is no probe."""
    if method == "POST":
        return 0 if path == ROUTES + PROBE else None
    found = _DOWN.fullmatch(path)
    return int(found[1]) if found is not None and int(found[1]) <= LARGEST_PROBE else None


def _declared(scope: Scope) -> int:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    return max((int(value) if value.isdigit() else LARGEST_PROBE + 1 for value in values), default=0)


async def _down(send: Send, content: memoryview) -> None:
    headers = [
        (b"content-length", str(len(content)).encode()),
        (b"content-type", b"application/octet-stream"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(content), PIECE):
        more = start + PIECE < len(content)
        piece = bytes(content[start : start + PIECE])
        await send({"type": "http.response.body", "body": piece, "more_body": more})


async def _up(receive: Receive, send: Send, body_s: float) -> None:
    count = 0
    try:
        async with asyncio.timeout(body_s):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return  # the other side has gone
                count += len(message.get("body", b""))
                if count > LARGEST_PROBE:
                    await _say(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST_PROBE} bytes\n")
                    return
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        await _say(send, HTTPStatus.REQUEST_TIMEOUT, "too slow\n")
        return
    await _say(send, HTTPStatus.OK, json.dumps({"bytes": count}))


async def _say(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
