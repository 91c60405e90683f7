"""Calls over a real socket: errors cross whole, every call is bounded, nobody comes in without the token."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_echo import ECHO, Answered, Asked, Echo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from wardround.core.errors import (
    BudgetError,
    ConfigError,
    DataError,
    InternalError,
    PeerError,
    PolicyError,
    QuorumError,
    StorageError,
    TrainingError,
    UnreachableError,
    WardroundError,
)
from wardround.runtime.control.client import ControlClient
from wardround.runtime.control.methods import Service
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import UnixSocket


@pytest.fixture
def at(tmp_path: Path) -> UnixSocket:
    """A socket in a folder of its own."""
    return UnixSocket(tmp_path / "c")


@pytest.fixture
def echo(at: UnixSocket) -> Iterator[Echo]:
    """A served echo, without a token."""
    echo = Echo()
    with serve([echo.service()], at, token=None, streams=2):
        yield echo
        echo.free.set()


def test_a_call_a_stream_and_an_upload_cross(at: UnixSocket, echo: Echo) -> None:
    """Request and reply, many replies, many parts."""
    with ControlClient(at, ECHO, 1) as client:
        assert client.call("Say", Asked(text="ward")).size == 4
        assert [m.size for m in client.follow("Count", Asked(size=50))] == list(range(50))
        parts = (Asked(text=letter) for letter in "abc")
        assert client.send("Join", parts, deadline_s=5).text == "abc"


@pytest.mark.parametrize(
    "error",
    [
        *(
            kind("what happened", found="this", expected="that", remedy="do so")
            for kind in (
                ConfigError,
                DataError,
                PeerError,
                QuorumError,
                PolicyError,
                BudgetError,
                StorageError,
            )
        ),
        TrainingError("non_finite_loss", "the loss is not finite", found="nan"),
        ConfigError("only a sentence: ε ≥ 0 “quoted”\nin two lines"),
        UnreachableError("a third one is gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_ours_crosses_whole(at: UnixSocket, echo: Echo, error: WardroundError) -> None:
    """Class, sentence, found, expected and remedy are the same on the other side, in both kinds of call."""
    echo.raises = error
    with ControlClient(at, ECHO, 1) as client:
        for ask in (
            lambda: client.call("Say", Asked()),
            lambda: list(client.follow("Count", Asked(size=2))),
        ):
            with pytest.raises(type(error)) as caught:
                ask()
            assert type(caught.value) is type(error)
            assert str(caught.value) == str(error)
            assert getattr(caught.value, "code", "") == getattr(error, "code", "")


def test_a_fault_of_the_servers_own_tells_nothing_but_that_it_was(
    at: UnixSocket, echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    """No traceback, no text of the exception; the server's log has it."""
    echo.raises = KeyError("patient 17")
    with ControlClient(at, ECHO, 1) as client, pytest.raises(InternalError) as caught:
        client.call("Say", Asked())
    assert "17" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "patient 17" in caplog.text
    with ControlClient(at, ECHO, 1) as client, pytest.raises(InternalError):
        list(client.follow("Count", Asked(size=1)))


def test_a_long_error_is_cut_and_still_arrives(at: UnixSocket, echo: Echo) -> None:
    """GRPC bounds its metadata: texts of 100 kB are clipped, not lost."""
    echo.raises = ConfigError(
        "ä" * 100_000, found="ö" * 100_000, expected="ü" * 100_000, remedy="ß" * 100_000
    )
    with ControlClient(at, ECHO, 1) as client, pytest.raises(ConfigError) as caught:
        client.call("Say", Asked())
    for text, letter in ((caught.value.what, "ä"), (caught.value.found, "ö"), (caught.value.remedy, "ß")):
        assert text is not None
        assert text.startswith(letter * 500)
        assert text.endswith("…")


