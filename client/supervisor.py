"""A site's supervisor: keys, ledger and replay records, and the two processes that it keeps alive.

supervisor    this process: identity key, ledger, records, history; no model, adapter or message of the server
node          Flower's SuperNode: the transport key, the connection to the server
worker        torch, base model, rows; asks the supervisor for signatures and charges
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from wardround.client.admitting import runs_of
from wardround.client.history.history import FOLDER, History
from wardround.client.history.rows import read_left
from wardround.client.hours import Opening
from wardround.client.keeper import own_keeper
from wardround.client.keeper_service import LARGEST_MESSAGE, KeeperService
from wardround.client.membership.site_folder import KEEPER, SiteFolder, open_site_folder
from wardround.client.processes import SiteProcesses, SiteSettings
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import PolicyError
from wardround.runtime.control.methods import Call, Service
from wardround.runtime.control.protos import site_pb2 as pb
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import UnixSocket
from wardround.runtime.log_file import LOGS
from wardround.runtime.roster import expiring
from wardround.runtime.small_files import transport_file

LOG = logging.getLogger(__name__)
PROTOCOL: Final = 1
DESCRIPTOR: Final = pb.DESCRIPTOR.services_by_name["SiteControl"]
CONTROL: Final = "control"
"""Folder of the socket on which the site's own people ask; who may enter it is who owns it."""
DEADLINE_S: Final = 6 * 3600.0
"""Of one message: a worker that hangs is started anew after it."""
WARN_DAYS: Final = 30


@contextmanager
def running_site(folder: Path, *, deadline_s: float = DEADLINE_S) -> Iterator[SiteProcesses]:
    """The site's processes, from here to the end of the block.

    Args:
        folder: Of the site.
        deadline_s: Seconds that the worker may take over one message.

    Raises:
        WardroundError: What is wrong with the folder, its keys, its settings, or another supervisor runs
            there.
    """
    site = open_site_folder(folder)
    require_ready(site)
    token, socket = secrets.token_hex(32), UnixSocket(site.path / KEEPER)
    keeper = own_keeper(site)
    service = KeeperService(site.name, keeper, runs_of(site)).service()
    history = History.open(site.path / FOLDER, site.name)
    settings = SiteSettings(
        server=site.server_address,
        ca=site.ca,
        transport_key=lambda: transport_file(site.transport_key()).decode(),
        factory="wardround.client.worker_app:site_app",
        arguments={
            "folder": str(site.path),
            "socket": str(socket.folder),
            "token": token,
            "storage": keeper.storage.reveal().hex(),
            "deadline_s": str(deadline_s),
        },
        record=lambda left: _record(history, left),
        deadline_s=deadline_s,
        logs=site.path / LOGS,
        open=Opening(
            lambda: read_site_settings(site.path / FILE).hours,
            lambda: datetime.now(UTC).astimezone(),
            time.monotonic,
        ),
    )
    with serve([service], socket, token=token, largest_bytes=LARGEST_MESSAGE):
        site.require_present()  # once more: from here on nobody can leave
        with SiteProcesses(settings) as processes:
            yield processes


def _record(history: History, left: Mapping[str, Any]) -> None:
    history.record(read_left(left))


def require_ready(site: SiteFolder) -> None:
    """Refuse to start what could not take part, and warn of what expires soon.

    Raises:
        PolicyError: The site is no member of the roster that it has pinned.
        ConfigError: It has left the consortium.
        WardroundError: Its settings or its server's certificate are not as they should be.
    """
    now = datetime.now(UTC)
    site.require_present()
    read_site_settings(site.path / FILE)
    site.certificate().check(now)
    for end in expiring(site.ends(), now, WARN_DAYS):
        LOG.warning("%s", end.text(now))
    if site.member() is None:
        raise PolicyError(
            f"{site.name} is no member of the roster that it has pinned",
            remedy="when the operator has admitted it: wardround site roster update ROSTER, then confirm",
        )


def run_site(folder: Path, done: threading.Event, *, deadline_s: float = DEADLINE_S) -> None:
    """Keep the site running until `done` is set, or somebody stops it; raises as `running_site`."""
    started = time.time()
    with running_site(folder, deadline_s=deadline_s) as processes:
        name = open_site_folder(folder).name

        def status(_: Any, __: Call) -> Any:
            return pb.SiteStatusReply(
                site=name,
                pid=os.getpid(),
                started_s=started,
                processes=[
                    pb.SiteProcess(
                        name=state.name, pid=state.pid, restarts=state.restarts, code=state.code,
                        reason=state.reason, note=state.note,
                    )
                    for state in processes.states()
                ],
            )  # fmt: skip

        def stop(_: Any, __: Call) -> Any:
            done.set()
            return pb.SiteStopReply()

        service = Service(DESCRIPTOR, PROTOCOL, {"Status": status, "Stop": stop})
        with serve([service], UnixSocket(folder / CONTROL), token=None):
            done.wait()
