"""uvicorn's connection with small buffers: a server has three or four of them for each site."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.auto import AutoHTTPProtocol

WRITE_BUFFER = 32 * 1024
"""Bytes that a connection has in hand for a line that does not take them; asyncio's TLS has 512 KiB."""


class Connection(AutoHTTPProtocol):  # type: ignore[valid-type,misc]  # of httptools or h11, as is there
    """uvicorn's, which holds little of an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As uvicorn's."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)


def abort_lines() -> None:
    """Close what uvicorn leaves: lines whose handshake was under way, or that took no leave when it ended."""
    left = getattr(asyncio.get_running_loop(), "_transports", {})  # of asyncio's selector loop
    for transport in list(left.values()):
        transport.abort()
