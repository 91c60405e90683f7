"""Who may serve and who may call: private folders, dead and living sockets, mutual TLS."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from control_certificates import authority, issued, pem
from control_echo import ECHO, Asked, Echo

from wardround.core.errors import ConfigError, PolicyError, StorageError, UnreachableError
from wardround.runtime.control.client import ControlClient
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import TlsAddress, UnixSocket

SERVER = """
import sys, time
from pathlib import Path
from control_echo import Echo
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import UnixSocket
server = serve([Echo().service()], UnixSocket(Path(sys.argv[1])), token=None)
print("ready", flush=True)
time.sleep(60)
"""


def spawned(folder: Path) -> subprocess.Popen[str]:
    """A server in a process of its own, ready."""
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    """Kill it, and close what it wrote to."""
    process.kill()
    process.wait(10)
    assert process.stdout is not None
    process.stdout.close()


def test_folder_and_socket_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    """0700 and 0600, whatever the umask; closing frees the place and may be done twice."""
    at, before = UnixSocket(tmp_path / "c"), os.umask(0)
    try:
        server = serve([Echo().service()], at, token=None)
    finally:
        os.umask(before)
    assert stat.S_IMODE(at.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(at.path.stat().st_mode) == 0o600
    server.close()
    server.close()
    assert not at.path.exists()
    serve([Echo().service()], at, token=None).close()


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o755, 0o770, 0o777])
def test_a_folder_that_others_may_enter_is_refused_on_both_sides(tmp_path: Path, mode: int) -> None:
    """The server does not listen in it, the client sends no token into it."""
    at = UnixSocket(tmp_path / "c")
    at.folder.mkdir()
    at.folder.chmod(mode)
    with pytest.raises(PolicyError, match="others may enter"):
        serve([Echo().service()], at, token=None)
    with pytest.raises(PolicyError, match="others may enter"):
        ControlClient(at, ECHO, 1, token="t")
    assert not list(at.folder.iterdir())


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    """What is behind a link may change under us."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "c").symlink_to("real")
    with pytest.raises(PolicyError):
        serve([Echo().service()], UnixSocket(tmp_path / "c"), token=None)


def test_a_living_server_keeps_its_place_and_a_killed_ones_is_taken(tmp_path: Path) -> None:
    """In this process and in another one; after kill -9 the socket that was left over goes."""
    at = UnixSocket(tmp_path / "c")
    other = spawned(at.folder)
    try:
        with pytest.raises(StorageError, match="serves this folder already"):
            serve([Echo().service()], at, token=None)
        with ControlClient(at, ECHO, 1) as client:
            assert client.call("Say", Asked(text="abc")).size == 3
        other.send_signal(signal.SIGKILL)
        other.wait(10)
        assert at.path.exists()
        with ControlClient(at, ECHO, 1) as client, pytest.raises(UnreachableError):
            client.call("Say", Asked())
        with serve([Echo().service()], at, token=None):
            with ControlClient(at, ECHO, 1) as client:
                assert client.call("Say", Asked(text="ab")).size == 2
            with pytest.raises(StorageError, match="serves this folder already"):
                serve([Echo().service()], at, token=None)
    finally:
        ended(other)


def test_a_stopped_server_is_unreachable_within_the_deadline(tmp_path: Path) -> None:
    """SIGSTOP: the socket accepts, nobody answers."""
    at = UnixSocket(tmp_path / "c")
    other = spawned(at.folder)
    try:
        other.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        with ControlClient(at, ECHO, 1) as client, pytest.raises(UnreachableError):
            client.call("Say", Asked(), deadline_s=1.0)
        assert time.monotonic() - started < 8
    finally:
        ended(other)


def test_another_programs_socket_or_file_is_left_alone(tmp_path: Path) -> None:
    """Only a socket that nobody answers is removed."""
    at = UnixSocket(tmp_path / "c")
    at.folder.mkdir(mode=0o700)
    at.path.write_text("mine")
    with pytest.raises(PolicyError, match="something else"):
        serve([Echo().service()], at, token=None)
    assert at.path.read_text() == "mine"
    at.path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(at.path))
        listening.listen()
        with pytest.raises(StorageError, match="serves this folder already"):
            serve([Echo().service()], at, token=None)
        assert at.path.exists()


def test_no_socket_and_no_folder_is_unreachable(tmp_path: Path) -> None:
    """With what to do; exit code 3."""
    for folder in (tmp_path / "none", tmp_path / "empty"):
        if folder.name == "empty":
            folder.mkdir(mode=0o700)
        with pytest.raises(UnreachableError, match="no control socket") as caught:
            ControlClient(UnixSocket(folder), ECHO, 1)
        assert caught.value.exit_code == 3


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    """Both sides say so; nothing is made."""
    at = UnixSocket(tmp_path / ("long" * 30))
    for ask in (lambda: serve([], at, token=None), lambda: ControlClient(at, ECHO, 1)):
        with pytest.raises(ConfigError, match="too long"):
            ask()
    assert not at.folder.exists()


def test_over_tls_each_side_shows_a_certificate(tmp_path: Path) -> None:
    """The right one gets in; a stranger's with the same names does not, in both directions. No key shows."""
    ours, strangers = authority("ours"), authority("ours")
    ca = pem(ours)
    stranger_ca = pem(strangers)
    listen = TlsAddress("127.0.0.1", 0, ca, *issued(ours, "server"))
    assert b"PRIVATE" not in repr(listen).encode()
    with serve([Echo().service()], listen, token="t") as server:
        port = server.at.port if isinstance(server.at, TlsAddress) else 0
        assert port
        right = TlsAddress("127.0.0.1", port, ca, *issued(ours, "operator"))
        with ControlClient(right, ECHO, 1, token="t") as client:
            assert client.call("Say", Asked(text="abc")).size == 3
        with (
            ControlClient(right, ECHO, 1, token="wrong") as client,
            pytest.raises(PolicyError, match="token"),
        ):
            client.call("Say", Asked())
        forged = TlsAddress("127.0.0.1", port, ca, *issued(strangers, "operator"))
        distrustful = TlsAddress("127.0.0.1", port, stranger_ca, *issued(ours, "operator"))
        for wrong in (forged, distrustful):
            with ControlClient(wrong, ECHO, 1, token="t") as client, pytest.raises(UnreachableError):
                client.call("Say", Asked(), deadline_s=2)


def test_a_taken_port_is_an_error_with_its_place() -> None:
    """Not a traceback of gRPC's."""
    ca = authority("ours")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        at = TlsAddress("127.0.0.1", taken.getsockname()[1], b"", *issued(ca, "server"))
        at = TlsAddress(at.host, at.port, pem(ca), at.certificate, at.key)
        with pytest.raises(StorageError, match="cannot listen"):
            serve([Echo().service()], at, token=None)
