"""Privacy of a simulated site: a ledger of its own, and randomness from the seed tree.

Batches and noise can be repeated here, so that a run can: they protect nobody, and every output says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.private import SitePrivacy
from wardround.core.plan import TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.seeds import Purpose
from wardround.privacy.accounting.of_plan import round_cost
from wardround.privacy.noise.source import RandomSource, RepeatableSource

_SLACK: Final = 1 + 1e-6
"""Of a cap that is the plan's own target: float64 must not refuse the last round."""


def simulated_privacy(
    plan: TrainingPlan, site: str, units: Sequence[str], folder: Path, cap: float | None
) -> SitePrivacy | None:
    """A simulated site's side of the plan's privacy; None where sites train without noise of their own.

    Args:
        plan: What is trained.
        site: Its name.
        units: The patient of each training row.
        folder: What the site keeps; its ledger lies in `ledger/`.
        cap: ε that the site grants its patients; None: what the plan asks for.

    Raises:
        ConfigError: The plan asks for larger batches than the site has units.
        PolicyError: δ ≥ 1 / units.
    """

    def sources(purpose: Purpose, round: int) -> RandomSource:
        return RepeatableSource(plan.seed, purpose, round=round, site=site)

    rules, patients = plan.privacy, len(set(units))
    cost = round_cost(plan, len(units) if rules and rules.unit == "example" else patients)
    if rules is None or cost is None:
        return None
    policy = BudgetPolicy(epsilon=granted(rules, cap), delta=rules.delta)
    path = folder / "ledger"

    @contextmanager
    def ledger() -> Iterator[Ledger]:
        planned = cost.account(plan.rounds.rounds)
        opened = (
            Ledger.open(path)
            if path.exists()
            else Ledger.create(path, policy, units=patients, planned=planned)
        )
        with opened:
            yield opened

    return SitePrivacy(rules, cost, units, float(plan.local.batch_size), ledger, sources, simulation=True)


def granted(rules: PrivacyRules, cap: float | None) -> float | None:
    """ε of the site's policy.

    Protecting rows says nothing of a patient with several, whom the ledger charges: there is no cap for it
    but one that somebody wrote.
    """
    if cap is not None or rules.unit == "example" or rules.epsilon is None:
        return cap
    return rules.epsilon * _SLACK
