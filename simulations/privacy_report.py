"""What an arm cost the units of its sites, once it has ended: as it was reserved, and by privacy losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wardround.client.ledger.book import Book
from wardround.client.ledger.reading import look
from wardround.core.plan import TrainingPlan, cohort_size
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.of_plan import RoundCost, round_cost, sigma_of_sums
from wardround.privacy.accounting.steps import counted
from wardround.privacy.accounting.tally import Tally
from wardround.privacy.sums.noise import account_of_sums
from wardround.runtime.events import PrivacyReported
from wardround.server.outcome import Outcome
from wardround.simulations.arms import Arm, bounded, run_of
from wardround.simulations.site_work import units_of
from wardround.training.plan_strategy import bind_strategy

MOST_SCHEDULES: Final = 32
"""Different schedules whose losses are composed, about a second each; of other sites' what was reserved."""


@dataclass(frozen=True)
class SiteAccount:
    """What was done to each unit of a site, and with what.

    Attributes:
        units: How many there are.
        sample_rate: q.
        sigma: σ, over what one unit can change.
        account: Everything that was done to one.
        steps: Planned ones, where all of them are one mechanism; None: those that are in the account.
    """

    units: int
    sample_rate: float
    sigma: float
    account: Account
    steps: int | None = None


def privacy_report(arm: Arm, outcome: Outcome, run_id: str, folder: Path) -> PrivacyReported | None:
    """Units, q, σ, steps and both bounds on ε at every site of an arm; None without differential privacy.

    Where the run stopped early, of all rounds that were planned: where to stop was chosen by looking at what
    had come out, and only the schedule that the plan fixed has an ε by losses, or at the best Rényi order.

    Args:
        arm: As it was given to `run_arms`.
        outcome: How it ended.
        run_id: Of the simulation.
        folder: Of the arm; each site's ledger lies there.

    Raises:
        StorageError: A ledger was altered.
    """
    rules, plan = arm.plan.privacy, arm.plan
    if rules is None:
        return None
    whole = outcome.reason == "early_stop"
    rounds = plan.rounds.rounds if whole else outcome.last.round
    found: dict[str, SiteAccount] = {}
    for site, rows in bounded(arm).sites.items():
        cost = round_cost(plan, units_of(plan, rows))
        if cost is None or (whole and rules.noise == "distributed"):
            account = _of_sums(plan, len(arm.sites), rounds)
        elif whole:
            account = cost.account(rounds)
        else:
            account = _charged(folder / "sites" / site / "ledger", cost, run_of(run_id, arm))
        if cost is None:
            found[site] = SiteAccount(len(arm.sites), 1.0, sigma_of_sums(rules, plan.rounds.rounds), account)
        else:
            steps = cost.banded.steps if cost.banded and account.mechanisms else None
            found[site] = SiteAccount(cost.units, cost.sample_rate, cost.sigma, account, steps)
    return PrivacyReported(
        arm.name, outcome.last.round, rounds, rules.unit, rules.delta, figures_of(found, rules.delta)
    )


def figures_of(
    accounts: Mapping[str, SiteAccount], delta: float, most: int = MOST_SCHEDULES
) -> dict[str, dict[str, float]]:
    """Site → the figures of `PrivacyReported`.

    Args:
        accounts: By site.
        delta: δ.
        most: So many different schedules are composed by losses, those with most reserved first.
    """
    reserved = {site: of.account.epsilon(delta, units=of.units).value for site, of in accounts.items()}
    composed: dict[Account, float] = {}
    for site in sorted(accounts, key=lambda site: -reserved[site]):
        of = accounts[site]
        if of.account not in composed and len(composed) < most:
            composed[of.account] = of.account.reported_epsilon(delta, units=of.units).value
    return {
        site: {
            "units": float(of.units),
            "sample_rate": of.sample_rate,
            "sigma": of.sigma,
            "steps": float(of.steps or sum(counted(of.account.mechanisms).values())),
            "reserved": reserved[site],
            "spent": composed.get(of.account, reserved[site]),
        }
        for site, of in accounts.items()
    }


def _charged(ledger: Path, cost: RoundCost, run: str) -> Account:
    """What the site's ledger has of a run; where single rows are protected, their own account."""
    if not ledger.exists():  # never asked
        return cost.account(0)
    book, _ = look(ledger)
    return cost.account(_reservations(book, run)) if cost.unit == "example" else _of_patient(book, run)


def _of_patient(book: Book, run: str) -> Account:
    return Tally.total(
        tally for tally in book.run_tallies(run) if tally.steps
    ).account()  # of whom it protects


def _reservations(book: Book, run: str) -> int:
    return sum(len(charges) for (name, _, _), charges in book.draws.everything() if name == run)


def _of_sums(plan: TrainingPlan, sites: int, rounds: int) -> Account:
    size = bind_strategy(plan, allow_dotted=True).statistics_layout(0).size
    cohort = cohort_size(plan.rounds, sites)
    return account_of_sums(plan, cohort=cohort, coordinates=size, rounds=rounds)
