"""The resident worker: a site's node as a Flower app, with keys and ledger on the supervisor's side."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from wardround.client.accepted import RUNS, RunFolders
from wardround.client.flower_app import client_app
from wardround.client.keeper import Keeper
from wardround.client.membership.site_folder import SiteFolder, confirmed_roster, open_site_folder
from wardround.client.node import Node
from wardround.client.remote_keeper import RemoteKeeper
from wardround.client.resident import Resident
from wardround.client.shared_machine import share
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import PeerError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.control.sockets import UnixSocket
from wardround.runtime.roster import LARGEST_CERTIFICATE, read_certificate
from wardround.runtime.signed_plan import read_signed_plan


def site_app(folder: str, socket: str, token: str, storage: str, deadline_s: str) -> Resident:
    """The app of the site in a folder; called in the worker's process, with what the supervisor wrote to it.

    Args:
        folder: Of the site.
        socket: Folder of the supervisor's keeper socket.
        token: Lets this process call it.
        storage: The site's storage key in hexadecimal; no file of a key is read here.
        deadline_s: Seconds after which this process is ended over one message.

    Raises:
        WardroundError: The folder is no site's, or the supervisor does not answer.
    """
    site = open_site_folder(Path(folder))
    keeper = RemoteKeeper.at(UnixSocket(Path(socket)), token)
    node = node_of(site, keeper, Secret(bytes.fromhex(storage)))
    node.message_s = float(deadline_s)
    share(node.settings)
    return Resident(client_app(node, node.answer), node.idle)


def node_of(site: SiteFolder, keeper: Keeper, storage: Secret) -> Node:
    """The node of a site, with what seals its files."""
    return Node(
        name=site.name,
        runs=RunFolders(site.path / RUNS),
        storage=storage,
        keeper=keeper,
        read_plan=lambda data: read_signed_plan(data, site.consortium_key),
        read_server=lambda data: server_key(site, data),
        roster=lambda: confirmed_roster(site),
        settings=lambda: read_site_settings(site.path / FILE),
    )


def server_key(site: SiteFolder, data: bytes) -> bytes:
    """The public key of the server that the consortium certified.

    Raises:
        PeerError: It is not signed by the consortium, has expired, or is another consortium's.
    """
    if len(data) > LARGEST_CERTIFICATE:
        raise PeerError("the server's certificate is too large", found=f"{len(data)} bytes")
    certificate = read_certificate(data, site.consortium_key)
    certificate.check(datetime.now(UTC))
    if certificate.consortium != site.consortium:
        raise PeerError(
            "the server's certificate is of another consortium", found=certificate.consortium,
            expected=site.consortium,
        )  # fmt: skip
    return bytes.fromhex(certificate.identity)
