"""A site's node: what it says to an offered plan, and the sites of the runs that it has accepted.

    offer → roster, plan, policy → rows and model → a person's approval → accepted, durably

What was accepted is built again from the site's own files after a restart: model, rows, and what it keeps
between rounds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wardround import __version__
from wardround.client.accepted import RUNS, Accepted, RunFolders
from wardround.client.checkpoints import CheckpointFile
from wardround.client.estimate import seconds_a_round
from wardround.client.fold_check import FoldCheck
from wardround.client.fold_memory import SealedFolds
from wardround.client.grouping import Grouped
from wardround.client.keeper import Keeper
from wardround.client.local_data import LocalData, check_policy, open_bench, ready
from wardround.client.memory import MEMORY_FOLDER, SiteStore
from wardround.client.noise_file import NoiseFile
from wardround.client.parties import Parties
from wardround.client.policy import RefusedPlanError, month_refusals, sentence
from wardround.client.private import SitePrivacy, released, released_apart
from wardround.client.resting import Resting, give_memory_back
from wardround.client.round import named
from wardround.client.rows_noted import mark_of, note_rows
from wardround.client.sealed_files import Owner
from wardround.client.secure_record import KeptContributions
from wardround.client.site import Site
from wardround.client.site_settings import SiteSettings
from wardround.client.small_cells import site_cells
from wardround.core.cells import EXACT, Cells
from wardround.core.enrolment import UNREADY, SignedPlan
from wardround.core.errors import (
    ConfigError,
    PeerError,
    PolicyError,
    StorageError,
    UnreadyError,
    WardroundError,
)
from wardround.core.plan import TrainingPlan
from wardround.core.plan_offers import Enough, PlanAnswer, PlanOffer, Reason, Verdict
from wardround.privacy.accounting.of_plan import round_cost
from wardround.privacy.noise.source import SystemSource
from wardround.privacy.secagg.admission import NO_HEADS, Member
from wardround.privacy.secagg.draw import DrawSite, Groups
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.aggregation import party
from wardround.privacy.sums.contract import EVALUATION, GROUPS, SUMS
from wardround.privacy.sums.form import Form
from wardround.privacy.sums.offers import run_of
from wardround.runtime.files import is_full
from wardround.strategies.contract import GroupStrategy, SumStrategy
from wardround.training.plan_check import plan_faults
from wardround.training.plan_strategy import bind_strategy

LOG = logging.getLogger(__name__)
_SAID: Final[Mapping[str, Enough]] = {"enough": "enough", "not enough": "not_enough"}


MARK_DIGITS: Final = 16
OVER_S: Final = 30.0
"""After the last round was scored nothing is asked any more; so long the server may take to open that sum."""


class WaitingError(PolicyError):
    """A person at the site has to do something first."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code = code


