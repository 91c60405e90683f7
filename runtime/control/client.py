"""The calling side of control: first contact, a deadline on every call, faults as the errors they were."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final, Self

import grpc
from google.protobuf.message_factory import GetMessageClass

from wardround import __version__
from wardround.core.errors import UnreachableError
from wardround.runtime.control.faults import error_of
from wardround.runtime.control.methods import (
    AUTHORIZATION,
    CONTACT,
    LARGEST_MESSAGE_BYTES,
    PROTOCOL_KEY,
    VERSION_KEY,
    require_protocol,
)
from wardround.runtime.control.protos import contact_pb2
from wardround.runtime.control.sockets import TlsAddress, UnixSocket, require_private, require_short

CALL_S: Final = 5.0
"""Deadline of a call that says none."""
SILENCE_S: Final = 15.0
"""A follower's server says something at least so often; see `BEAT_S`."""
BEAT_S: Final = 4.0
"""After so many quiet seconds a stream's server sends an empty message, so that silence means a fault."""
STREAM_S: Final = 24 * 3600.0


class ControlClient:
    """A connection to one service of a server; a context manager that closes it.

    Not for several threads at a time.

    Args:
        at: Where the server is.
        descriptor: The service's, from the generated module's `DESCRIPTOR.services_by_name`.
        protocol: Of the service, as this side speaks it.
        token: What the server wants to see with every call.
        largest_bytes: Of one message.

    Raises:
        UnreachableError: There is no socket.
        PolicyError: Others may enter the socket's folder: whoever answers there may be anybody.
    """

    def __init__(
        self,
        at: UnixSocket | TlsAddress,
        descriptor: Any,
        protocol: int,
        *,
        token: str | None = None,
        largest_bytes: int = LARGEST_MESSAGE_BYTES,
    ) -> None:
        self._name, self._where, self._protocol = str(descriptor.full_name), str(at), protocol
        self._methods = {method.name: method for method in descriptor.methods}
        self._metadata = [(PROTOCOL_KEY, str(protocol)), (VERSION_KEY, __version__)]
        if token is not None:
            self._metadata.append((AUTHORIZATION, f"Bearer {token}"))
        self._met = False
        self._channel = _channel(at, largest_bytes)

    def call(self, method: str, request: Any, *, deadline_s: float = CALL_S) -> Any:
        """One request, one reply, within so many seconds.

        Raises:
            UnreachableError: No answer in time.
            WardroundError: The server's own error, as it was raised there.
        """
        self._meet(min(deadline_s, CALL_S))
        return self._answered(self._stub(self._name, self._methods[method]), request, deadline_s)

    def send(self, method: str, parts: Iterable[Any], *, deadline_s: float) -> Any:
        """A request of several parts, one reply; raises as `call` does."""
        self._meet(CALL_S)
        return self._answered(self._stub(self._name, self._methods[method]), iter(parts), deadline_s)

    def follow(
        self, method: str, request: Any, *, silence_s: float = SILENCE_S, deadline_s: float = STREAM_S
    ) -> Iterator[Any]:
        """What the server streams, until it ends the stream or the iterator is closed.

        Args:
            method: Of the service.
            request: What is asked for.
            silence_s: So long without a message, and the server counts as hung.
            deadline_s: Of the whole stream.

        Raises:
            UnreachableError: The server is gone, or silent.
            WardroundError: As in `call`.
        """
        self._meet(CALL_S)
        stub = self._stub(self._name, self._methods[method])
        call = stub(request, timeout=deadline_s, metadata=self._metadata)
        watch = _Watch(call, silence_s)
        try:
            while True:
                with watch.waiting():
                    message = next(call, None)
                if message is None:
                    return
                yield message
        except grpc.RpcError as error:
            if watch.silent:
                raise UnreachableError(
                    "the server has fallen silent",
                    found=f"{self._where}: nothing for {silence_s:.0f} s",
                    remedy="look whether it hangs, and what its log says",
                ) from None
            raise error_of(error, self._where) from None
        finally:
            watch.end()
            call.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _meet(self, deadline_s: float) -> None:
        """First contact: both sides' versions are compared before anything is asked for."""
        if self._met:
            return
        hello = self._stub(str(CONTACT.full_name), CONTACT.methods_by_name["Hello"])
        request = contact_pb2.HelloRequest(service=self._name, protocol=self._protocol, version=__version__)
        reply = self._answered(hello, request, deadline_s, first=True)
        require_protocol(self._name, reply.protocol, self._protocol, __version__)  # should it not have looked
        self._met = True

    def _answered(self, stub: Any, request: Any, deadline_s: float, *, first: bool = False) -> Any:
        # Contact has no protocol that the metadata could name.
        metadata = [item for item in self._metadata if not first or item[0] == AUTHORIZATION]
        try:
            return stub(request, timeout=deadline_s, metadata=metadata)
        except grpc.RpcError as error:
            raise error_of(error, self._where) from None

    def _stub(self, service: str, method: Any) -> Any:
        made = {
            (False, False): self._channel.unary_unary,
            (True, False): self._channel.stream_unary,
            (False, True): self._channel.unary_stream,
            (True, True): self._channel.stream_stream,
        }[method.client_streaming, method.server_streaming]
        return made(
            f"/{service}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )


class _Watch:
    """Cancels a stream whose next message does not come in time."""

    def __init__(self, call: Any, silence_s: float) -> None:
        self.silent = False
        self._call, self._silence_s = call, silence_s
        self._since: float | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="control-watch", daemon=True).start()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time counts inside of it: what the reader does between two messages is no silence."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(self._silence_s / 8):
            since = self._since
            if since is not None and time.monotonic() - since > self._silence_s:
                self.silent = True
                self._call.cancel()
                return


def _channel(at: UnixSocket | TlsAddress, largest_bytes: int) -> Any:
    options = [
        ("grpc.max_receive_message_length", largest_bytes),
        ("grpc.max_send_message_length", largest_bytes),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if isinstance(at, TlsAddress):
        credentials = grpc.ssl_channel_credentials(at.ca, at.key, at.certificate)
        return grpc.secure_channel(at.target, credentials, options=options)
    require_short(at)
    require_private(at.folder)
    if not at.path.exists():
        raise UnreachableError(
            "there is no control socket", found=str(at), remedy="start the server, or name its folder"
        )
    return grpc.insecure_channel(at.target, options=options)
