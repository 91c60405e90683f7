"""One run, from the offer of its plan to its signed result: what the desk has done when its turn comes.

    plan → offer to every member → round loop → result, signed

Everything is kept in the run's folder, so that a killed server that is started again goes on with the same
run: the members that it goes by, who has accepted, the journal of rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from wardround import __version__
from wardround.core.enrolment import SignedPlan
from wardround.core.errors import ConfigError
from wardround.core.packed import Adapter
from wardround.core.plan import TrainingPlan
from wardround.core.plan_offers import PlanOffer
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.aggregation import Aggregation
from wardround.privacy.sums.form import Form
from wardround.privacy.sums.trusted import Aggregator
from wardround.runtime.event_log import missing_of, read_events
from wardround.runtime.events import EventStream, PrivacySpent
from wardround.runtime.files import save_tensors, storing, write_atomic
from wardround.runtime.plan_folder import read_initial
from wardround.runtime.result_record import KIND, SHARED, SHARED_IS, PrivacyResult, ResultRecord
from wardround.runtime.roster import RosterDocument
from wardround.runtime.signed import sign_document
from wardround.runtime.signed_plan import read_signed_plan
from wardround.server.attempts import Attempts
from wardround.server.enrolment import ARM, Enrolling, EnrolmentBook, enrol
from wardround.server.folded import BetweenStages
from wardround.server.grid_transport import GridTransport
from wardround.server.journal import Journal
from wardround.server.offer_grid import GridOffers
from wardround.server.outcome import Outcome
from wardround.server.relay_journals import RelayJournals
from wardround.server.round_control import stopped
from wardround.server.rounds import run_rounds
from wardround.server.run import Run
from wardround.server.run_control import RunControl
from wardround.server.run_record import RunFolder
from wardround.training.plan_check import plan_faults
from wardround.training.plan_strategy import bind_strategy

ROSTER: Final = "roster.json"
ENROLMENT: Final = "enrolment.json"
ATTEMPTS: Final = "attempts.json"
RELAYS: Final = "relays"
BETWEEN: Final = "between.safetensors"
RESULT: Final = "result"
RECORD, RELEASED, LAST = "result.signed.json", "released.safetensors", "last.safetensors"
POLL_S: Final = 0.2
MESSAGE_LIFE_S: Final = 30 * 24 * 3600.0
"""Flower drops messages that are older; an offer may wait for days, and a round has its own deadline."""


class Carrier(Protocol):
    """A run in Flower's sense."""

    @property
    def grid(self) -> Grid:
        """Sends messages to nodes and collects replies."""

    def node_of(self, site: str) -> int:
        """The site's Flower node; 0 where there is none."""

    def withdraw(self, message_ids: Sequence[str]) -> None:
        """Take messages back whose answers nobody waits for any more."""

    def close(self, reason: str = "") -> None:
        """End it."""


@dataclass(frozen=True)
class Deployment:
    """What every run of a consortium's server stands on.

    Attributes:
        consortium_key: Public; signs plans and rosters.
        identity: The server's own key: signs offers of sums and results.
        certificate: The consortium's word for that key as it is now, as its bytes.
        roster: The signed roster as it is now, as its bytes.
        read_roster: Signed bytes → the roster.
        open_run: Opens a run in Flower's sense.
        aggregator: The X25519 key to which sites seal contributions, as it is now; None without one.
        clock: Seconds, monotonic.
    """

    consortium_key: bytes
    identity: Ed25519PrivateKey
    certificate: Callable[[], bytes]
    roster: Callable[[], bytes]
    read_roster: Callable[[bytes], RosterDocument]
    open_run: Callable[[str], Carrier]
    aggregator: Callable[[], Secret | None] = lambda: None
    clock: Callable[[], float] = time.monotonic


def execute(
    work: RunFolder, control: RunControl, events: EventStream, deployment: Deployment
) -> ResultRecord:
    """Offer the plan, train, write the signed result; goes on where an earlier call was interrupted.

    Raises:
        PeerError: The plan is not signed by the consortium.
        ConfigError: The initial adapter is not the plan's, or the plan's aggregation is none that this server
            can do.
        QuorumError: Too few sites accepted the plan, or answered in a round.
        RunStoppedError: Somebody asked for it.
        StorageError: Something cannot be kept.
    """
    signed = read_signed_plan(work.signed_plan, deployment.consortium_key)
    plan, initial = signed.plan, read_initial(work.path, signed.plan)
    aggregator = own_aggregator(plan, deployment.aggregator())
    members = roster_of(work, deployment)
    roster = members.roster()
    carrier = deployment.open_run(work.run_id)
    try:
        sites = accepted_sites(work, signed, roster, control, events, deployment, carrier)
        for fault in plan_faults(signed, (len(sites),)):  # of a number that nobody knew when it was signed
            raise fault
        outcome = train(
            work, signed, roster, sites, control, events, deployment, carrier, initial, aggregator
        )
    finally:
        carrier.close()
    return write_result(work, signed, roster, sites, outcome, deployment)


