"""One method of a control service: its bytes become a message, its errors faults, followers are counted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from wardround import __version__
from wardround.core.errors import BudgetError, PeerError, WardroundError
from wardround.runtime.control.faults import abort, clipped
from wardround.runtime.control.protos import contact_pb2

PROTOCOL_KEY = "wardround-protocol"
"""Metadata by which a client of ours says with every call which protocol it speaks."""
VERSION_KEY = "wardround-version"
AUTHORIZATION = "authorization"
"""Metadata for the token, as `Bearer TOKEN`."""
LARGEST_MESSAGE_BYTES = 4 << 20
CONTACT = contact_pb2.DESCRIPTOR.services_by_name["Contact"]

log = logging.getLogger("wardround.control")


@dataclass(frozen=True)
class Call:
    """What a handler may know of its call."""

    _context: Any = field(repr=False)

    @property
    def active(self) -> bool:
        """Whether somebody still waits for the answer."""
        return bool(self._context.is_active())

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back once the call has ended, however it did; at once where it has."""
        if not self._context.add_callback(callback):
            callback()


Handler: TypeAlias = Callable[[Any, Call], Any]


@dataclass(frozen=True)
class Service:
    """A service and what answers it.

    Attributes:
        descriptor: From the generated module's `DESCRIPTOR.services_by_name`.
        protocol: Its number; client and server have to have the same one.
        handlers: Method → a function of the request (of an iterator over the parts where the client streams)
            and the call. It returns the reply, or an iterator of replies where the server streams. A
            WardroundError that it raises reaches the client as it is.
    """

    descriptor: Any
    protocol: int
    handlers: Mapping[str, Handler]

    def __post_init__(self) -> None:
        """Every method has a handler, and no other one.

        Raises:
            ValueError: One is missing or unknown.
        """
        methods = {method.name for method in self.descriptor.methods}
        if methods != self.handlers.keys():
            raise ValueError(f"handlers that differ from the methods: {methods ^ self.handlers.keys()}")

    @property
    def name(self) -> str:
        """Full name, such as `wardround.control.v1.RunControl`."""
        return str(self.descriptor.full_name)


def require_protocol(service: str, ours: int, theirs: int, version: str) -> None:
    """Refuse a client that speaks another protocol.

    Raises:
        PeerError: Names both protocols and both packages' versions.
    """
    if theirs != ours:
        raise PeerError(
            f"client and server speak different versions of {service}",
            found=f"the client speaks {theirs} (Wardround {clipped(version, 40) or 'unknown'})",
            expected=f"the server speaks {ours} (Wardround {__version__})",
            remedy="use the same version of Wardround on both sides",
        )


def handler_of(service: Service, method: Any, slots: threading.BoundedSemaphore) -> Any:
    """What gRPC calls for a method.

    Args:
        service: Whose method it is.
        method: Its descriptor.
        slots: One for each follower that may listen at a time.
    """
    request_class, behave = GetMessageClass(method.input_type), service.handlers[method.name]

    def parsed(data: bytes) -> Any:
        request = request_class()
        try:
            request.ParseFromString(data)
        except DecodeError as error:
            raise PeerError(
                "the request cannot be read", found=f"{len(data)} bytes that are no {method.input_type.name}"
            ) from error
        return request

    def begun(data: Any, context: Any) -> Any:
        _check_metadata(service, context)
        request = map(parsed, data) if method.client_streaming else parsed(data)
        return behave(request, Call(context))

    def answer(data: Any, context: Any) -> Any:
        try:
            return begun(data, context)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a fault
            _fail(context, error, method)

    def stream(data: Any, context: Any) -> Iterator[Any]:
        if not slots.acquire(blocking=False):
            abort(context, BudgetError("too many followers at a time", remedy="end one, or try again later"))
        try:
            yield from begun(data, context)
        except Exception as error:  # noqa: BLE001 - as above, also in the middle
            _fail(context, error, method)
        finally:
            slots.release()

    made = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    function = stream if method.server_streaming else answer
    return made(function, response_serializer=lambda reply: reply.SerializeToString())


def _check_metadata(service: Service, context: Any) -> None:
    """Tools such as grpcurl say no protocol; whoever says one has to say ours."""
    said = dict(context.invocation_metadata())
    spoken = said.get(PROTOCOL_KEY)
    if spoken is not None:
        theirs = int(spoken) if spoken.isascii() and spoken.isdigit() and len(spoken) < 10 else -1  # noqa: PLR2004 - a bound on digits
        require_protocol(service.name, service.protocol, theirs, str(said.get(VERSION_KEY, "")))


def _fail(context: Any, error: Exception, method: Any) -> None:
    if not context.is_active():
        raise error  # nobody is left to be told
    if not isinstance(error, WardroundError):
        log.error("fault in %s", method.full_name, exc_info=error)
    abort(context, error)
