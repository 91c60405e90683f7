"""A site with a ledger whose heads its peers keep, in this process or behind a supervisor's socket."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path

from wardround.client.keeper import OwnKeeper
from wardround.client.keeper_service import LARGEST_MESSAGE, KeeperService
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger_place import LedgerPlace
from wardround.client.peer_heads import PeerHeads
from wardround.client.remote_keeper import RemoteKeeper
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.privacy.secagg.identity import KeySigner
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.contract import TRAINING
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import UnixSocket

NORTH, SOUTH = "ab" * 32, "cd" * 32
OWN, PEER, OTHER = "site_00", "site_01", "site_02"
SIGNED = {"who": "Dr Test", "why": "the disk broke"}
MECHANISM = SampledGaussian(sample_rate=0.1, sigma=4.0, steps=1)


def heads_of(folder: Path, consortium: str = NORTH, sum: str = TRAINING) -> PeerHeads:
    """Of a site with its ledger in its folder."""
    return PeerHeads(folder, consortium, sum, lambda: LedgerPlace(folder / "ledger"))


def give_ledger(folder: Path) -> Path:
    """A new ledger of a site."""
    Ledger.create(folder / "ledger", BudgetPolicy(epsilon=4.0, delta=1e-3), units=3).close()
    return folder / "ledger"


def write(ledger: Path, name: str) -> None:
    """One row more."""
    with Ledger.open(ledger) as opened:
        opened.source(name, [name])


def own_keeper(folder: Path) -> OwnKeeper:
    """The supervisor's."""
    folder.mkdir(exist_ok=True)
    return OwnKeeper(KeySigner.fresh(), folder, Secret.fresh(), lambda: LedgerPlace(folder / "ledger"), NORTH)


def remote(stack: ExitStack, own: OwnKeeper, path: Path) -> RemoteKeeper:
    """The worker's."""
    token, socket = secrets.token_hex(16), UnixSocket(path)
    services = [KeeperService(OWN, own, lambda *_: None).service()]  # type: ignore[arg-type,return-value]  # no record is kept
    stack.enter_context(serve(services, socket, token=token, largest_bytes=LARGEST_MESSAGE))
    keeper = RemoteKeeper.at(socket, token)
    stack.callback(keeper.calls.client.close)
    return keeper
