"""The consortium's server in one process: Flower's SuperLink, the desk with its runs, routes for members.

    public listener    TLS: Flower's fleet routes for admitted nodes, health, roster and results for members
    control socket     the operator's commands (server/control_service.py)
    metrics            for Prometheus, on loopback alone (server/metrics.py)
    desk               one run at a time: offer, rounds, signed result (server/execution.py)

Roster and TLS certificate are files that the operator replaces; they are looked at every few seconds: who is
new is let in, who is gone is shut out. A run goes by the roster with which it began.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector

from wardround.core.errors import ConfigError, WardroundError
from wardround.runtime.events import EventStream
from wardround.runtime.roster import RosterDocument, expiring, read_roster
from wardround.runtime.server_about import ServerAbout, ours
from wardround.runtime.signed_plan import read_signed_plan
from wardround.runtime.signed_requests import PROBE, ROUTES
from wardround.server.consortium.server_folder import (
    AUTHORITY_ENDS,
    CERTIFICATE_ENDS,
    TLS_ENDS,
    ServerFolder,
    open_server_folder,
)
from wardround.server.control_service import serve_control
from wardround.server.desk import Desk
from wardround.server.execution import Deployment, execute, own_aggregator
from wardround.server.listener import ASGIApp, OwnBody
from wardround.server.member_routes import member_routes
from wardround.server.metrics import Gauges, Meter
from wardround.server.metrics_listener import serving_metrics
from wardround.server.probe_route import probe_route
from wardround.server.run_control import RunControl
from wardround.server.run_record import RunFolder
from wardround.server.superlink import SuperLink, TlsFiles

LOG = logging.getLogger(__name__)
DATABASE: Final = "state.db"
RUNS: Final = "runs"
LOOK_S: Final = 2.0
"""So often the files that an operator replaces are looked at."""
WARN_DAYS: Final = 30
SHORT: Final = {CERTIFICATE_ENDS: "consortium", TLS_ENDS: "tls", AUTHORITY_ENDS: "authority"}
"""What expires → its name among the metrics."""


@dataclass(frozen=True)
class RunningServer:
    """A server that runs.

    Attributes:
        folder: Its folder.
        link: Flower's side.
        desk: The queue of runs.
        metrics: Where they are read; None where they are not served.
    """

    folder: ServerFolder
    link: SuperLink
    desk: Desk
    metrics: str | None = None


@dataclass(frozen=True)
class MetricsAt:
    """Where the metrics are served.

    Attributes:
        port: Of the loopback; 0 takes a free one, None serves none.
        required: Whether a port that is taken is an error.
        lost: Records of the server's own log that could not be written.
    """

    port: int | None = None
    required: bool = True
    lost: Callable[[], int] = lambda: 0


@contextmanager
def running_server(
    folder: Path, listen: str | None = None, metrics: MetricsAt = MetricsAt()
) -> Iterator[RunningServer]:
    """The server of a folder, from here to the end of the block.

    Args:
        folder: As `wardround consortium init` made it.
        listen: `host:port` to listen on; None: the address by which sites reach it.
        metrics: Where Prometheus reads; nowhere by default.

    Raises:
        WardroundError: What is wrong with the folder or an address, or another server runs there.
    """
    own = open_server_folder(folder)
    now = datetime.now(UTC)
    for end in expiring(own.check(now), now, WARN_DAYS):
        LOG.warning("%s", end.text(now))
    routes: dict[str, ASGIApp | OwnBody] = {
        ROUTES: member_routes(
            lambda: own.roster().roster(), own.path / "roster.json", own.path / RUNS,
            about=lambda site: said_of(own.roster(), site, link.online()),
        ),
        ROUTES + PROBE: probe_route(lambda: own.roster().roster()),
    }  # fmt: skip
    tls = TlsFiles(own.tls_certificate, own.tls_key)
    done = threading.Event()
    with SuperLink(own.path / DATABASE, tls, listen or own.address, routes=routes) as link:
        watch = Watch.begin(own, link)
        watcher = threading.Thread(target=watch.run, args=(done,), name="wardround-watch", daemon=True)
        registry = CollectorRegistry()
        desk = Desk(
            own.path, executor(own, link), check=lambda plan: name_of(plan, own), observer=Meter(registry)
        )
        registry.register(
            Gauges(desk, link.online, lambda: link.serving, lambda: first_ends(own), metrics.lost)
        )
        ProcessCollector(registry=registry)
        watcher.start()
        desk.start()
        try:
            with (
                serve_control(desk, own.path),
                serving_metrics(registry, metrics.port, required=metrics.required) as at,
            ):
                yield RunningServer(own, link, desk, at)
        finally:
            desk.close()
            done.set()
            watcher.join()


def said_of(roster: RosterDocument, site: str, admitted: Collection[str]) -> ServerAbout | None:
    """What the server says to a member of itself, and of that member; None to nobody's site.

    Args:
        roster: The present one.
        site: The member.
        admitted: Sites whose nodes are let in.
    """
    member = roster.member(site)
    if member is None:
        return None
    return ServerAbout(
        spoken=ours(), roster=roster.version, transport=member.transport, admitted=site in admitted
    )


def first_ends(own: ServerFolder) -> dict[str, datetime]:
    """Short name of each certificate, and of the memberships → when the first of them expires."""
    found: dict[str, datetime] = {}
    terms = [member.expires for member in own.roster().members if member.expires is not None]
    for name, when in (
        *((SHORT[end.what], end.when) for end in own.ends()),
        *(("membership", t) for t in terms),
    ):
        found[name] = min(when, found.get(name, when))
    return found


def executor(own: ServerFolder, link: SuperLink) -> Execution:
    """What the desk has done with a run whose turn has come."""
    return Execution(
        Deployment(
            own.consortium_key,
            own.signer().key,
            own.signed_certificate,
            own.signed_roster,
            lambda data: read_roster(data, own.consortium_key),
            link.open_run,
            own.aggregator,
        )
    )


@dataclass(frozen=True)
class Execution:
    """`server/execution.py` as the desk calls it."""

    deployment: Deployment

    def __call__(self, run: RunFolder, control: RunControl, events: EventStream) -> None:
        """Work at the run until it ends; raises as `execute`."""
        execute(run, control, events, self.deployment)


def admit_members(link: SuperLink, roster: RosterDocument, before: dict[str, str]) -> dict[str, str]:
    """Let in who is on the roster, shut out who was and is not; gives member → transport key.

    Args:
        link: Flower's side.
        roster: The present one.
        before: Of the roster before.
    """
    now = {member.site: member.transport for member in roster.members}
    for site in before.keys() - now.keys():
        link.revoke(site)
        LOG.info("%s is no member any more: its node is shut out", site)
    for site, key in now.items():
        if before.get(site) == key:
            continue
        try:
            link.admit(site, bytes.fromhex(key))
        except ConfigError as error:
            LOG.error("%s is not let in: %s", site, error)  # noqa: TRY400 - ours; its story is in its words
    return now


@dataclass
class Watch:
    """Looks at the files that an operator replaces while the server runs.

    Attributes:
        own: The server's folder.
        link: Flower's side.
        admitted: Member → transport key, of the roster in force.
        version: Of that roster.
        tls: When certificate and key were last changed.
    """

    own: ServerFolder
    link: SuperLink
    admitted: dict[str, str]
    version: int
    tls: tuple[int, ...]

    @staticmethod
    def begin(own: ServerFolder, link: SuperLink) -> Watch:
        """Let the present members in."""
        roster = own.roster()
        return Watch(own, link, admit_members(link, roster, {}), roster.version, _changed(own))

    def run(self, done: threading.Event) -> None:
        """Look every few seconds until `done` is set."""
        while not done.wait(LOOK_S):
            for look in (self.look_at_roster, self.look_at_tls):
                try:
                    look()
                except WardroundError as error:
                    LOG.warning("what was replaced cannot be used, the former stays in force: %s", error)
                except Exception:
                    LOG.exception("the server's folder could not be looked at; tried again")

    def look_at_roster(self) -> None:
        """Take a newer roster; raises as `ServerFolder.roster`."""
        roster = self.own.roster()
        if roster.version <= self.version:
            return
        LOG.info("the roster is now version %d: %d members", roster.version, len(roster.members))
        self.admitted, self.version = admit_members(self.link, roster, self.admitted), roster.version

    def look_at_tls(self) -> None:
        """Take a new certificate once both files are there; raises ConfigError where they do not fit."""
        now = _changed(self.own)
        if now == self.tls:
            return
        self.link.renew_tls()
        self.tls = now
        LOG.info("new connections get the new TLS certificate")


def _changed(own: ServerFolder) -> tuple[int, ...]:
    return tuple(path.stat().st_mtime_ns for path in (own.tls_certificate, own.tls_key))


def name_of(plan: bytes, own: ServerFolder) -> str:
    """The plan's name, if the consortium signed it and this server can open its sums.

    Raises:
        PeerError: The consortium did not sign it.
        ConfigError: As `own_aggregator`.
        StorageError: The aggregator's key cannot be read.
    """
    found = read_signed_plan(plan, own.consortium_key).plan
    if found.secure.mode == "trusted":
        own_aggregator(found, own.aggregator())
    return found.name
