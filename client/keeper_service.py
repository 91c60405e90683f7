"""The supervisor's side of the keeper: a service for the process that trains, on a socket of this machine.

It signs statements of secure aggregation in this site's name (`statements.py`), of offers that it has judged
itself (`admitting.py`), and keeps no record that goes back: a worker that something hostile has taken over
cannot have an old round counted as new, nor be signed for in a run that this site did not accept.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError

from wardround.client.admitting import Runs
from wardround.client.charges import Charge
from wardround.client.keeper import OwnKeeper
from wardround.client.sealed_files import Owner
from wardround.client.statements import Spoken, read_statement
from wardround.core.errors import PeerError, PolicyError, WardroundError
from wardround.privacy.secagg.admission import Heads, SiteState
from wardround.privacy.secagg.draw import DrawState
from wardround.privacy.secagg.identity import Signer
from wardround.privacy.secagg.messages import HEAD_BYTES
from wardround.privacy.secagg.offer import MOST_SITES, SiteName
from wardround.privacy.sums.contract import SUMS
from wardround.runtime.control.methods import Call, Service
from wardround.runtime.control.protos import keeper_pb2 as pb

LOG = logging.getLogger(__name__)
PROTOCOL: Final = 1
DESCRIPTOR: Final = pb.DESCRIPTOR.services_by_name["Keeper"]
LARGEST_MESSAGE: Final = 256 * 2**20
"""A charge names the patient of every row."""
_NAMES: Final = TypeAdapter(Annotated[list[SiteName], Field(max_length=MOST_SITES)])


@dataclass
class KeeperService:
    """What answers.

    Attributes:
        site: Name of the site.
        keeper: Its keys, records and ledger, in this process.
        runs: Those that it has accepted.
    """

    site: str
    keeper: OwnKeeper
    runs: Runs
    _spoken: Spoken = field(init=False, repr=False)
    _signer: Signer = field(init=False, repr=False)
    """The identity that the run's roster names: keys are rotated while a site runs."""
    _saving: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._spoken, self._signer = Spoken(self.site), self.keeper.signer

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
                "Settle": self._settle,
                "OwnHead": self._own_head,
                "KeptHeads": self._kept_heads,
                "KeepHeads": self._keep_heads,
                "JudgeHeads": self._judge_heads,
            },
        )

    def _describe(self, _: Any, __: Call) -> Any:
        return pb.DescribeReply(site=self.site, identity=self.keeper.signer.public)

    def _sign(self, request: Any, _: Call) -> Any:
        try:
            self._spoken.take(read_statement(request.statement, self.site))
        except PolicyError as error:
            LOG.warning("nothing is signed for the worker: %s", error)
            raise
        return pb.SignReply(signature=self._signer.sign(request.statement))

    def _load(self, request: Any, _: Call) -> Any:
        return pb.LoadRecordReply(record=self._record(request.place).load().model_dump_json().encode())

    def _save(self, request: Any, _: Call) -> Any:
        kind = SiteState if request.place.sum else DrawState
        try:
            state = kind.model_validate_json(request.record)
        except ValidationError:
            # Without its cause: pydantic quotes what it could not read, and that may be a secret.
            raise PeerError("a record cannot be read", expected=f"a {kind.__name__}") from None
        try:
            with self._saving:
                self._keep(request.place, state)
        except WardroundError as error:
            LOG.warning("a record of the worker's is not kept: %s", error)
            raise
        return pb.SaveRecordReply()

    def _keep(self, place: Any, state: SiteState | DrawState) -> None:
        """Judge a record, make it durable, and let the worker speak of what it goes on with."""
        record = self._record(place)
        known = record.load()
        require_onwards(known, state)
        run = self.runs(self._owner(place), place.sum, record)
        self._signer = run.member.signer
        if isinstance(state, DrawState):
            run.check_draw(state.signed)
            record.save(state)
            self._spoken.draw(state)
            return
        envelope = None
        if state.place > known.place:
            run.check(known, state)
            envelope = run.envelope(state.offer.offer) if state.offer is not None else None
        record.save(state)
        if state.place > known.place and state.offer is not None:
            self._spoken.begin(state.offer.offer, envelope)

    def _reserve(self, request: Any, _: Call) -> Any:
        try:
            charge = Charge.model_validate_json(request.charge)
        except ValidationError:
            raise PeerError("a charge cannot be read", expected="a Charge") from None  # it names patients
        return pb.ReserveReply(epsilon=self.keeper.charges().reserve(charge))

    def _seal(self, request: Any, _: Call) -> Any:
        self.keeper.charges().seal(request.run_id, request.round, request.digest)
        return pb.SealReply()

    def _settle(self, request: Any, _: Call) -> Any:
        self.keeper.charges().settle(request.run_id, request.round, request.draw, request.steps)
        return pb.SettleReply()

    def _own_head(self, request: Any, _: Call) -> Any:
        return pb.OwnHeadReply(head=self._heads(request).own())

    def _kept_heads(self, request: Any, _: Call) -> Any:
        return pb.KeptHeadsReply(heads=self._heads(request).kept(_sites(request.sites)))

    def _keep_heads(self, request: Any, _: Call) -> Any:
        self._heads(request).keep(_heads_of(request))
        return pb.KeepHeadsReply()

    def _judge_heads(self, request: Any, _: Call) -> Any:
        self._heads(request).returned(_heads_of(request))
        return pb.JudgeHeadsReply()

    def _heads(self, request: Any) -> Heads:
        if request.sum not in SUMS:
            raise _no_sum()
        return self.keeper.heads(request.sum)

    def _has_ledger(self, _: Any, __: Call) -> Any:
        try:
            self.keeper.charges()
        except PolicyError:
            return pb.HasLedgerReply(has=False)
        return pb.HasLedgerReply(has=True)

    def _record(self, place: Any) -> Any:
        if place.sum and place.sum not in SUMS:
            raise _no_sum()
        owner = self._owner(place)
        return self.keeper.record(owner, place.sum) if place.sum else self.keeper.draw_record(owner)

    def _owner(self, place: Any) -> Owner:
        try:
            return Owner(run_id=place.run_id, plan=place.plan, site=self.site)
        except ValidationError as error:
            raise PeerError("a record is of no run", found=f"{error.error_count()} faults") from error


