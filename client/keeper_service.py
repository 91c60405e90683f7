"""The supervisor's side of the keeper: a service for the process that trains, on a socket of this machine.

It signs statements of secure aggregation in this site's name and nothing else, and keeps no record that goes
back: a worker that something hostile has taken over cannot have an old round counted as new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from wardround.client.charges import Charge
from wardround.client.keeper import OwnKeeper
from wardround.client.sealed_files import Owner
from wardround.core.errors import PeerError, PolicyError
from wardround.privacy.secagg import draw, messages
from wardround.privacy.secagg.admission import SiteState
from wardround.privacy.secagg.draw import DrawState
from wardround.privacy.secagg.hashing import DIGEST_BYTES, unframed
from wardround.privacy.secagg.identity import PROTOCOL as SECAGG
from wardround.privacy.sums.contract import SUMS
from wardround.runtime.control.methods import Call, Service
from wardround.runtime.control.protos import keeper_pb2 as pb

PROTOCOL: Final = 1
DESCRIPTOR: Final = pb.DESCRIPTOR.services_by_name["Keeper"]
LARGEST_MESSAGE: Final = 256 * 2**20
"""A charge names the patient of every row."""
KINDS: Final = frozenset(
    {
        kind.KIND
        for module in (messages, draw)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, messages.Message) and hasattr(kind, "KIND")
    }
    | {"box"}
)
"""Of the statements that a site signs."""


@dataclass(frozen=True)
class KeeperService:
    """What answers.

    Attributes:
        site: Name of the site.
        keeper: Its keys, records and ledger, in this process.
    """

    site: str
    keeper: OwnKeeper

    def service(self) -> Service:
        """For `runtime/control/server.py:serve`."""
        return Service(
            DESCRIPTOR,
            PROTOCOL,
            {
                "Describe": self._describe,
                "Sign": self._sign,
                "LoadRecord": self._load,
                "SaveRecord": self._save,
                "Reserve": self._reserve,
                "Seal": self._seal,
                "HasLedger": self._has_ledger,
            },
        )

    def _describe(self, _: Any, __: Call) -> Any:
        return pb.DescribeReply(site=self.site, identity=self.keeper.signer.public)

    def _sign(self, request: Any, _: Call) -> Any:
        require_statement(request.statement, self.site)
        return pb.SignReply(signature=self.keeper.signer.sign(request.statement))

    def _load(self, request: Any, _: Call) -> Any:
        return pb.LoadRecordReply(record=self._record(request.place).load().model_dump_json().encode())

    def _save(self, request: Any, _: Call) -> Any:
        kind = SiteState if request.place.sum else DrawState
        try:
            state = kind.model_validate_json(request.record)
        except ValidationError:
            # Without its cause: pydantic quotes what it could not read, and that may be a secret.
            raise PeerError("a record cannot be read", expected=f"a {kind.__name__}") from None
        record = self._record(request.place)
        require_onwards(record.load(), state)
        record.save(state)
        return pb.SaveRecordReply()

    def _reserve(self, request: Any, _: Call) -> Any:
        try:
            charge = Charge.model_validate_json(request.charge)
        except ValidationError:
            raise PeerError("a charge cannot be read", expected="a Charge") from None  # it names patients
        return pb.ReserveReply(epsilon=self.keeper.charges().reserve(charge))

    def _seal(self, request: Any, _: Call) -> Any:
        self.keeper.charges().seal(request.run_id, request.round, request.digest)
        return pb.SealReply()

    def _has_ledger(self, _: Any, __: Call) -> Any:
        try:
            self.keeper.charges()
        except PolicyError:
            return pb.HasLedgerReply(has=False)
        return pb.HasLedgerReply(has=True)

    def _record(self, place: Any) -> Any:
        if place.sum and place.sum not in SUMS:
            raise PeerError("there is no sum of this name", expected=" or ".join(SUMS))
        try:
            owner = Owner(run_id=place.run_id, plan=place.plan, site=self.site)
        except ValidationError as error:
            raise PeerError("a record is of no run", found=f"{error.error_count()} faults") from error
        return self.keeper.record(owner, place.sum) if place.sum else self.keeper.draw_record(owner)


def require_statement(data: bytes, site: str) -> None:
    """Refuse to sign what is no statement of secure aggregation in this site's name.

    Raises:
        PolicyError: It is anything else.
    """
    try:
        protocol, kind, context, signer = unframed(data)[:4]
    except (ValueError, UnicodeDecodeError):
        protocol = kind = signer = context = b""
    right = (protocol, signer) == (SECAGG, site) and kind in KINDS
    if not right or not isinstance(context, bytes) or len(context) != DIGEST_BYTES:
        raise PolicyError(
            "the site's identity signs statements of secure aggregation and nothing else",
            found=f"{len(data)} bytes that are none of {site!r}",
        )


def require_onwards(known: SiteState | DrawState, new: SiteState | DrawState) -> None:
    """Refuse a record that forgets what the site must not forget.

    Raises:
        PolicyError: It goes back.
    """
    if isinstance(known, SiteState) and isinstance(new, SiteState):
        back = new.place < known.place
        if new.place[0] == known.place[0] and known.place[0]:
            back |= new.members != known.members
            back |= any(new.terms.get(stage) != terms for stage, terms in known.terms.items())
            back |= any(new.survivors.get(stage) != sites for stage, sites in known.survivors.items())
    elif isinstance(known, DrawState) and isinstance(new, DrawState):
        back = new.attempt < known.attempt or (known.groups not in (b"", new.groups))
    else:
        back = True
    if back:
        raise PolicyError(
            "a record would go back to what was before",
            expected="one that keeps what this site has accepted",
            remedy="the worker restarts; if it happens again, somebody may have taken it over",
        )
