"""How the round loop reaches the sites: send these, receive until."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from wardround.core.messages import Reply, Request


class Transport(Protocol):
    """Carries requests to sites and replies back; knows nothing of rounds."""

    def send(self, requests: Sequence[Request]) -> Mapping[str, int]:
        """Hand all requests over, one a site; returns the bytes of their contents, by site."""

    def send_more(self, request: Request) -> int:
        """Hand one site another request, beside those that wait; returns the bytes of its contents."""

    def receive(self, timeout_s: float) -> Sequence[tuple[Reply, int]]:
        """Replies that have arrived, each with the bytes of its content; empty after `timeout_s` without one.

        A site whose process died answers through the transport with status `failed`.
        """
