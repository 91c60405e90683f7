"""A practice consortium: operator's, server's and sites' folders, made by the very steps of a real one.

    init → invite each site → it joins → admit → each pins and confirms the roster → its settings

Nothing about it is weaker but that one person plays everybody: keys, roster, policies, secure aggregation are
those of a real consortium.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml

from wardround.client.membership.joining import join
from wardround.client.membership.roster_pin import confirm_roster, update_roster
from wardround.client.membership.site_folder import REQUEST, SiteFolder, open_site_folder
from wardround.client.site_settings import FILE, read_site_settings
from wardround.runtime.control.sockets import UnixSocket, require_short
from wardround.runtime.files import write_atomic
from wardround.server.consortium.admission import admit
from wardround.server.consortium.creation import create
from wardround.server.consortium.invitations import invite
from wardround.server.consortium.operator_folder import ROSTER_FILE

OPERATOR: Final = "operator"
SERVER: Final = "operator/server"
SITES: Final = "sites"
INVITATIONS: Final = "invitations"
LONGEST_SOCKET: Final = "control"
"""Folder of the socket with the longest path at a site, and at the server."""


@dataclass(frozen=True)
class Practice:
    """A practice consortium's folders.

    Attributes:
        folder: Holds all of it.
        sites: Name → the site's folder.
    """

    folder: Path
    sites: Mapping[str, SiteFolder]

    @property
    def operator(self) -> Path:
        """The operator's folder."""
        return self.folder / OPERATOR

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.folder / SERVER

    @staticmethod
    def of(folder: Path) -> Practice:
        """The one that lies in a folder.

        Raises:
            StorageError: There is none.
        """
        paths = sorted(path for path in (folder / SITES).iterdir() if path.is_dir())
        return Practice(folder, {site.name: site for site in map(open_site_folder, paths)})


def make_practice(
    folder: Path, address: str, settings: Mapping[str, Mapping[str, Any]], now: datetime
) -> Practice:
    """Make a consortium whose sites are ready to start.

    Args:
        folder: To make.
        address: HOST:PORT on which its server will listen.
        settings: Site → its `site.yaml`, as values.
        now: The present moment.

    Raises:
        StorageError: The folder holds something, or cannot be written.
        ConfigError: A site's name or settings cannot be used, or the path is too long for sockets in it.
    """
    for owner in (folder / SERVER, *(folder / SITES / name for name in settings)):
        require_short(UnixSocket(owner / LONGEST_SOCKET))  # before anything is made
    operator = folder / OPERATOR
    create(operator, "practice", address, now)
    (folder / INVITATIONS).mkdir()
    for name in settings:
        invitation = folder / INVITATIONS / f"{name}.json"
        invite(operator, name, invitation, now)
        join(invitation.read_bytes(), folder / SITES / name, now)
        admit(operator, (folder / SITES / name / REQUEST).read_bytes(), now)
    roster = (operator / ROSTER_FILE).read_bytes()
    sites = {}
    for name, values in settings.items():
        site = open_site_folder(folder / SITES / name)
        update_roster(site, roster, now)
        confirm_roster(site, site.roster().digest, now)
        write_atomic(site.path / FILE, yaml.safe_dump(dict(values)).encode(), private=True)
        read_site_settings(site.path / FILE)
        sites[name] = site
    return Practice(folder, sites)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
