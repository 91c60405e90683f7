"""A server and a site as they are deployed: TLS, keys, processes; on loopback."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from pki import make_ca, make_server, make_transport_key

from wardround.client.history.history import History
from wardround.client.history.rows import read_left
from wardround.client.processes import SiteProcesses, SiteSettings
from wardround.server.superlink import FlowerRun, SuperLink, TlsFiles

SUPPORT = Path(__file__).parent


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What the condition gives once it is true."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return result


@dataclass
class Pair:
    """One server's folder and one site's."""

    folder: Path
    keys: dict[str, bytes] = field(default_factory=dict)

    @property
    def tls(self) -> TlsFiles:
        """The server's."""
        return TlsFiles(self.folder / "server.pem", self.folder / "server.key")

    def key(self, site: str) -> bytes:
        """The site's public transport key; made when first asked for."""
        if site not in self.keys:
            self.keys[site] = make_transport_key(self.folder / f"{site}.key")
        return self.keys[site]

    def history(self, site: str) -> History:
        """The site's record of what left it."""
        return History.open(self.folder / f"{site}-history", site)

    def server(self, address: str = "127.0.0.1:0", **more: Any) -> SuperLink:
        """The server."""
        return SuperLink(self.folder / "state.db", self.tls, address, **more)

    def settings(
        self, address: str, site: str = "north", deadline_s: float = 30.0, **more: Any
    ) -> SiteSettings:
        """What a site is started with."""
        self.key(site)
        return SiteSettings(
            server=address,
            ca=self.folder / "ca.pem",
            transport_key=(self.folder / f"{site}.key").read_text,
            factory="answering_site:app",
            record=lambda left: self.history(site).record(read_left(left)),
            arguments={"note": str(self.folder / "busy")},
            deadline_s=deadline_s,
            logs=self.folder / "logs",
            **more,
        )


@contextmanager
def for_children() -> Iterator[None]:
    """The site's processes find tests/support."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def make_pair(folder: Path) -> Pair:
    """A consortium's files."""
    make_server(folder, make_ca(folder))
    return Pair(folder)


def ask(run: FlowerRun, site: str, seconds: float = 60.0, **asked: Any) -> Message | None:
    """The answer of one site to one message."""
    message = Message(RecordDict({"ask": ConfigRecord(asked)}), run.node_of(site), "train", ttl=600)
    replies = list(run.grid.send_and_receive([message], timeout=seconds))
    assert len(replies) <= 1
    return replies[0] if replies else None


def answer(message: Message | None) -> dict[str, Any]:
    """Its content."""
    assert message is not None
    assert message.has_content(), message.error
    return dict(message.content.config_records["answer"])


@dataclass
class Running:
    """A server in this process, and a site with its two."""

    pair: Pair
    link: SuperLink
    site: SiteProcesses
    run: FlowerRun
