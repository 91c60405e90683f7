"""Between the node, which sends, and the supervisor, which records: one datagram each way for a message.

The two ends are a pair of sockets that have no name: the worker inherits neither, and cannot write a row.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from wardround.core.errors import PeerError, StorageError, UnreachableError

LOG = logging.getLogger(__name__)
LARGEST: Final = 16 * 1024
"""Bytes of a datagram."""
WAIT_S: Final = 60.0
"""For one row: a disk may be slow."""


class Asking:
    """The node's end.

    Args:
        descriptor: Of the inherited socket.
        wait_s: For one answer.
    """

    def __init__(self, descriptor: int, wait_s: float = WAIT_S) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(wait_s)
        self._lock = threading.Lock()

    def __call__(self, left: Mapping[str, Any]) -> None:
        """Have what is about to leave recorded; it is on the disk when this returns.

        Raises:
            StorageError: It is not recorded, and must not leave.
            UnreachableError: The supervisor does not answer.
        """
        nonce = secrets.token_hex(8)
        with self._lock:
            try:
                self._socket.send(json.dumps({"nonce": nonce, "left": left}).encode())
                answer = self._answer(nonce)
            except OSError as error:
                raise UnreachableError(
                    "the supervisor does not record what is about to leave", found=type(error).__name__,
                    remedy="it is tried again",
                ) from error  # fmt: skip
        if answer["why"]:
            raise StorageError(str(answer["why"]))

    def close(self) -> None:
        """No more is asked."""
        self._socket.close()

    def _answer(self, nonce: str) -> dict[str, Any]:
        while True:  # an answer to a node before this one may lie there
            answer = json.loads(self._socket.recv(LARGEST))
            if answer["nonce"] == nonce:
                return dict(answer)


class Recording:
    """The supervisor's end: records what the node is about to send, until it is closed.

    Args:
        record: Makes a row durable; raises a WardroundError where it does not.
    """

    def __init__(self, record: Callable[[Mapping[str, Any]], None]) -> None:
        self._record = record
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve, name="wardround-history", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; a row that is being written is finished."""
        with suppress(OSError):
            self.theirs.send(b"")
        self._thread.join()
        self._ours.close()
        self.theirs.close()

    def _serve(self) -> None:
        while data := self._ours.recv(LARGEST):
            nonce, why = "", ""
            try:
                asked = json.loads(data)
                nonce = str(asked["nonce"])
                self._record(asked["left"])
            except (ValueError, KeyError, TypeError) as error:
                why = f"what is to leave cannot be read: {type(error).__name__}"
            except Exception as error:
                LOG.exception("what is about to leave is not recorded, and does not leave")
                why = f"{error}"[:2000]
            with suppress(OSError):
                self._ours.send(json.dumps({"nonce": nonce, "why": why}).encode())


def unrecorded() -> PeerError:
    """For what would leave without a row."""
    return PeerError(
        "something would leave that is not recorded", remedy="it is not sent: somebody may have the worker"
    )
