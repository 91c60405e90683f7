"""Where a control server is reached: a unix socket in a private folder, or TCP under mutual TLS.

There is no third way: nothing that controls a run or a site listens without one of the two.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path

from wardround.core.errors import ConfigError, PolicyError, StorageError, UnreachableError
from wardround.runtime.files import private_folder, storing

SOCKET = "control.sock"
LOCK = "control.lock"
LONGEST_PATH_BYTES = 107
"""Linux's bound on the path of a unix socket."""
CONNECT_S = 2.0


@dataclass(frozen=True)
class UnixSocket:
    """A unix socket, by the folder that holds it; nobody but the folder's owner may enter that."""

    folder: Path

    @property
    def path(self) -> Path:
        """Of the socket, absolute."""
        return self.folder.absolute() / SOCKET

    @property
    def target(self) -> str:
        """As gRPC names it."""
        return f"unix:{self.path}"

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class TlsAddress:
    """Host and port under mutual TLS: each side shows a certificate that the other's `ca` has signed.

    Attributes:
        host: To bind, or to connect to; the server's certificate names it.
        port: 0 lets a server choose a free one.
        ca: Certificates (PEM) that vouch for the other side.
        certificate: One's own (PEM).
        key: Of one's own certificate (PEM); never shown.
    """

    host: str
    port: int
    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @property
    def target(self) -> str:
        """As gRPC names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return self.target


def require_private(folder: Path) -> None:
    """Refuse a folder that anybody but this user may enter, or change.

    Raises:
        UnreachableError: It is not there.
        PolicyError: Others may enter it, it is somebody else's, or a link.
    """
    try:
        found = folder.lstat()
    except OSError as error:
        raise UnreachableError(
            "there is no control socket", found=f"{folder}: {error.strerror}", remedy="start the server"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise PolicyError("the folder of the control socket is none", found=str(folder))
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise PolicyError(
            "the folder of the control socket belongs to somebody else",
            found=f"{folder}: user {found.st_uid}",
            expected=f"user {os.geteuid()}",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PolicyError(
            "others may enter the folder of the control socket",
            found=f"{folder}: mode {stat.S_IMODE(found.st_mode):04o}",
            expected="mode 0700",
            remedy=f"chmod 700 {folder}",
        )


def claim(at: UnixSocket) -> int:
    """Make a socket's place free for this process; returns the descriptor that holds it until it is closed.

    What a dead process left is removed; a living one keeps its place.

    Raises:
        ConfigError: The path is too long for a socket.
        PolicyError: Others may enter the folder, or something else lies where the socket belongs.
        StorageError: Another process is the server of this folder, or the folder cannot be written.
    """
    require_short(at)
    private_folder(at.folder)
    require_private(at.folder)
    with storing(at.folder / LOCK):
        lock = os.open(at.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock(lock, at)
        _remove_stale(at)
    except BaseException:
        os.close(lock)
        raise
    return lock


def require_short(at: UnixSocket) -> None:
    """Refuse a path that no socket can have.

    Raises:
        ConfigError: It is longer than Linux allows.
    """
    length = len(os.fsencode(at.path))
    if length > LONGEST_PATH_BYTES:
        raise ConfigError(
            "the path of the control socket is too long",
            found=f"{length} bytes: {at.path}",
            expected=f"at most {LONGEST_PATH_BYTES} bytes",
            remedy="use a folder nearer to the root, or a link to it",
        )


def _lock(lock: int, at: UnixSocket) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _taken(at) from error


def _remove_stale(at: UnixSocket) -> None:
    try:
        found = at.path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise PolicyError(
            "something else lies where the control socket belongs", found=str(at.path), remedy="move it away"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(at.path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                at.path.unlink()
            return
        except OSError as error:  # a full backlog, a time-out: somebody is there
            raise _taken(at) from error
    raise _taken(at)


def _taken(at: UnixSocket) -> StorageError:
    return StorageError(
        "another process serves this folder already", found=str(at.path), remedy="stop it first"
    )
