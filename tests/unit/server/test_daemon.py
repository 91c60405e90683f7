"""What an operator replaces while the server runs: the roster, and the TLS certificate."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import ConfigError
from wardround.server.consortium.admission import revoke
from wardround.server.consortium.rotation import rotate_server
from wardround.server.consortium.server_folder import ServerFolder, open_server_folder
from wardround.server.daemon import Watch, admit_members
from wardround.simulations.practice.making import Practice, make_practice

NOW = datetime.now(UTC)


@dataclass
class Link:
    """Flower's side, as far as members and TLS go."""

    members: dict[str, bytes] = field(default_factory=dict)
    renewed: int = 0
    broken: bool = False

    def admit(self, site: str, key: bytes) -> None:
        if self.broken:
            raise ConfigError("the transport key was revoked")
        self.members[site] = key

    def revoke(self, site: str) -> None:
        del self.members[site]

    def renew_tls(self) -> None:
        if self.broken:
            raise ConfigError("certificate and key do not fit")
        self.renewed += 1


@pytest.fixture
def practice(tmp_path_factory: pytest.TempPathFactory) -> Practice:
    """A consortium of two sites, where paths leave room for those of sockets."""
    settings = {"models": [{"path": "nowhere"}], "source": {"path": "rows.csv"}}
    return make_practice(
        tmp_path_factory.mktemp("d") / "p", "127.0.0.1:9443", {"aachen": settings, "basel": settings}, NOW
    )


def watched(practice: Practice) -> tuple[ServerFolder, Any, Watch]:
    """The server's folder, its link, and who watches."""
    own, link = open_server_folder(practice.server), Link()
    return own, link, Watch.begin(own, link)  # type: ignore[arg-type]  # as far as it is used


def test_members_are_let_in_and_shut_out_as_the_roster_changes(practice: Practice) -> None:
    """Who was revoked is gone at the next look; a roster that is not newer changes nothing."""
    own, link, watch = watched(practice)
    keys = {m.site: bytes.fromhex(m.transport) for m in own.roster().members}
    assert link.members == keys
    watch.look_at_roster()
    assert (link.members, watch.version) == (keys, own.roster().version)
    revoke(practice.operator, "basel", NOW)
    watch.look_at_roster()
    assert set(link.members) == {"aachen"}


def test_a_new_certificate_is_taken_without_a_stop(practice: Practice) -> None:
    """Once for each change; while the files do not fit the former one stays, and it is tried again."""
    own, link, watch = watched(practice)
    watch.look_at_tls()
    assert link.renewed == 0
    rotate_server(practice.operator, NOW)
    link.broken = True
    with pytest.raises(ConfigError):
        watch.look_at_tls()
    link.broken = False
    watch.look_at_tls()
    watch.look_at_tls()
    assert link.renewed == 1
    assert own.tls_certificate.exists()


def test_a_member_that_cannot_be_let_in_keeps_nobody_else_out(practice: Practice) -> None:
    """It is told in the log."""
    roster = open_server_folder(practice.server).roster()
    link = Link(broken=True)
    assert set(admit_members(link, roster, {})) == {"aachen", "basel"}  # type: ignore[arg-type]  # as above
    assert not link.members


def test_the_watch_goes_on_whatever_it_finds(
    practice: Practice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A roster that cannot be read is told of, and the next look takes the one that can."""
    monkeypatch.setattr("wardround.server.daemon.LOOK_S", 0.01)
    own, link, watch = watched(practice)
    path = own.path / "roster.json"
    good = path.read_bytes()
    path.write_bytes(b"{}")
    done = threading.Event()
    thread = threading.Thread(target=watch.run, args=(done,))
    thread.start()
    try:
        while "stays in force" not in caplog.text:
            pass
        path.write_bytes(good)
        os.utime(path)
    finally:
        done.set()
        thread.join(10)
    assert not thread.is_alive()
    assert set(link.members) == {"aachen", "basel"}


def test_a_practice_folder_too_deep_for_its_sockets_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    """Named with its length; else every site would end at once, and start again for ever."""
    deep = tmp_path / ("deep" * 30)
    with pytest.raises(ConfigError, match="socket is too long"):
        make_practice(deep, "127.0.0.1:9443", {"aachen": {}}, NOW)
    assert not deep.exists()
