"""A site's privacy ledger: what its patients have lost, durable before any of their data is touched.

    with Ledger.open(folder, mirror=mirror) as ledger:
        source = ledger.source("cardiology 2026", patient_ids)
        reservation = ledger.reserve(
            source, run=run, plan=plan, round=3, stage=0, draw=draw, mechanism=mechanism, unit="patient"
        )
        ...                                                   # now data may be touched
        ledger.settle(reservation, steps)                     # fewer steps ran, if they did
        ledger.seal(run=run, round=3, stage=0, digest=digest) # now the contribution may leave

Guarantee: under a cap (ε, δ), all that this ledger let through is (ε, δ)-DP for every patient of the site,
    under adding or removing one with everything that she owns, whatever was chosen after whatever was seen,
    if: only what was reserved here ran; an id of one export is one patient, and stays hers from export to
    export unless the ledger sees it as new; what people signed is true. It is per patient *and site*.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from wardround.client.ledger.book import Book
from wardround.client.ledger.charging import for_patient, met_in_run, refusal, spent
from wardround.client.ledger.draws import Draw, Reservation
from wardround.client.ledger.guards import WHOLE, admit, check_open, check_run, check_same, record, release
from wardround.client.ledger.heads import Head
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.rows import Reserved, Sealed, Settled, Terms, Unit, checked
from wardround.client.ledger.sources import Source, add_source, amend, declare_disjoint, source_number
from wardround.client.ledger.store import Store, make_mirror
from wardround.core.errors import ConfigError, InternalError, PolicyError
from wardround.privacy.accounting.account import Account, Epsilon
from wardround.privacy.accounting.mechanisms import Mechanism
from wardround.privacy.accounting.steps import steps_of


class Ledger:
    """A site's ledger, open. One process has it at a time; its methods may be called from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._open: set[Draw] = set()
        """Reservations of this process: of any other, nobody knows what ran."""

    @staticmethod
    def create(
        folder: Path,
        policy: BudgetPolicy,
        *,
        units: int,
        planned: Account | None = None,
        mirror: Path | None = None,
        now: Callable[[], float] = time.time,
        first: Callable[[Ledger], None] | None = None,
    ) -> Ledger:
        """Make a site's ledger, once, and open it.

        Args:
            folder: A new one; its keys are made there. Back it up as a whole.
            policy: The site's rules.
            units: How many patients the site has.
            planned: What the site expects to be asked for; see `BudgetPolicy.cap`.
            mirror: A second place, on another disk: every row is written there as well.
            now: Seconds since 1970.
            first: Writes what happened before there was a ledger; it is there with that, or not at all.

        Raises:
            StorageError: The folder holds something, or it cannot be written.
            ConfigError: No cap of this kind has any room.
            PolicyError: δ ≥ 1/units.
        """
        cap = policy.cap(units=units, planned=planned)
        order = None if cap is None else cap.order

        def begin(made: Path) -> None:
            if first is not None:
                with Ledger.open(made, now=now) as ledger:
                    first(ledger)

        Store.make(Path(folder), policy, units=units, order=order, now=now, begin=begin)
        if mirror is not None:
            make_mirror(Path(folder), Path(mirror))
        return Ledger.open(folder, mirror=mirror, now=now)

    @staticmethod
    def open(
        folder: Path,
        *,
        mirror: Path | None = None,
        policy: BudgetPolicy | None = None,
        now: Callable[[], float] = time.time,
    ) -> Ledger:
        """Open a ledger that is there.

        Args:
            folder: Of the ledger.
            mirror: As when it was made; rows that it lacks are written to it.
            policy: What the site's rules say now; None takes those on record.
            now: Seconds since 1970.

        Raises:
            RolledBackError: The mirror has rows that the ledger lacks, or peers have seen some.
            StorageError: There is none, or no mirror; it is torn, altered, another key's, or open elsewhere.
            ConfigError: The policy on record is another.
        """
        store = Store.open(Path(folder), None if mirror is None else Path(mirror))
        store.now = now
        if policy is not None and policy != store.book.policy:
            store.close()
            raise ConfigError(
                "the site's budget policy is not the one that its ledger has on record",
                found=policy.model_dump_json(), expected=store.book.policy.model_dump_json(),
                remedy="change it with `Ledger.amend`, in somebody's name, or put the policy back",
            )  # fmt: skip
        return Ledger(store)

    def source(
        self, name: str, unit_ids: Sequence[str | int], contents: Sequence[bytes | None] | None = None
    ) -> Source:
        """The units of a source, which the ledger knows again whatever the source is called.

        Ids that it does not know may be patients whom it knows under other ids: they are taken for the
        worst-off of them (`population.py`) until a person signs otherwise (`declare_disjoint`).

        Args:
            name: For people.
            unit_ids: Id of every patient, sampled or not; repeated ones are one.
            contents: Beside each id a digest of that patient's, or row's, content. Equal contents under two
                ids are one patient, which no declaration undoes: leave out (None) what many share.

        Raises:
            ConfigError: No ids, an empty one, or contents that do not stand beside them.
            PolicyError: δ is not below 1/units for as many as the ledger would then know.
            StorageError: It cannot be kept.
        """
        with self._lock:
            return add_source(self._store, name, unit_ids, contents)

    def declare_disjoint(self, source: Source, *, who: str, why: str) -> None:
        """Record that what this source brought are patients whom the ledger did not know before.

        Args:
            source: Which.
            who: The person who signs.
            why: How they know.

        Raises:
            ConfigError: It brought nobody new; or nobody, or no reason, is named.
            StorageError: It cannot be recorded.
        """
        with self._lock:
            declare_disjoint(self._store, source, who, why)

    def reserve(
        self,
        source: Source,
        *,
        run: str,
        plan: str,
        round: int,
        stage: int,
        draw: str,
        mechanism: Mechanism,
        unit: Unit = "patient",
        most_examples: int | None = None,
    ) -> Reservation:
        """Charge every unit of a source; on the disk when this returns, and data may be touched only then.

        The same draw asked for again is not charged again: its noise is the same. Another draw of the same
        stage is charged on top, until the stage is sealed.

        Args:
            source: Whose units, sampled or not.
            run: Id of the run.
            plan: Digest of its plan, in hex.
            round: Which.
            stage: Which.
            draw: Names the batches and the noise that will be drawn, and none other.
            mechanism: What will be done, with the steps of this stage; a `BandedGaussian`, of a whole run,
                stands under round 0, and counts as one step.
            unit: What is clipped: a patient's contribution, or an example's.
            most_examples: K, where examples are clipped apart: no patient has more of them. Without it they
                have no privacy.

        Raises:
            BudgetError: It would overdraw somebody's budget; says by how much. The refusal is on record.
            PolicyError: The stage is sealed, the draw was asked for otherwise or settled at fewer steps, the
                run has another plan, or this site does not join it again.
            StorageError: It cannot be made durable: nothing may be done on its account.
        """
        with self._lock:
            self._store.check()
            number = source_number(self.book, source)
            charged = for_patient(mechanism, unit, most_examples)
            place: Draw = (run, round, stage, draw)
            terms = checked(Terms, run=run, plan=plan, source=number, unit=unit, mechanism=charged)
            check_run(self.book, run, plan)
            held = self.book.draws.find(place)
            if held is not None:
                self._open.discard(place)  # an earlier asker may have run all of it
                check_same(held.terms, terms, self.book.lowered.get(place))
                return Reservation(place, charged, again=True)
            check_open(self._store, place, number)
            admit(self._store, refusal(self.book, number, charged, run), place, number)
            self._store.append(Reserved, round=round, stage=stage, draw=draw, terms=terms)
            self._open.add(place)
            return Reservation(place, charged, again=False)

    def resume(self, reservation: Reservation) -> None:
        """Take a reservation as this object's that the same process made while it had the ledger open before.

        Args:
            reservation: As `reserve` gave it, and as nobody has asked for it since.
        """
        with self._lock:
            if not reservation.again:
                self._open.add(reservation.draw)

    def settle(self, reservation: Reservation, steps: int) -> int:
        """Say how many of the reserved steps ran: the charge is lowered to them, once and never raised.

        What an earlier process, or an earlier asker for the same draw, may have run stays charged: a crash
        refunds nothing. Nor does settling after the stage was sealed.

        Args:
            reservation: As `reserve` gave it.
            steps: That ran.

        Returns:
            The steps that stay charged.

        Raises:
            InternalError: More steps ran than were reserved, or nothing was.
            StorageError: It cannot be recorded.
        """
        with self._lock:
            self._store.check()
            place, book = reservation.draw, self.book
            left = book.steps_left(place)
            if steps_of(reservation.mechanism) is None:
                return left
            if not 0 <= steps <= left:
                raise InternalError(
                    "settling can only lower what was reserved", found=steps, expected=f"0 to {left} steps"
                )
            if steps == left or place not in self._open or place[:3] in book.seals:
                return left
            run, round, stage, draw = place
            self._store.append(Settled, run=run, round=round, stage=stage, draw=draw, steps=steps)
            self._open.discard(place)
            return steps

    def seal(self, *, run: str, round: int, stage: int, digest: str) -> None:
        """Fix the contribution of a stage, before its first byte may leave.

        From here on the same bytes may be sent again, and no others; no further draw is let through.

        Args:
            run: Id of the run.
            round: Which.
            stage: Which.
            digest: SHA-256 of the contribution, in hex. The ledger keeps it and shows it to auditors.

        Raises:
            PolicyError: Another contribution is sealed, or this site does not join the run again.
            InternalError: Nothing was reserved for this stage.
            StorageError: It cannot be made durable: nothing may leave.
        """
        with self._lock:
            self._store.check()
            place = (run, round, stage)
            held = self.book.seals.get(place)
            if held == digest:
                return
            if held is not None:
                record(self._store, "sealed", (*place, f"contribution {digest[:16]}"), None, None)
                raise PolicyError(
                    f"round {round}, stage {stage} of this run has a contribution already",
                    found=f"{digest[:12]}…", expected=f"{held[:12]}…",
                    remedy="send the sealed one again; a second one would cost privacy that nobody charged",
                )  # fmt: skip
            check_run(self.book, run, self.book.plans.get(run, ""))
            released = any(t.released for (_, name), t in self.book.runs.items() if name == run)
            drawn = self.book.is_drawn(place) or self.book.is_drawn((run, WHOLE, 0))
            if not released and not drawn:
                raise InternalError(
                    "a contribution is sealed for which nothing was reserved", found=f"round {round}"
                )
            self._store.append(Sealed, run=run, round=round, stage=stage, digest=digest)

    def sealed(self, *, run: str, round: int, stage: int) -> str | None:
        """Digest of a stage's contribution; None where it has none."""
        return self.book.seals.get((run, round, stage))

    def release_without_privacy(self, source: Source, *, run: str, plan: str, happened: bool = False) -> None:
        """Record that a run without differential privacy gets these units: their ε is infinite from now on.

        Args:
            source: Whose units.
            run: Id of the run.
            plan: Digest of its plan, in hex.
            happened: Before there was a ledger: no policy is asked.

        Raises:
            BudgetError: There is a cap, and the policy does not allow it; the refusal is on record.
            PolicyError: The run has another plan, or this site does not join it again.
            StorageError: It cannot be made durable: nothing may be done on its account.
        """
        with self._lock:
            release(self._store, source_number(self.book, source), run, plan, happened=happened)

    def epsilon(self, source: Source, *, run: str | None = None, delta: float | None = None) -> Epsilon:
        """What the worst-off patient behind a source has lost at this site: in all, or in one run.

        Infinite where she was, or may have been, in a run without privacy. See `charging.spent` for what the
        figure holds for.

        Args:
            source: Whose patients.
            run: The one run; None: all there is.
            delta: Of the figure; None: the policy's.

        Raises:
            PolicyError: δ ≥ 1/units, where a mixture is in it.
        """
        with self._lock:
            return spent(self.book, self._classes(source), run, delta)

    def account(self, source: Source, *, run: str) -> Account:
        """Everything in one run that may have met a patient of a source: for a report on its schedule."""
        with self._lock:
            return met_in_run(self.book, self._classes(source), run).account()

    def amend(self, policy: BudgetPolicy, *, who: str, why: str) -> None:
        """Change the policy, in somebody's name. The order of the cap stays as it was chosen.

        Raises:
            ConfigError: Nobody, or no reason, is named; or the new cap has no room at this ledger's order.
            PolicyError: δ ≥ 1/units.
            StorageError: It cannot be recorded.
        """
        with self._lock:
            amend(self._store, policy, who, why)

    def head(self) -> Head:
        """How far the ledger has come, for the site's own eyes."""
        with self._lock:
            return self._store.head

    def blinded_head(self, consortium: str) -> bytes:
        """The head as the peers of a consortium keep it: `BLINDED_BYTES`, others each time."""
        with self._lock:
            return self._store.head.blinded(self._store.keys.head_key(consortium))

    def seen_head(self, blinded: bytes, consortium: str) -> Head:
        """What a peer kept, as the head that it is.

        Raises:
            PeerError: This ledger never showed it to this consortium.
        """
        return Head.seen(blinded, self._store.keys.head_key(consortium))

    def require_head(self, heads: Iterable[Head]) -> None:
        """Refuse to go on where others have seen more of this ledger than it has.

        Raises:
            RolledBackError: They have; every later call is refused as well, and so is whoever opens it, until
                the rows are replayed or the cap is written off (`repair.py`).
        """
        with self._lock:
            self._store.require(heads)

    @property
    def book(self) -> Book:
        """What the rows say: to read only."""
        return self._store.book

    def close(self) -> None:
        """Unlock."""
        with self._lock:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _classes(self, source: Source) -> list[int]:
        return self.book.population.classes_of(source_number(self.book, source))
