"""Privacy of a simulated site: a ledger of its own, and randomness from the seed tree.

Batches and noise can be repeated here, so that a run can: they protect nobody, and every output says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from wardround.client.charges import LedgerCharges
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.noise_file import NoiseFile
from wardround.client.private import SitePrivacy, held_back_refused, released_apart
from wardround.core.plan import TrainingPlan, cohort_size
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.seeds import Purpose
from wardround.privacy.accounting.of_plan import round_cost, sigma_of_sums
from wardround.privacy.clip_norm import vector_sigma
from wardround.privacy.noise.source import RandomSource, RepeatableSource
from wardround.training.site_rows import SiteRows

_SLACK: Final = 1 + 1e-6
"""Of a cap that is the plan's own target: float64 must not refuse the last round."""


def simulated_privacy(
    plan: TrainingPlan, site: str, rows: SiteRows, folder: Path, cap: float | None, run_id: str = ""
) -> SitePrivacy | None:
    """A simulated site's side of the plan's privacy; None where sites train without noise of their own.

    Args:
        plan: What is trained.
        site: Its name.
        rows: Of the site. Whom it holds back stands in its ledger as released, before anybody is charged.
        folder: What the site keeps; its ledger lies in `ledger/`.
        cap: ε that the site grants its patients, and as at a hospital nobody may be held back under it; None:
            what the plan asks for, whoever it holds back.
        run_id: Of the arm, under which those stand there.

    Raises:
        BudgetError: The plan holds patients back under a cap that somebody wrote.
        ConfigError: The plan asks for larger batches than the site has units.
        PolicyError: δ ≥ 1 / units.
    """

    def sources(purpose: Purpose, round: int) -> RandomSource:
        return RepeatableSource(plan.seed, purpose, round=round, site=site)

    rules, units, patients = plan.privacy, rows.units, len(set(rows.units))
    cost = round_cost(plan, len(units) if rules and rules.unit == "example" else patients)
    if rules is None or cost is None:
        return None
    if cap is not None and rows.held_back:
        raise held_back_refused(f"at most ε = {cap:g} at δ = {rules.delta:g} per patient")
    policy = BudgetPolicy(epsilon=granted(rules, cap), delta=rules.delta, allow_release=cap is None)
    path = folder / "ledger"
    said: list[str] = []

    @contextmanager
    def ledger() -> Iterator[Ledger]:
        planned = cost.account(plan.rounds.rounds)
        opened = (
            Ledger.open(path)
            if path.exists()
            else Ledger.create(path, policy, units=patients, planned=planned)
        )
        with opened:
            if rows.held_back and not said:
                own = LedgerCharges(lambda: nullcontext(opened))
                released_apart(plan, run_id, rows.everybody, rows.held_back, own)
                said.append(run_id)
            yield opened

    return SitePrivacy(
        rules, cost, units, float(plan.local.batch_size), LedgerCharges(ledger), sources, simulation=True,
        noise=NoiseFile.plain(folder),
    )  # fmt: skip


def granted(rules: PrivacyRules, cap: float | None) -> float | None:
    """ε of the site's policy.

    Protecting rows says nothing of a patient with several, whom the ledger charges: there is no cap for it
    but one that somebody wrote.
    """
    if cap is not None or rules.unit == "example" or rules.epsilon is None:
        return cap
    return rules.epsilon * _SLACK


def drowned(plan: TrainingPlan, units: Mapping[str, int]) -> str | None:
    """A notice where the noise of a sum is longer than anything that could be under it; None elsewhere.

    Args:
        plan: What is trained.
        units: Site → its units.
    """
    rules = plan.privacy
    if rules is None or rules.noise == "local":
        return None
    sigma, size = sigma_of_sums(rules, plan.rounds.rounds), plan.adapter.layout.size
    if rules.adapts_to_sites:  # the count takes a part of it
        sigma = vector_sigma(sigma, rules.adaptive.count_noise)
    if rules.unit == "site":
        most, what = cohort_size(plan.rounds, len(units)), "sites"
    else:
        most, what = round((rules.sample_rate or 1.0) * sum(units.values())), "patients a round"
    length = sigma * math.sqrt(size)
    if length <= most:
        return None
    return (
        f"the noise drowns this run: σ = {sigma:.3g} on {size:,} coordinates is as long as {length:,.0f} "
        f"clipped updates that all agree, and there are {most:,} {what}: train fewer parameters, or grant "
        "a larger ε"
    )


def uncounted(plan: TrainingPlan, sites: int) -> str | None:
    """A notice where the noise on the count of unclipped sites is more than all of them could say together.

    Args:
        plan: What is trained.
        sites: Of the run.
    """
    rules = plan.privacy
    if rules is None or not rules.adapts_to_sites:
        return None
    cohort, noise = cohort_size(plan.rounds, sites), rules.adaptive.count_noise
    if noise <= cohort / 2:
        return None
    step = math.exp(rules.adaptive.rate * noise / cohort)
    return (
        f"the clip norm follows the noise of its count: privacy.adaptive.count_noise={noise:g} is more than "
        f"{cohort} sites can say, and moves it by a factor of about {step:.3g} a round: clip to a fixed "
        "norm, or set less of it (above half of sigma) or a smaller privacy.adaptive.rate"
    )
