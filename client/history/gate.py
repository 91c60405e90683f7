"""At the node: every request to the server passes here, and a message is recorded before its first byte.

A reply is announced, with the SHA-256 of each of its pieces, then the server asks for the pieces. What is
recorded is the announcement's own digest: whoever has it can check every piece. A piece that nothing
announced, or that is not what was announced, does not pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from wardround.client.history.line import unrecorded
from wardround.core.errors import InternalError

ANNOUNCE: Final = "/v1/fleet/push-messages"
PIECE: Final = "/v1/fleet/push-object"
CONTENTLESS: Final = frozenset(
    {
        "/v1/fleet/activate-node",
        "/v1/fleet/deactivate-node",
        "/v1/fleet/send-node-heartbeat",
        "/v1/fleet/pull-messages",
        "/v1/fleet/get-run",
        "/v1/fleet/get-fab",
        "/v1/fleet/pull-object",
        "/v1/fleet/confirm-message-received",
    }
)
"""Routes on which the node asks and nothing of the worker's goes: its public key, its number, names of what
the server itself has sent, and that it lives. They are not recorded one by one."""
REMEMBERED: Final = 64
"""Announcements whose pieces may still be asked for."""
OFFER: Final = "query.plan_offer"
"""Flower's type of a message that offers a plan."""
VERDICTS: Final = frozenset({"accepted", "refused", "waiting", "ok", "failed"})


@dataclass(frozen=True)
class Asked:
    """What the server asked, as its message says: the place of the reply.

    Attributes:
        type: Flower's type of the message.
        manifest: Of its content; empty where it has none.
    """

    type: str
    manifest: Mapping[str, Any]


@dataclass
class Gate:
    """Lets a request of the node to the server pass, or raises.

    Attributes:
        record: Makes a row durable; raises where it does not.
        asked: Id of a message of the server → what it asked; None where there was none.
        answered: Id of a reply → the manifest of its content.
        size: Id of a piece that is here → its bytes.
    """

    record: Callable[[Mapping[str, Any]], None]
    asked: Callable[[str], Asked | None]
    answered: Callable[[str], Mapping[str, Any]]
    size: Callable[[str], int]
    _recorded: dict[str, frozenset[str]] = field(default_factory=dict)
    """Digest of an announcement → its pieces; the last ones."""

    def check(self, path: str, request: Any) -> None:
        """Record what has to be, and let the rest pass.

        Args:
            path: Of the route.
            request: Flower's message for it.

        Raises:
            StorageError: It is not recorded: a full disk, a damaged history.
            UnreachableError: The supervisor does not answer.
            PeerError: A piece that nothing announced.
            InternalError: A route that nobody has judged.
        """
        if path in CONTENTLESS:
            return
        if path == ANNOUNCE:
            self._announce(request)
        elif path == PIECE:
            self._piece(request)
        else:
            raise InternalError("Flower's node asks on a route that nobody has judged", found=path)

    def _announce(self, request: Any) -> None:
        announced = request.SerializeToString(deterministic=True)
        digest = hashlib.sha256(announced).hexdigest()
        if digest in self._recorded:  # the line was lost: the same bytes once more
            return
        pieces = frozenset(name for tree in request.message_object_trees for name in _names(tree))
        size = len(announced) + sum(map(self.size, sorted(pieces)))
        for message in request.messages_list:
            self.record(self._row(message) | {"bytes": size, "digest": digest})
        self._recorded[digest] = pieces
        while len(self._recorded) > REMEMBERED:
            del self._recorded[next(iter(self._recorded))]

    def _piece(self, request: Any) -> None:
        name, content = request.object_id, request.object_content
        known = any(name in pieces for pieces in self._recorded.values())
        if not known or hashlib.sha256(content).hexdigest() != name:
            raise unrecorded()

    def _row(self, message: Any) -> dict[str, Any]:
        """Where the server's own message puts it; what is in the reply is believed for its status alone."""
        asked = self.asked(message.metadata.reply_to_message_id)
        if asked is None:
            return {"kind": "other"}
        manifest = asked.manifest
        row: dict[str, Any] = {"run": _text(manifest.get("run_id"))}
        if asked.type != OFFER:
            row |= {name: _number(manifest.get(name)) for name in ("round", "stage", "attempt", "exchange")}
            row["sums"] = [_text(name) for name in manifest.get("sums") or ()][:2]
        if message.HasField("error"):
            return row | {"kind": "error", "note": f"code {message.error.code}"}
        said = self.answered(message.metadata.message_id)
        note = said.get("verdict" if asked.type == OFFER else "status")
        if note not in VERDICTS:
            return row | {"kind": "other"}
        return row | {"kind": "answer" if asked.type == OFFER else "reply", "note": note}


def _names(tree: Any) -> Iterator[str]:
    yield str(tree.object_id)
    for child in tree.children:
        yield from _names(child)


def _text(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
