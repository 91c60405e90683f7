"""The worker's side of the keeper: keys, records and ledger lie with the supervisor, and are asked for."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from wardround.client.charges import Charge, Charges
from wardround.client.keeper_service import DESCRIPTOR, LARGEST_MESSAGE, PROTOCOL
from wardround.client.sealed_files import Owner
from wardround.core.errors import PolicyError
from wardround.privacy.secagg.admission import Heads, Record, SiteState
from wardround.privacy.secagg.draw import DrawRecord, DrawState
from wardround.privacy.secagg.identity import Signer
from wardround.runtime.control.client import ControlClient
from wardround.runtime.control.protos import keeper_pb2 as pb
from wardround.runtime.control.sockets import UnixSocket

LEDGER_S: Final = 600.0
"""Deadline of what opens the ledger: every unit of the site may be written down, and synced."""
S = TypeVar("S", SiteState, DrawState)


@dataclass(frozen=True)
class RemoteKeeper:
    """Keys, records and ledger of a site whose supervisor answers.

    Attributes:
        calls: Reach it.
    """

    calls: _Calls

    @staticmethod
    def at(socket: UnixSocket, token: str) -> RemoteKeeper:
        """The keeper behind a socket.

        Raises:
            UnreachableError: Nobody answers there.
        """
        client = ControlClient(socket, DESCRIPTOR, PROTOCOL, token=token, largest_bytes=LARGEST_MESSAGE)
        return RemoteKeeper(_Calls(client))

    @property
    def signer(self) -> Signer:
        """As `Keeper`."""
        return _RemoteSigner(self.calls)

    def record(self, owner: Owner, sum: str) -> Record:
        """As `Keeper`."""
        return _RemoteRecord(self.calls, _place(owner, sum), SiteState)

    def draw_record(self, owner: Owner) -> DrawRecord:
        """As `Keeper`."""
        return _RemoteRecord(self.calls, _place(owner, ""), DrawState)

    def charges(self) -> Charges:
        """As `Keeper`."""
        if not self.calls("HasLedger", pb.HasLedgerRequest()).has:
            raise PolicyError(
                "this site has no privacy ledger, and the plan trains privately",
                remedy="wardround ledger create makes one, with the ε that this site grants its patients",
            )
        return _RemoteCharges(self.calls)

    def heads(self, sum: str) -> Heads:
        """As `Keeper`."""
        return _RemoteHeads(self.calls, sum)


@dataclass(frozen=True)
class _Calls:
    """One connection, one call at a time."""

    client: ControlClient
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, method: str, request: Any, *, deadline_s: float = 30.0) -> Any:
        with self.lock:
            return self.client.call(method, request, deadline_s=deadline_s)


@dataclass(frozen=True)
class _RemoteSigner:
    calls: _Calls

    def sign(self, statement: bytes) -> bytes:
        """As `Signer`; raises PolicyError where the supervisor does not sign such a thing."""
        return bytes(self.calls("Sign", pb.SignRequest(statement=statement)).signature)


@dataclass(frozen=True)
class _RemoteRecord(Generic[S]):
    calls: _Calls
    place: Any
    kind: type[S]

    def load(self) -> S:
        """As `Record`."""
        reply = self.calls("LoadRecord", pb.LoadRecordRequest(place=self.place))
        return self.kind.model_validate_json(reply.record)

    def save(self, state: S) -> None:
        """As `Record`."""
        record = state.model_dump_json().encode()
        self.calls("SaveRecord", pb.SaveRecordRequest(place=self.place, record=record))


@dataclass(frozen=True)
class _RemoteCharges:
    calls: _Calls

    def reserve(self, charge: Charge) -> float:
        """As `Charges`."""
        request = pb.ReserveRequest(charge=charge.model_dump_json().encode())
        return float(self.calls("Reserve", request, deadline_s=LEDGER_S).epsilon)

    def seal(self, run: str, round: int, digest: str) -> None:
        """As `Charges`."""
        self.calls("Seal", pb.SealRequest(run_id=run, round=round, digest=digest), deadline_s=LEDGER_S)

    def settle(self, run: str, round: int, draw: str, steps: int) -> None:
        """As `Charges`."""
        request = pb.SettleRequest(run_id=run, round=round, draw=draw, steps=steps)
        self.calls("Settle", request, deadline_s=LEDGER_S)


@dataclass(frozen=True)
class _RemoteHeads:
    calls: _Calls
    sum: str

    def own(self) -> bytes:
        """As `Heads`."""
        return bytes(self.calls("OwnHead", pb.OwnHeadRequest(sum=self.sum), deadline_s=LEDGER_S).head)

    def kept(self, sites: Collection[str]) -> Mapping[str, bytes]:
        """As `Heads`."""
        reply = self.calls("KeptHeads", pb.KeptHeadsRequest(sum=self.sum, sites=sites))
        return {site: bytes(head) for site, head in reply.heads.items()}

    def keep(self, heads: Mapping[str, bytes]) -> None:
        """As `Heads`."""
        self.calls("KeepHeads", pb.KeepHeadsRequest(sum=self.sum, heads=heads))

    def returned(self, heads: Mapping[str, bytes]) -> None:
        """As `Heads`."""
        request = pb.JudgeHeadsRequest(sum=self.sum, heads=heads)
        self.calls("JudgeHeads", request, deadline_s=LEDGER_S)


def _place(owner: Owner, sum: str) -> Any:
    return pb.Place(run_id=owner.run_id, plan=owner.plan, sum=sum)
