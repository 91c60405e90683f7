"""How the operator's commands find a server: its folder here, or a folder that says where it is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from wardround.core.checked import Frozen, invalid
from wardround.core.errors import ConfigError, StorageError, UnreachableError
from wardround.runtime.control.client import ControlClient
from wardround.runtime.control.protos import run_control_pb2 as pb
from wardround.runtime.control.sockets import TlsAddress
from wardround.server.control_service import PROTOCOL, RUN_CONTROL, read_token, require_own, socket_of
from wardround.server.run_record import INITIAL, LARGEST_INITIAL_BYTES, LARGEST_PLAN_BYTES, PLAN

FAR = "control.json"
"""Where a far server listens; beside it `ca.pem`, `operator.pem`, `operator.key` and `operator.token`."""
KEY = "operator.key"
LARGEST_FILE_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
RECONNECT_S: Final = 20.0
"""So long a follower looks for a server that went away while it was followed."""
SLOWEST_BYTES_S = 500_000
"""An upload is given as many seconds as it takes at this pace."""


class FarServer(Frozen):
    """Where a server listens for operators elsewhere."""

    host: str = Field(min_length=1, max_length=253)
    port: int = Field(ge=1, le=65535)


def connected(folder: Path) -> ControlClient:
    """A connection to the server of a folder.

    Raises:
        UnreachableError: No server runs there.
        PolicyError: Token or socket are open to others.
        StorageError: A file that is needed is not there.
    """
    token, at = read_token(folder), socket_of(folder)
    if not (folder / FAR).exists():
        return ControlClient(at, RUN_CONTROL, PROTOCOL, token=token)
    try:
        far = FarServer.model_validate_json(_read(folder / FAR))
    except ValidationError as error:
        raise invalid(FAR, error) from error
    require_own(folder / KEY)
    files = [_read(folder / name) for name in ("ca.pem", "operator.pem", KEY)]
    return ControlClient(TlsAddress(far.host, far.port, *files), RUN_CONTROL, PROTOCOL, token=token)


def submit(client: ControlClient, plan: Path, submission: str) -> Any:
    """Send a plan folder's signed plan and initial adapter; the run that they became.

    Raises:
        ConfigError: It is no folder of a signed plan.
        WardroundError: As the server raised it.
    """
    signed, initial = _sized(plan / PLAN, LARGEST_PLAN_BYTES), _sized(plan / INITIAL, LARGEST_INITIAL_BYTES)
    size = initial.stat().st_size
    with initial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    first = pb.Submission(
        signed_plan=signed.read_bytes(), submission=submission, initial_bytes=size, initial_sha256=digest
    )

    def parts() -> Iterator[Any]:
        yield pb.SubmitPart(submission=first)
        with initial.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield pb.SubmitPart(chunk=chunk)

    return client.send("Submit", parts(), deadline_s=30.0 + size / SLOWEST_BYTES_S)


def followed(folder: Path, method: str, run_id: str, *, follow: bool) -> Iterator[Any]:
    """A run's events or log lines, beats left out.

    A server that goes away in the middle, or restarts, is looked for again for `RECONNECT_S`; a restarted one
    tells from the beginning what its files hold, under another `epoch`.

    Raises:
        UnreachableError: There is no server, or it stayed away.
        WardroundError: As the server raised it.
    """
    request, lost = pb.FollowRequest(run_id=run_id, follow=follow), None
    while True:
        try:
            with connected(folder) as client:
                for message in client.follow(method, request):
                    lost = None
                    if message.epoch != request.epoch:
                        request.epoch, request.after = message.epoch, 0
                    if message.number:
                        request.after = message.number
                        yield message
                return
        except UnreachableError:
            now = time.monotonic()
            lost = lost or now
            if not request.epoch or now - lost > RECONNECT_S:
                raise
            time.sleep(0.5)


def _sized(path: Path, largest: int) -> Path:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(
            "this is no folder of a signed plan", found=f"{path}: {error.strerror}",
            expected=f"{PLAN} and {INITIAL}", remedy="make the plan and sign it first",
        ) from error  # fmt: skip
    if not 0 < size <= largest:
        raise ConfigError(f"{path.name} has a size that is not taken", found=f"{size} bytes",
                          expected=f"1 to {largest} bytes")  # fmt: skip
    return path


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE_BYTES)
    except OSError as error:
        raise StorageError(f"cannot read {path}", found=error.strerror) from error