def own_aggregator(plan: TrainingPlan, key: Secret | None) -> Aggregator | None:
    """What opens contributions that are sealed; None of a plan whose contributions are not.

    Args:
        plan: What is to be trained.
        key: The X25519 key that lies here.

    Raises:
        ConfigError: `secure.mode=trusted`: the aggregator that the plan names is not this server.
    """
    if plan.secure.mode != "trusted":
        return None
    if key is None:
        raise ConfigError(
            "this server cannot open what is sealed to a trusted aggregator",
            found="no aggregator.key in the server's folder", expected=f"that of {plan.secure.aggregator}",
            remedy="wardround server aggregator-key makes one; make the plan with the key that it shows",
        )  # fmt: skip
    found = Aggregator(key)
    if found.public.hex() != plan.secure.aggregator:
        raise ConfigError(
            "the plan's contributions are sealed to another aggregator than this server",
            found=f"secure.aggregator={plan.secure.aggregator}", expected=found.public.hex(),
            remedy="make the plan with the key of this server: wardround server aggregator-key shows it",
        )  # fmt: skip
    return found


def roster_of(work: RunFolder, deployment: Deployment) -> RosterDocument:
    """The roster that the run goes by from its first start to its end, whoever is admitted later.

    Raises:
        StorageError: It cannot be kept, or read again.
        PeerError: It is not signed by the consortium.
    """
    path = work.path / ROSTER
    if not path.exists():
        write_atomic(path, deployment.roster())
    with storing(path):
        return deployment.read_roster(path.read_bytes())


def accepted_sites(
    work: RunFolder,
    signed: SignedPlan,
    roster: Roster,
    control: RunControl,
    events: EventStream,
    deployment: Deployment,
    carrier: Carrier,
) -> tuple[str, ...]:
    """The sites of the run: enrolled now, or before the server was interrupted."""
    certificate = deployment.certificate()
    offers = {
        site: PlanOffer(work.run_id, site, work.signed_plan, certificate, roster.digest, __version__)
        for site in roster.keys
    }

    def check() -> None:
        if control.stop_requested or control.drain_requested:
            raise stopped()

    return enrol(
        Enrolling(
            offers,
            signed.enrolment,
            GridOffers(carrier.grid, carrier.node_of, MESSAGE_LIFE_S),
            EnrolmentBook(work.path / ENROLMENT, work.run_id),
            events,
            deployment.clock,
            control.waiting_for,
            check,
        )
    )


def train(
    work: RunFolder,
    signed: SignedPlan,
    roster: Roster,
    sites: tuple[str, ...],
    control: RunControl,
    events: EventStream,
    deployment: Deployment,
    carrier: Carrier,
    initial: Adapter,
    aggregator: Aggregator | None = None,
) -> Outcome:
    """The round loop over the accepted sites, from the journal on."""
    plan = signed.plan
    return run_rounds(
        Run(
            work.run_id,
            ARM,
            plan,
            bind_strategy(plan),
            sites,
            GridTransport(carrier.grid, carrier.node_of, POLL_S, MESSAGE_LIFE_S, carrier.withdraw),
            Aggregation(plan.secure.mode, KeySigner(deployment.identity), roster, aggregator, Form.of(plan)),
            Journal(work.journal, plan),
            events,
            clock=deployment.clock,
            grace_s=signed.enrolment.grace_s,
            control=control,
            attempts=Attempts(work.path / ATTEMPTS),
            journals=RelayJournals(work.path / RELAYS, work.run_id, plan, roster),
            between=BetweenStages(work.path / BETWEEN, plan),
        ),
        initial,
    )


def privacy_of(signed: SignedPlan, events: Path) -> PrivacyResult | None:
    """What a private run cost, as it was last told; None of a run without differential privacy.

    Raises:
        StorageError: The run's events cannot be read.
    """
    rules = signed.plan.privacy
    if rules is None:
        return None
    sites: dict[str, float] = {}
    for event in read_events(events):
        if isinstance(event, PrivacySpent):  # a server that was resumed tells of those that still take part
            sites |= event.sites
    return PrivacyResult(
        unit=rules.unit, noise=rules.noise, delta=rules.delta, sites=sites, mechanism=rules.mechanism
    )


def write_result(
    work: RunFolder,
    signed: SignedPlan,
    roster: Roster,
    sites: tuple[str, ...],
    outcome: Outcome,
    deployment: Deployment,
) -> ResultRecord:
    """Both adapters, then the record that names them by digest, under the server's signature.

    Where each site ends with an adapter of its own, in place of both what the sites share.
    """
    released, last = outcome.released, outcome.last.adapter
    record = ResultRecord(
        run_id=work.run_id,
        plan=signed.digest,
        roster=roster.digest.hex(),
        sites=sites,
        missing=missing_of(work.events, ARM),
        reason=outcome.reason,
        metric=signed.plan.release.metric,
        scores=outcome.selection.scores,
        released_round=None if released is None else outcome.released_round,
        released=None if released is None else released.digest,
        last_round=outcome.last.round,
        last=last.digest,
        privacy=privacy_of(signed, work.events),
    )
    folder = work.path / RESULT
    if released is None:
        save_tensors(folder / SHARED, last.tensors(), {"digest": last.digest, "what": SHARED_IS})
    else:
        for name, adapter in ((RELEASED, released), (LAST, last)):
            save_tensors(folder / name, adapter.tensors(), {"digest": adapter.digest})
    write_atomic(folder / RECORD, sign_document(KIND, record, deployment.identity))
    return record