def _no_sum() -> PeerError:
    return PeerError("there is no sum of this name", expected=" or ".join(SUMS))


def _heads_of(request: Any) -> dict[str, bytes]:
    """Heads by site; refuses what secure aggregation would not have let through."""
    _sites(request.heads)
    longest = max(map(len, request.heads.values()), default=0)
    if longest > HEAD_BYTES:
        raise PeerError("a ledger's head is too long", found=longest, expected=f"at most {HEAD_BYTES} bytes")
    return dict(request.heads)


def _sites(names: Any) -> list[str]:
    try:
        return _NAMES.validate_python(list(names))
    except ValidationError as error:
        raise PeerError("heads are not of sites", found=f"{error.error_count()} faults") from None


def require_onwards(known: SiteState | DrawState, new: SiteState | DrawState) -> None:
    """Refuse a record that forgets what the site must not forget.

    Raises:
        PolicyError: It goes back.
    """
    if isinstance(known, SiteState) and isinstance(new, SiteState):
        back = new.place < known.place or (known.opened != () and new.opened == ())
        if new.place == known.place:
            back |= new.offer != known.offer
        if new.place[0] == known.place[0] and known.place[0]:
            back |= new.members != known.members
            back |= any(new.terms.get(stage) != terms for stage, terms in known.terms.items())
            back |= any(new.survivors.get(stage) != sites for stage, sites in known.survivors.items())
    elif isinstance(known, DrawState) and isinstance(new, DrawState):
        back = new.attempt < known.attempt or (known.groups not in (b"", new.groups))
        if new.attempt == known.attempt:
            back |= (new.value, new.signed) != (known.value, known.signed)
            back |= known.committed not in (b"", new.committed)
    else:
        back = True
    if back:
        raise PolicyError(
            "a record would go back to what was before",
            expected="one that keeps what this site has accepted",
            remedy="the worker restarts; if it happens again, somebody may have taken it over",
        )
