"""Whether one charge more fits under the cap, and what has been spent.

The cap is enforced by a Rényi filter at one order, fixed beforehand (`privacy/accounting/cap.py`), over the
worst world of every class of units that the charge may meet (`population.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import ValidationError

from wardround.client.ledger.book import Book
from wardround.client.ledger.rows import Unit, Why
from wardround.core.checked import invalid
from wardround.core.errors import BudgetError
from wardround.core.packed import Array
from wardround.privacy.accounting.account import Epsilon
from wardround.privacy.accounting.cap import Cap
from wardround.privacy.accounting.mechanisms import (
    BandedGaussian,
    BoundedMixture,
    Gaussian,
    Mechanism,
    NoPrivacy,
    SampledDiscreteGaussians,
    SampledGaussian,
)
from wardround.privacy.accounting.renyi import best_epsilon, epsilon_at
from wardround.privacy.accounting.steps import steps_of
from wardround.privacy.accounting.tally import Tally


@dataclass(frozen=True)
class Refusal:
    """Why a charge is not let through.

    Attributes:
        reason: For the record.
        error: What the caller is told.
        reached: ε that it would have come to; None where that is infinite or unknown.
    """

    reason: Why
    error: BudgetError
    reached: float | None = None


def for_patient(mechanism: Mechanism, unit: Unit, most_examples: int | None) -> Mechanism:
    """What a mechanism on examples is to the patient who owns at most K of them.

    Args:
        mechanism: As it runs; its σ is over the clip norm of one contribution.
        unit: What one contribution is of.
        most_examples: K, where it is of an example; None where nothing bounds K, which is no privacy.

    Raises:
        ConfigError: K is no number that can be charged.
    """
    if unit == "patient" or isinstance(mechanism, BoundedMixture | NoPrivacy):
        return mechanism
    if most_examples is None:
        return NoPrivacy()
    try:
        match mechanism:
            case SampledGaussian(sample_rate=q, sigma=sigma, steps=steps):
                return BoundedMixture(sample_rate=q, sigma=sigma, most_examples=most_examples, steps=steps)
            case Gaussian(sigma=sigma, count=count):
                return BoundedMixture(sample_rate=1.0, sigma=sigma, most_examples=most_examples, steps=count)
            case BandedGaussian():  # whatever blocks they are in, K of them move it by K times as much
                whole = mechanism.whole.sigma
                return BoundedMixture(sample_rate=1.0, sigma=whole, most_examples=most_examples)
            case SampledDiscreteGaussians():  # nobody has worked out what K of them do
                return NoPrivacy()
    except ValidationError as error:
        raise invalid("bound on a patient's examples", error) from error


def refusal(book: Book, source: int, mechanism: Mechanism, run: str) -> Refusal | None:
    """Why a charge to every unit of a source is refused; None where it is let through."""
    cap = book.cap
    if cap is None:
        return None
    hits = book.worlds.hits
    met = np.flatnonzero(hits[:, source])
    released = np.array([tally.released for tally in book.totals])
    step = steps_of(mechanism)
    if step is None:
        return None if book.policy.allow_release else _no_privacy(cap)
    if (book.unknown or hits[met][:, released].any()) and not book.policy.allow_after_release:
        return _released(cap)
    mixed = np.array([tally.needs_losses for tally in book.totals])
    if step[0].most_examples > 1 or hits[met][:, mixed].any():
        return _refused_by_losses(book, cap, np.unique(hits[met], axis=0), mechanism, run)
    charges = np.array([0.0 if tally.needs_losses else tally.rdp_at(cap.order) for tally in book.totals])
    before = float(book.worlds.spent(charges[:, None], met).max()) + book.floor
    charges[source] += step[1] * step[0].rdp_at(cap.order)
    after = float(book.worlds.spent(charges[:, None], met).max()) + book.floor
    try:
        cap.check(before, after)
    except BudgetError as error:
        return Refusal("cap", error, _finite(cap.reached(after)))
    return None


def _refused_by_losses(book: Book, cap: Cap, worlds: Array, mechanism: Mechanism, run: str) -> Refusal | None:
    """Why a charge is refused where mixtures are in the account, which no filter takes.

    They are let through where everything that may have met the patient is one run's, whose plan fixed it
    beforehand: then losses compose, and any part of the plan costs less than it.
    """
    reached = 0.0
    for world in worlds:
        met = [number for number in np.flatnonzero(world).tolist() if book.totals[number].steps]
        if book.floor or any(
            book.totals[number].steps != book.runs.get((number, run), Tally()).steps for number in met
        ):
            error = BudgetError(
                "nothing bounds these units' account from here on",
                found="a bounded mixture beside what another run was charged",
                expected="a mixture alone, in one run whose plan fixed it beforehand",
                remedy="clip once per patient: such runs add up under the cap",
            )  # fmt: skip
            return Refusal("cap", error)
        tally = Tally.total(Tally(book.totals[number].steps) for number in met)
        tally.add(mechanism)
        reached = max(reached, _by_losses(tally, book, book.policy.delta))
    if reached <= cap.epsilon:
        return None
    error = BudgetError(
        "the privacy budget would be overdrawn", found=f"ε = {reached:.4g} with this mechanism",
        expected=f"at most ε = {cap.epsilon:g} at δ = {cap.delta:g} per patient",
        remedy="fewer steps, more noise, a smaller sample rate or fewer examples of one patient",
    )  # fmt: skip
    return Refusal("cap", error, _finite(reached))


def spent(book: Book, classes: Sequence[int], run: str | None = None, delta: float | None = None) -> Epsilon:
    """ε of the worst-off patient behind these classes; in one run only, or in all there is.

    In all there is: at the cap's order where there is one, which holds whatever was chosen and after
    whatever was seen; else at the best order, which holds for what was fixed beforehand. In one run: at the
    best order, since its plan fixed it. By losses where a mixture may have met the patient. At the δ that is
    given; None: the policy's.
    """
    delta = book.policy.delta if delta is None else delta
    tallies = book.totals if run is None else book.run_tallies(run)
    hits = book.worlds.hits
    chosen = np.flatnonzero(np.isin(book.worlds.owner, classes))
    if (run is None and book.unknown) or hits[chosen][:, [tally.released for tally in tallies]].any():
        return Epsilon(math.inf, delta, "patient", "renyi")
    mixed = np.logical_or.reduce(hits[:, [tally.needs_losses for tally in tallies]], axis=1)
    values = [0.0]
    for world in np.unique(hits[chosen[mixed[chosen]]], axis=0):
        parts = [tally for number, tally in enumerate(tallies) if world[number]]
        values.append(_by_losses(Tally.total(parts), book, delta))
    accountant: Literal["losses", "renyi"] = "losses" if len(values) > 1 else "renyi"
    plain = chosen[~mixed[chosen]]
    if len(plain):
        values.append(_by_renyi(book, tallies, plain, delta, fixed=run is not None))
    return Epsilon(max(values), delta, "patient", accountant)


def reported(book: Book, classes: Sequence[int], run: str) -> Epsilon:
    """ε of one run as a report may say it: the smaller of what is reserved and of what losses come to.

    For the worst-off patient behind these classes. It holds where the run's plan fixed its schedule.
    """
    reserved, tallies, hits = spent(book, classes, run), book.run_tallies(run), book.worlds.hits
    if reserved.accountant == "losses" or not 0 < reserved.value < math.inf:
        return reserved
    worlds = np.unique(hits[np.isin(book.worlds.owner, classes)], axis=0)
    met = [Tally.total(tally for number, tally in enumerate(tallies) if world[number]) for world in worlds]
    # What is part of another one costs no more than that.
    whole = [tally for tally in met if not any(tally.steps < other.steps for other in met)]
    losses = max(_by_losses(tally, book, reserved.delta) for tally in whole)
    return Epsilon(losses, reserved.delta, "patient", "losses") if losses < reserved.value else reserved


def room(book: Book) -> float | None:
    """ε at the cap's order that is left to the site's worst-off patient, of what noise bounds.

    None without a cap; 0 where something in the ledger has no Rényi bound.
    """
    cap = book.cap
    if cap is None:
        return None
    if any(tally.needs_losses for tally in book.totals):
        return 0.0
    charges = np.array([[tally.rdp_at(cap.order)] for tally in book.totals]).reshape(-1, 1)
    most = float(book.worlds.spent(charges).max(initial=0.0)) + book.floor
    return max(0.0, cap.budget - most)


def met_in_run(book: Book, classes: Sequence[int], run: str) -> Tally:
    """Everything in one run that may have met a patient of these classes."""
    hits = book.worlds.hits[np.isin(book.worlds.owner, classes)]
    tallies = book.run_tallies(run)
    return Tally.total(tallies[number] for number in np.flatnonzero(hits.any(axis=0)).tolist())


def _by_renyi(book: Book, tallies: Sequence[Tally], worlds: Array, delta: float, *, fixed: bool) -> float:
    if book.order is not None and not fixed:
        at = [[0.0 if tally.needs_losses else tally.rdp_at(book.order)] for tally in tallies]
        most = float(book.worlds.spent(np.array(at), worlds).max())
        return epsilon_at(book.order, most + book.floor, delta)
    vectors = np.array([(Tally() if tally.needs_losses else tally).rdp() for tally in tallies])
    found = np.unique(book.worlds.spent(vectors, worlds), axis=0)
    return max(best_epsilon(rdp, delta)[0] for rdp in found)


def _by_losses(tally: Tally, book: Book, delta: float) -> float:
    return tally.account().fixed_schedule_epsilon(delta, units=book.units).value


def _no_privacy(cap: Cap) -> Refusal:
    error = BudgetError(
        "a run without differential privacy would end the cap on its units", found="ε = infinity",
        expected=f"at most ε = {cap.epsilon:g} at δ = {cap.delta:g} per patient",
        remedy="run with privacy, or set allow_release in the site's policy: these units then have no bound "
        "any more; where examples are clipped apart, bound how many of them a patient has",
    )  # fmt: skip
    return Refusal("no_privacy", error)


def _released(cap: Cap) -> Refusal:
    error = BudgetError(
        "these units were in a run without differential privacy, or in rows that were lost without a cap: "
        "nothing bounds their account",
        found="ε = infinity", expected=f"at most ε = {cap.epsilon:g} at δ = {cap.delta:g} per patient",
        remedy="leave them out, or set allow_after_release in the site's policy: the cap then bounds what "
        "private runs add",
    )  # fmt: skip
    return Refusal("released", error)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