def test_a_call_that_hangs_ends_at_its_deadline(at: UnixSocket, echo: Echo) -> None:
    """The client is told that the server does not answer; nobody waits for ever."""
    started = time.monotonic()
    with ControlClient(at, ECHO, 1) as client, pytest.raises(UnreachableError, match="in time"):
        client.call("Hang", Asked(), deadline_s=0.5)
    assert time.monotonic() - started < 5


def test_a_stream_that_falls_silent_ends(at: UnixSocket, echo: Echo) -> None:
    """What was said arrives; then silence counts as a hung server, and its thread there is freed."""
    said = []
    with ControlClient(at, ECHO, 1) as client:
        with pytest.raises(UnreachableError, match="silent"):
            said += [m.size for m in client.follow("Count", Asked(size=3, text="wait"), silence_s=0.6)]
        assert next(iter(client.follow("Count", Asked(size=3)))).size == 0
    _until(lambda: echo.ended == 2)


def test_a_slow_reader_is_no_silence(at: UnixSocket, echo: Echo) -> None:
    """Time that the reader takes between two messages does not count."""
    with ControlClient(at, ECHO, 1) as client:
        read = 0
        for _ in client.follow("Count", Asked(size=3), silence_s=0.4):
            time.sleep(0.6)
            read += 1
    assert read == 3


def test_followers_are_counted_and_never_keep_a_short_call_waiting(at: UnixSocket, echo: Echo) -> None:
    """The third of two followers is refused; calls go on; an ended follower's place is free again."""
    clients = [ControlClient(at, ECHO, 1) for _ in range(3)]
    streams = [client.follow("Count", Asked(size=1, text="wait")) for client in clients]
    assert [next(stream).size for stream in streams[:2]] == [0, 0]
    with pytest.raises(BudgetError, match="followers"):
        next(streams[2])
    assert clients[2].call("Say", Asked(text="x")).size == 1
    streams[0].close()
    _until(lambda: echo.ended == 1)
    assert next(clients[2].follow("Count", Asked(size=1))).size == 0
    for stream, client in zip(streams, clients, strict=True):
        stream.close()
        client.close()


@pytest.mark.parametrize(
    "token", [None, "", "wrong", "right ", "righ", "rightright", "\u00fc".encode().hex()]
)
def test_nothing_but_the_token_lets_a_caller_in(at: UnixSocket, token: str | None) -> None:
    """Every kind of call is refused without it, an unknown method too; the handler sees nothing."""
    echo = Echo()
    with serve([echo.service()], at, token="right"):
        with ControlClient(at, ECHO, 1, token=token) as client:
            for ask in (
                lambda: client.call("Say", Asked()),
                lambda: list(client.follow("Count", Asked())),
                lambda: client.send("Join", [Asked()], deadline_s=5),
            ):
                with pytest.raises(PolicyError, match="token"):
                    ask()
            client._met = True  # past first contact: the call itself is refused as well
            for ask in (
                lambda: client.call("Say", Asked()),
                lambda: list(client.follow("Count", Asked())),
                lambda: client.send("Join", [Asked()], deadline_s=5),
            ):
                with pytest.raises(PolicyError, match="token"):
                    ask()
        with ControlClient(at, ECHO, 1, token="right") as client:
            assert client.call("Say", Asked(text="in")).size == 2
    assert (echo.calls, echo.ended) == (1, 0)


@pytest.mark.parametrize(("theirs", "ours"), [(1, 2), (3, 2)])
def test_versions_that_differ_are_named_on_first_contact(at: UnixSocket, theirs: int, ours: int) -> None:
    """Both protocols and what to do; nothing was asked for."""
    echo = Echo()
    with (
        serve([echo.service(protocol=ours)], at, token=None),
        ControlClient(at, ECHO, theirs) as client,
    ):
        with pytest.raises(PeerError) as caught:
            client.call("Say", Asked())
        assert f"client speaks {theirs}" in str(caught.value)
        assert f"server speaks {ours}" in str(caught.value)
        assert "same version" in str(caught.value)
        client._met = True
        with pytest.raises(PeerError, match="different versions"):
            client.call("Say", Asked())
    assert echo.calls == 0


