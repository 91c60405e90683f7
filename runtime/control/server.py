"""The serving side of control: services from their descriptors, every call checked and bounded alike.

    token → protocol → message (size, form) → handler → reply, or a fault

A follower's stream holds a thread for as long as it lasts, so that streams have a number of their own and
never keep a short call waiting.
"""

from __future__ import annotations

import hmac
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from wardround import __version__
from wardround.core.errors import PeerError, PolicyError, StorageError
from wardround.runtime.control.faults import abort, clipped
from wardround.runtime.control.methods import (
    AUTHORIZATION,
    CONTACT,
    LARGEST_MESSAGE_BYTES,
    Call,
    Handler,
    Service,
    handler_of,
    require_protocol,
)
from wardround.runtime.control.protos import contact_pb2
from wardround.runtime.control.sockets import TlsAddress, UnixSocket, claim

STREAMS = 8
"""Followers at a time; each holds a thread."""
SHORT_CALLS = 8
_OPEN_TO_ALL = frozenset({f"/{health.SERVICE_NAME}/Check", f"/{health.SERVICE_NAME}/Watch"})
"""Methods that ask for no token: whether the server lives is no secret, and probes have none."""


class ControlServer:
    """A running server; a context manager that closes it."""

    def __init__(self, server: Any, at: UnixSocket | TlsAddress, lock: int | None, checker: Any) -> None:
        self.at = at
        self._server, self._lock, self._health = server, lock, checker
        self._closing = threading.Lock()

    def close(self, grace_s: float = 1.0) -> None:
        """Take no more calls, give those that run `grace_s` seconds, free the socket; again does nothing."""
        with self._closing:
            if self._server is None:
                return
            self._health.enter_graceful_shutdown()
            self._server.stop(grace_s).wait(grace_s + 5.0)
            self._server = None
            if isinstance(self.at, UnixSocket):
                self.at.path.unlink(missing_ok=True)
            if self._lock is not None:
                os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    services: Sequence[Service],
    at: UnixSocket | TlsAddress,
    *,
    token: str | None,
    streams: int = STREAMS,
    largest_bytes: int = LARGEST_MESSAGE_BYTES,
) -> ControlServer:
    """Answer calls until the returned server is closed; health and reflection come with it.

    Args:
        services: What is served.
        at: Where. A folder of a unix socket is made where it is not there.
        token: What every call but health's has to carry as `authorization: Bearer TOKEN`; None asks for none.
        streams: Followers at a time.
        largest_bytes: Of one message.

    Raises:
        ConfigError: The socket's path is too long.
        PolicyError: Others may enter the socket's folder.
        StorageError: Another process serves there, or the port is taken.
    """
    lock = claim(at) if isinstance(at, UnixSocket) else None
    try:
        server, checker = _made(services, token, streams, largest_bytes)
        port = _bound(server, at)
        server.start()
        if isinstance(at, UnixSocket):
            at.path.chmod(0o600)
        else:
            at = TlsAddress(at.host, port, at.ca, at.certificate, at.key)
    except BaseException:
        if lock is not None:
            os.close(lock)
        raise
    return ControlServer(server, at, lock, checker)


def _made(
    services: Sequence[Service], token: str | None, streams: int, largest_bytes: int
) -> tuple[Any, Any]:
    server = grpc.server(
        # reflection and health's Watch are streams as well: a few threads more
        ThreadPoolExecutor(SHORT_CALLS + streams, thread_name_prefix="control"),
        interceptors=[_TokenCheck(token)],
        options=[
            ("grpc.max_receive_message_length", largest_bytes),
            ("grpc.max_send_message_length", largest_bytes),
            ("grpc.so_reuseport", 0),
            # A client that is gone without a word is noticed, and its thread is free again.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
        maximum_concurrent_rpcs=4 * (SHORT_CALLS + streams),
    )
    contact = Service(CONTACT, 1, {"Hello": hello_of(services)})
    slots = threading.BoundedSemaphore(streams)
    for service in (contact, *services):
        handlers = {method.name: handler_of(service, method, slots) for method in service.descriptor.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, handlers),))
    checker = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    names = [service.name for service in (contact, *services)]
    for name in ("", *names):
        checker.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, checker


def _bound(server: Any, at: UnixSocket | TlsAddress) -> int:
    try:
        if isinstance(at, UnixSocket):
            return int(server.add_insecure_port(at.target))
        credentials = grpc.ssl_server_credentials(
            [(at.key, at.certificate)], root_certificates=at.ca, require_client_auth=True
        )
        return int(server.add_secure_port(at.target, credentials))
    except RuntimeError as error:
        raise StorageError(
            "the control server cannot listen", found=str(at), remedy="choose another address"
        ) from error


class _TokenCheck(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc is untyped
    """Ends a call that does not carry the token, before anything of it is read."""

    def __init__(self, token: str | None) -> None:
        self._wanted = None if token is None else f"Bearer {token}".encode()

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The method's own handler, or one that refuses."""
        if self._wanted is None or details.method in _OPEN_TO_ALL:
            return continuation(details)
        shown = [value for key, value in details.invocation_metadata or () if key == AUTHORIZATION]
        given = shown[0] if shown else ""
        if hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._wanted):
            return continuation(details)
        return _refusing(continuation(details))


def _refusing(handler: Any) -> Any:
    """A handler of the same shape that lets nobody in; None where the method is unknown."""

    def refuse(_: Any, context: Any) -> Any:
        error = PolicyError(
            "the operator token is missing or wrong",
            remedy="use the token of this very server: operator.token in its folder",
        )
        abort(context, error, grpc.StatusCode.UNAUTHENTICATED)

    def refuse_stream(request: Any, context: Any) -> Iterator[Any]:
        refuse(request, context)
        yield

    if handler is None:
        return grpc.unary_unary_rpc_method_handler(refuse)
    if handler.response_streaming:
        made = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return made(refuse_stream)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)


def hello_of(services: Sequence[Service]) -> Handler:
    """What answers first contact."""
    known = {service.name: service.protocol for service in services}

    def hello(request: Any, _: Call) -> Any:
        name, ours = clipped(request.service, 200), known.get(request.service)
        if ours is None:
            raise PeerError(
                "this server has no such service",
                found=f"{name!r}, asked for by Wardround {clipped(request.version, 40)}",
                expected=f"one of {', '.join(sorted(known))} (Wardround {__version__})",
            )
        require_protocol(name, ours, request.protocol, request.version)
        return contact_pb2.HelloReply(protocol=ours, version=__version__)

    return hello
