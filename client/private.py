"""A site's side of a private run: what it reserves before its rows are touched, and with what it trains.

reserve in the ledger → draw, clip, noise → seal the contribution → it may leave
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wardround.client.charges import Charge, Charges
from wardround.client.ledger.guards import WHOLE_RUN
from wardround.client.noise_file import NoiseFile, Stand, require_room
from wardround.core.errors import BudgetError, InternalError, PolicyError
from wardround.core.plan import TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.seeds import Purpose
from wardround.privacy.accounting.mechanisms import NoPrivacy
from wardround.privacy.accounting.of_plan import RoundCost
from wardround.privacy.noise.source import RandomSource
from wardround.privacy.sums.noise import ring_noise
from wardround.training.checkpoint import Checkpoint
from wardround.training.local_round import LocalResult
from wardround.training.private.local import PrivateRound

Sources = Callable[[Purpose, int], RandomSource]
"""Purpose and round → words for it."""


def released(
    plan: TrainingPlan,
    run_id: str,
    everybody: Sequence[str],
    charges: Charges,
    contents: Mapping[str, str] | None = None,
) -> None:
    """Put on record that a run gets these patients without differential privacy: nothing bounds theirs now.

    Args:
        plan: What the site is about to accept.
        run_id: Of the run.
        everybody: Units of all rows, those that are held back included: their scores are exact.
        charges: The site's ledger.
        contents: As `Charge`.

    Raises:
        BudgetError: The ledger has a cap, and its policy does not allow such a run.
        StorageError: The ledger cannot be written, or does not hold what was written.
    """
    charge = Charge(
        source=plan.name, units=tuple(everybody), run=run_id, plan=plan.digest, round=0, draw=WHOLE_RUN,
        mechanism=NoPrivacy(), unit="patient", delta=0.5, everybody=tuple(everybody),
        contents=dict(contents or {}),
    )  # fmt: skip
    try:
        charges.reserve(charge)
    except BudgetError as error:
        if plan.privacy is None or not plan.privacy.trains_privately:
            raise
        raise BudgetError(
            "the plan protects single rows, and nothing bounds how many of them one patient has: without "
            "differential privacy for a patient, which ends the cap: plan with privacy.unit=patient, or with "
            "data.unit_column and privacy.most_examples, or the site's people allow it (wardround ledger "
            "amend --allow-release)",
            found=error.found, expected=error.expected,
        ) from error  # fmt: skip


def released_apart(
    plan: TrainingPlan,
    run_id: str,
    everybody: Sequence[str],
    held_back: Sequence[str],
    charges: Charges,
    contents: Mapping[str, str] | None = None,
) -> None:
    """Put on record that exact scores of those whom a private run holds back leave: nothing bounds theirs.

    Who is held back follows from the plan's seed, so that another run trains on them: by then they are known
    as what they are.

    Args:
        plan: What the site is about to accept.
        run_id: Of the run.
        everybody: Units of all rows.
        held_back: Of them, those that are only scored.
        charges: The site's ledger.
        contents: As `Charge`.

    Raises:
        BudgetError: The ledger has a cap, and its policy does not allow it.
        StorageError: The ledger cannot be written, or does not hold what was written.
    """
    charge = Charge(
        source=f"{plan.name[:200]} (held back)", units=tuple(held_back), run=run_id, plan=plan.digest,
        round=0, draw=WHOLE_RUN, mechanism=NoPrivacy(), unit="patient", delta=0.5, everybody=tuple(everybody),
        contents=dict(contents or {}),
    )  # fmt: skip
    try:
        charges.reserve(charge)
    except BudgetError as error:
        raise held_back_refused(error.expected) from error


def held_back_refused(expected: str | None) -> BudgetError:
    """Why a private run that holds patients back is refused under a cap.

    Both ways out are in the first sentence, which is all that the operator is told.
    """
    return BudgetError(
        "those whom the plan holds back to score its rounds would be without differential privacy, which "
        "ends the cap on them: plan with data.validation_fraction=0, and nobody is held back, or the site's "
        "people allow it (wardround ledger amend --allow-release)",
        found="ε = infinity for those held back", expected=expected,
    )  # fmt: skip


@dataclass(frozen=True, repr=False)
class SitePrivacy:
    """What one site needs to train privately.

    Attributes:
        rules: The plan's.
        cost: Of one round, here.
        patients: The patient of each training row, whom the ledger charges.
        expected_batch: B, of the plan.
        charges: The site's ledger.
        sources: Randomness of batches and noise.
        simulation: Says "not private": the randomness comes from a seed.
        mark: Of the rows as they were read (`rows_noted.py`): it stands in each reservation of theirs.
        noise: Where noise is kept that is correlated over the rounds of the run.
        everybody: The patients of all rows, those held back included; none where the ledger is of this run
            alone (a simulation).
        contents: As `Charge`.
    """

    rules: PrivacyRules
    cost: RoundCost
    patients: Sequence[str]
    expected_batch: float
    charges: Charges
    sources: Sources
    simulation: bool
    mark: str = ""
    noise: NoiseFile | None = None
    everybody: Sequence[str] = ()
    contents: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> Sequence[str]:
        """What is sampled: the unit of each training row."""
        of_rows = self.cost.unit == "example"
        return [str(row) for row in range(len(self.patients))] if of_rows else self.patients

    def stand(self, round: int, trained: int) -> Stand | None:
        """Where correlated noise stands before a round, durably; None where every step has its own.

        Args:
            round: Counts from 1.
            trained: Coordinates that are noised.

        Raises:
            ConfigError: The noise of so many is more than a site can keep.
            PolicyError: Its key comes from a seed, and this is no simulation.
            StorageError: It cannot be read, or not be begun.
        """
        if not self.cost.bands:
            return None
        if self.noise is None:
            raise InternalError("a site with correlated noise has nowhere to keep it")
        require_room(self.cost.bands, trained)
        return self.noise.before(round, lambda: self._words(Purpose.BATCH, 0))

    def keep(self, result: LocalResult, round: int) -> None:
        """Keep where correlated noise stands after a round, before anything of it may leave.

        Raises:
            StorageError: It cannot be written.
        """
        banded, state = self.cost.banded, result.noise
        if self.noise is None or banded is None or state is None:
            return
        if state.done < banded.steps:  # after the last step nothing takes any noise back
            self.noise.keep(state, round=round)

    def usable(self, resumed: Checkpoint | None, stand: Stand | None) -> Checkpoint | None:
        """The checkpoint of a round, if correlated noise goes on in it from where it stood before."""
        if resumed is None or stand is None:
            return resumed
        found, before = resumed.noise, stand.state
        goes_on = found is not None and (found.key, found.done) == (before.key, before.done + resumed.done)
        return resumed if goes_on else None

    def reserve(
        self,
        plan: TrainingPlan,
        run_id: str,
        round: int,
        *,
        cohort: int,
        coordinates: int,
        done: int = 0,
        draw: str | None = None,
        stand: Stand | None = None,
    ) -> float:
        """Charge a round to every unit of the site, durably, before it is trained.

        Where noise is correlated, the whole run, once.

        Args:
            plan: What this site accepted.
            run_id: Of the run.
            round: Counts from 1.
            cohort: Sites that are asked: of distributed noise they decide what is guaranteed.
            coordinates: Of a contribution.
            done: Steps that an earlier process did, under its own reservation; the others are drawn afresh,
                and charged beside all that it reserved.
            draw: Names the randomness, as `draw` gave it; None: nobody settles it.
            stand: Where correlated noise stands; it names the run's one draw.

        Returns:
            ε that the run has cost the units, this round included.

        Raises:
            BudgetError: It would go beyond the site's cap.
            PolicyError: Correlated noise is older than what left the site.
            StorageError: The ledger cannot be written, or does not hold what was written.
        """
        added = ring_noise(plan, cohort=cohort, coordinates=coordinates, round=round)
        mechanism = self.cost.after(done).mechanism if added is None else added.mechanism
        spent = self.charges.reserve(
            Charge(
                source=plan.name, units=tuple(self.patients), run=run_id, plan=plan.digest, round=round,
                draw=draw or (self.draw(round) if stand is None else stand.name), mechanism=mechanism,
                unit=self.cost.unit, most_examples=plan.most_of_a_patient, delta=self.rules.delta,
                after=0 if stand is None else stand.round, repeatable=self.simulation,
                everybody=tuple(self.everybody), contents=dict(self.contents),
            )
        )  # fmt: skip
        # The ledger's figure is the patient's.
        return self.cost.epsilon(round).value if self.cost.unit == "example" else spent

    def seal(self, run_id: str, round: int, contribution: str) -> None:
        """Mark a contribution as the round's: from here on no other may leave, nor other noise be drawn.

        Raises:
            PolicyError: Another one is sealed already.
        """
        self.charges.seal(run_id, round, contribution)

    def settle(self, run_id: str, round: int, draw: str, steps: int) -> None:
        """Lower the charge of a round that is left for good after so many steps of this reservation.

        Only a round that the site's hours end is: how far it came then is the clock's doing. A round whose
        training fails stays charged in full. At which step it failed may hang on one patient's rows, and the
        ε that a site tells would give that step away.

        Raises:
            StorageError: The ledger cannot be written; the charge stays as it is.
        """
        self.charges.settle(run_id, round, draw, steps)

    def draw(self, round: int) -> str:
        """Names the randomness of a round: a seed gives the same one again, a system never does."""
        if self.simulation:
            return f"seed-{round}"
        return f"{secrets.token_hex(16)}-{self.mark}".rstrip("-")

    def share(self, round: int) -> RandomSource | None:
        """Words for this site's share of the noise; None where noise is added to each step.

        Raises:
            PolicyError: They come from a seed, and this is no simulation.
        """
        return self._words(Purpose.SHARE, round) if self.rules.noise == "distributed" else None

    def private_round(
        self,
        round: int,
        clip_norm: float | None,
        resumed: Checkpoint | None = None,
        stand: Stand | None = None,
    ) -> PrivateRound:
        """What the local round is handed.

        Args:
            round: Counts from 1.
            clip_norm: What the round before left, where it adapts.
            resumed: Where an earlier process left this round.
            stand: Where correlated noise stands before the round.

        Raises:
            PolicyError: Batches or noise come from a seed, and this is no simulation.
        """
        left = clip_norm if resumed is None else resumed.clip_norm
        state = None if stand is None else stand.state if resumed is None else resumed.noise
        return PrivateRound(
            self.rules, self.cost, self.expected_batch, self.units, left or self.rules.clip_norm,
            self._words(Purpose.BATCH, round), self._words(Purpose.NOISE, round), self.simulation,
            0 if resumed is None else resumed.done, state,
        )  # fmt: skip

    def _words(self, purpose: Purpose, round: int) -> RandomSource:
        """Words for a purpose.

        Raises:
            PolicyError: They can be drawn again by whoever knows a seed, and this is no simulation.
        """
        source = self.sources(purpose, round)
        if source.repeatable and not self.simulation:
            raise PolicyError(
                f"a private site draws its {purpose.value} from a seed, which protects nobody",
                found="a repeatable source", expected="words from the operating system",
                remedy="use the system's source, or run a simulation, which says that it is not private",
            )  # fmt: skip
        return source