@dataclass
class Node:
    """One site's node.

    Attributes:
        name: Of the site.
        runs: Its folders of runs.
        storage: Seals what it keeps of a run.
        keeper: Its keys, records and ledger.
        read_plan: Signed bytes → the plan, under the consortium's key.
        read_server: Signed bytes → the server's public key, under the consortium's key; refuses what expired.
        roster: The members that its people have confirmed, as of now.
        settings: What `site.yaml` says, as of now: people may correct it while an offer stands.
        message_s: Seconds after which this process is ended over one message.
    """

    name: str
    runs: RunFolders
    storage: Secret
    keeper: Keeper
    read_plan: Callable[[bytes], SignedPlan]
    read_server: Callable[[bytes], bytes]
    roster: Callable[[], Roster]
    settings: Callable[[], SiteSettings]
    message_s: float = math.inf
    _open: dict[str, Site] = field(default_factory=dict)
    """The run whose model is loaded: one, since a model is large."""
    _resting: dict[str, Resting] = field(default_factory=dict)
    """The same run, while the site was idle for so long that its model was let go."""
    _idle_s: float | None = None

    def answer(self, offer: PlanOffer) -> PlanAnswer:
        """What the site says to an offer; the same offer twice gets the same answer.

        Nothing is raised: every failure is a reason, and the whole of it stands in the site's own log.
        """
        try:
            return self._accept(offer)
        except WaitingError as error:
            return self._says(offer, "waiting", error.code, error.what)
        except RefusedPlanError as error:
            LOG.warning("the plan of run %s is not accepted: %s", offer.run_id, error)
            reasons = tuple(Reason("policy", sentence(refusal)) for refusal in error.refusals)
            return PlanAnswer(offer.run_id, self.name, "refused", reasons, version=__version__)
        except UnreadyError as error:  # its words are for this site's own people
            LOG.warning("the plan of run %s is not accepted: %s", offer.run_id, error)
            return self._says(offer, "refused", error.code, UNREADY[error.code])
        except Exception as error:
            _, code, reason = named(error)
            if isinstance(error, StorageError) and is_full(error):  # a refusal would stand
                LOG.warning("the plan of run %s cannot be kept yet: %s", offer.run_id, error)
                return self._says(offer, "waiting", code, reason)
            LOG.warning(
                "the plan of run %s is not accepted: %s",
                offer.run_id,
                error if isinstance(error, WardroundError) else reason,  # whose words may quote a row
                exc_info=code == "internal",
            )
            return self._says(offer, "refused", code, reason)

    def _says(self, offer: PlanOffer, verdict: Verdict, code: str, text: str) -> PlanAnswer:
        return PlanAnswer(offer.run_id, self.name, verdict, (Reason(code, text),), version=__version__)

    def _accept(self, offer: PlanOffer) -> PlanAnswer:
        if offer.site != self.name:
            raise PeerError("the offer is for another site", found=offer.site, expected=self.name)
        self.runs.of(offer.run_id)
        signed, server = self.read_plan(offer.plan), self.read_server(offer.certificate)
        self.runs.offered(offer.run_id, offer.plan)
        plan, settings = signed.plan, self._settings()
        for fault in plan_faults(signed):
            raise UnreadyError("method", fault.what, found=fault.found, expected=fault.expected)
        check_policy(settings, plan)
        self._require_roster(offer.roster)
        if self.runs.declined(offer.run_id, signed.digest):
            raise UnreadyError("declined", "a person at this site has declined the plan")
        self._require_month(settings, offer.run_id)
        if settings.approval == "manual" and not self.runs.approved(offer.run_id, signed.digest):
            raise WaitingError(
                "approval", "a person at the site has to approve the plan: wardround site approve RUN"
            )
        local = ready(settings, plan, self.name)
        self._privacy(plan, local)
        self._release(offer.run_id, plan, local)
        accepted = self.runs.accept(offer.run_id, plan=signed.digest, roster=offer.roster, server=server)
        site = self._build(accepted, plan, local)
        self._open, self._resting = {offer.run_id: site}, {}
        return PlanAnswer(
            offer.run_id,
            self.name,
            "accepted",
            rows=_SAID[local.estimate] if settings.tell_rows else "unsaid",
            seconds_a_round=seconds_a_round(site) if settings.tell_seconds else None,
            version=__version__,
        )

    def _require_month(self, settings: SiteSettings, run_id: str) -> None:
        """Refuse one run too many; a run that was accepted stays so.

        Raises:
            RefusedPlanError: As many others were accepted in thirty days as the policy allows.
        """
        if self.runs.accepted(run_id) is not None:
            return
        folders = (self.runs, *(RunFolders(Path(folder) / RUNS) for folder in settings.beside))
        others = (of_one.accepted(run) for of_one in folders for run in of_one.runs())
        times = tuple(found.when for found in others if found is not None)
        refusals = tuple(month_refusals(settings.plans, times, self.runs.now()))
        if refusals:
            raise RefusedPlanError(refusals)

    def _settings(self) -> SiteSettings:
        try:
            return self.settings()
        except (ConfigError, StorageError) as error:
            raise UnreadyError("settings", error.what, found=error.found, remedy=error.remedy) from error

    def _require_roster(self, digest: bytes) -> None:
        own = self.roster()
        if own.digest != digest:
            raise WaitingError(
                "roster_unconfirmed",
                "the run goes by a roster that this site's people have not confirmed: "
                "wardround site roster update, then wardround site roster confirm",
            )
        if self.name not in own.keys:
            raise WaitingError("roster_unconfirmed", "this site is no confirmed member of its own roster")

    def get(self, key: tuple[str, str]) -> Site | None:
        """The site of a run that was accepted here, by run and name; None for any other.

        Raises:
            WardroundError: What was accepted cannot be opened any more.
        """
        run_id, name = key
        if name != self.name:
            return None
        if run_id in self._resting:
            resting = self._resting[run_id]
            self._open = {run_id: resting.woken(open_bench(self.settings(), resting.rest["plan"]))}
            self._resting = {}
            LOG.info("the base model of run %s is loaded again", run_id)
        if run_id not in self._open:
            accepted = self.runs.accepted(run_id)
            data = self.runs.plan(run_id)
            if accepted is None or data is None:
                return None
            signed = self.read_plan(data)
            if signed.digest != accepted.plan:
                raise PeerError("the plan that was accepted is not the one that was offered last")
            local = ready(self.settings(), signed.plan, self.name)
            self._release(run_id, signed.plan, local)  # there may be others than when it was accepted
            self._open = {run_id: self._build(accepted, signed.plan, local)}
            self._resting = {}
        return self._open[run_id]

    def idle(self, quiet_s: float) -> None:
        """Let the model go where the site has been idle for as long as its settings say, or its run is over.

        Args:
            quiet_s: Seconds since the last message.
        """
        patience = math.inf if self._idle_s is None else self._idle_s
        if any(map(_scored_last, self._open.values())):
            patience = min(patience, OVER_S)
        if not self._open or quiet_s < patience:
            return
        self._resting = {run_id: Resting.of(site) for run_id, site in self._open.items()}
        self._open = {}
        give_memory_back()
        LOG.info("idle for %.0f s: the base model is let go until the next message", quiet_s)

    def _build(self, accepted: Accepted, plan: TrainingPlan, local: LocalData) -> Site:
        run_id, strategy = accepted.run_id, bind_strategy(plan)
        roster = self.roster()
        if roster.digest.hex() != accepted.roster:
            raise PolicyError(
                "the roster that this site's people confirmed is not that of the run any more",
                found=roster.digest.hex()[:12], expected=accepted.roster[:12],
                remedy="the run goes on without this site; it can join the next one",
            )  # fmt: skip
        folder = self.runs.of(run_id)
        note_rows(folder, self.storage, local.rows)
        server, secure = bytes.fromhex(accepted.server), self.settings().policy
        self._idle_s = self.settings().idle_release_s

        def member(sum: str) -> Member:
            owner = self._owner(run_id, plan)
            return Member(
                self.name,
                self.keeper.signer,
                roster,
                server,
                secure,
                run_of(run_id, sum),
                bytes.fromhex(plan.digest),
                self.keeper.record(owner, sum),
                # Exact counts of the same rows: of a difference they would be somebody's own.
                secure.least_honest + secure.assumed_colluders
                if sum == EVALUATION and self.settings().plans.smallest_cell == 1
                else 0,
                self.keeper.heads(sum) if sum in SUMS else NO_HEADS,
            )

        kept = KeptContributions(folder / "kept", self._owner(run_id, plan), self.storage)
        memory = SealedFolds(folder / "kept", self._owner(run_id, plan), self.storage)
        folds = FoldCheck.remembered(plan, strategy, memory)
        parties = Parties({name: party(plan.secure, member(name), Form.of(plan)) for name in SUMS}, kept)
        return Site(
            self.name,
            run_id,
            plan,
            strategy,
            local.bench,
            local.rows.training,
            local.rows.validation,
            SiteStore.sealed(folder / MEMORY_FOLDER, self._owner(run_id, plan), self.storage),
            parties,
            folds,
            self._grouped(plan, strategy, member(GROUPS), run_id, folds.groups)
            if isinstance(strategy, GroupStrategy)
            else None,
            self._privacy(plan, local, run_id),
            self._checkpoints(folder, self._owner(run_id, plan)),
            self.settings().plans.figures,
            *self._cells(local),
            local.rows.digest,
            local.rank,
            message_s=self.message_s,
        )

    def _cells(self, local: LocalData) -> tuple[Cells, Cells]:
        """How counts of training rows, and of those held back, leave: in multiples of so many patients."""
        patients = self.settings().plans.smallest_cell
        if patients == 1:
            return EXACT, EXACT
        training, held_back = (site_cells(self.storage, patients * rows) for rows in local.rows.most_of_one)
        if sum(row.rows for row in local.rows.training) < training.smallest:
            # One patient has most of the rows: the whole of them is no small cell, and the site has to weigh.
            training = site_cells(self.storage, patients)
        return training, held_back

    def _checkpoints(self, folder: Path, owner: Owner) -> CheckpointFile | None:
        settings = self.settings()
        if settings.checkpoint_s is None and not settings.hours:
            return None
        return CheckpointFile(folder / "kept", owner, self.storage, settings.checkpoint_s or math.inf)

    def _owner(self, run_id: str, plan: TrainingPlan) -> Owner:
        return Owner(run_id=run_id, plan=bytes.fromhex(plan.digest), site=self.name)

    def _grouped(
        self, plan: TrainingPlan, strategy: SumStrategy, member: Member, run_id: str, groups: Groups
    ) -> Grouped:
        assert isinstance(strategy, GroupStrategy)  # noqa: S101 - the caller looked
        record = self.keeper.draw_record(self._owner(run_id, plan))
        draw = DrawSite(member, plan.strategy.name, strategy.group_size, record)
        return Grouped(self.name, draw, groups)

    def _release(self, run_id: str, plan: TrainingPlan, local: LocalData) -> None:
        """Whom a run does not protect stands in the ledger of a site that has one before it is accepted.

        Noise on whole sites counts as none, and so does noise on rows of whom nothing bounds how many one
        patient has: the ledger is a patient's. A private run protects nobody whom it holds back.

        Raises:
            BudgetError: The ledger's policy does not allow it.
            StorageError: The ledger cannot be written, or is not there any more.
        """
        if plan.bounds_patients:
            if local.rows.held_back:
                rows, charges = local.rows, self.keeper.charges()
                released_apart(plan, run_id, rows.everybody, rows.held_back, charges, rows.contents)
            return
        try:
            charges = self.keeper.charges()
        except PolicyError:
            return  # no patient has an account here, nor ever had one
        released(plan, run_id, local.rows.everybody, charges, local.rows.contents)

    def _privacy(self, plan: TrainingPlan, local: LocalData, run_id: str | None = None) -> SitePrivacy | None:
        """The site's side of the plan's privacy; of no run as long as it is not accepted.

        Raises:
            PolicyError: The site has no ledger, or δ is too large for its units.
            ConfigError: A batch larger than the site.
        """
        rules, units = plan.privacy, local.rows.units
        patients = len(set(units))
        cost = round_cost(plan, len(units) if rules and rules.unit == "example" else patients)
        if rules is None or cost is None:
            return None
        return SitePrivacy(
            rules, cost, units, float(plan.local.batch_size), self.keeper.charges(),
            lambda purpose, round: SystemSource(f"{purpose.value} of round {round}"), simulation=False,
            mark=mark_of(self.storage, local.rows)[:MARK_DIGITS],
            noise=None if run_id is None else self._noise(plan, run_id),
            everybody=local.rows.everybody, contents=local.rows.contents,
        )  # fmt: skip

    def _noise(self, plan: TrainingPlan, run_id: str) -> NoiseFile:
        return NoiseFile.sealed(self.runs.of(run_id), self._owner(run_id, plan), self.storage)


def _scored_last(site: Site) -> bool:
    """Whether the site was sent the state after its plan's last round: to score it, since none follows."""
    known = site.folds.known
    return known is not None and known.round >= site.plan.rounds.rounds