def test_a_server_without_the_service_says_what_it_has(at: UnixSocket) -> None:
    """An older or another server: named, not guessed."""
    with serve([], at, token=None), ControlClient(at, ECHO, 1) as client:
        with pytest.raises(PeerError, match="no such service") as caught:
            client.call("Say", Asked())
        assert "echo.v1.Echo" in str(caught.value)


def test_a_server_that_is_none_of_ours_is_told_apart(at: UnixSocket, tmp_path: Path) -> None:
    """Plain gRPC without Contact: a sentence about versions."""
    at.folder.mkdir(mode=0o700)
    from concurrent.futures import ThreadPoolExecutor

    foreign = grpc.server(ThreadPoolExecutor(1))
    foreign.add_insecure_port(at.target)
    foreign.start()
    try:
        with ControlClient(at, ECHO, 1) as client, pytest.raises(PeerError, match="does not know"):
            client.call("Say", Asked())
    finally:
        foreign.stop(0).wait()


def test_messages_are_bounded_both_ways(at: UnixSocket) -> None:
    """One that is too large is refused; the server goes on."""
    echo = Echo()
    with (
        serve([echo.service()], at, token=None, largest_bytes=10_000),
        ControlClient(at, ECHO, 1) as client,
    ):
        with pytest.raises(PeerError):
            client.call("Say", Asked(text="x" * 20_000))
        with pytest.raises(PeerError):
            client.send("Join", [Asked(text="x" * 6_000)] * 3, deadline_s=5)  # its reply is too large
        assert client.call("Say", Asked(text="x" * 9_000)).size == 9_000
    assert echo.calls == 1


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xc3\x28"])
def test_bytes_that_are_no_message_are_a_fault_of_the_caller(at: UnixSocket, echo: Echo, data: bytes) -> None:
    """Each kind of call refuses them with a sentence; text that is no UTF-8 among them."""
    with grpc.insecure_channel(at.target) as channel:
        for made, method, sent in (
            (channel.unary_unary, "Say", data),
            (channel.stream_unary, "Join", iter([data])),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                made(f"/echo.v1.Echo/{method}")(sent, timeout=5)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert caught.value.details() == "the request cannot be read"
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream("/echo.v1.Echo/Count")(data, timeout=5))
        assert caught.value.details() == "the request cannot be read"
    assert echo.calls == 0


def test_health_and_reflection_answer_as_tools_expect(at: UnixSocket) -> None:
    """Health without a token, the services by reflection with it, and nothing by reflection without."""
    with serve([Echo().service()], at, token="secret"), grpc.insecure_channel(at.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "echo.v1.Echo"):
            found = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

        class WithToken(grpc.StreamStreamClientInterceptor):
            def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
                return continuation(details._replace(metadata=[("authorization", "Bearer secret")]), requests)

        open_channel = grpc.intercept_channel(channel, WithToken())
        names = set(ProtoReflectionDescriptorDatabase(open_channel).get_services())
        assert names >= {"echo.v1.Echo", "wardround.control.Contact", "grpc.health.v1.Health"}


def test_a_detail_that_is_rubbish_hides_nothing(at: UnixSocket) -> None:
    """Trailing metadata may hold anything: gRPC's own code is told then."""
    from wardround.runtime.control.faults import error_of

    class Failed(grpc.RpcError):
        def code(self) -> Any:
            return grpc.StatusCode.ABORTED

        def details(self) -> str:
            return "over"

        def trailing_metadata(self) -> Any:
            return (("grpc-status-details-bin", b"\xff\xff\x01"),)

    assert str(error_of(Failed(), "there")) == "the server refuses the call\n  found: ABORTED: over"


def test_a_service_without_a_handler_is_not_served() -> None:
    """A method that nobody answers is a fault of the code, found when it starts."""
    with pytest.raises(ValueError, match="Hang"):
        Service(ECHO, 1, {name: lambda request, call: Answered() for name in ("Say", "Count", "Join")})


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
