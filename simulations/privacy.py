"""Privacy of a simulated site: a ledger of its own, and randomness from the seed tree.

Batches and noise can be repeated here, so that a run can: they protect nobody, and every output says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wardround.client.ledger import BudgetPolicy, Ledger
from wardround.client.private import SitePrivacy, site_privacy
from wardround.core.plan import TrainingPlan
from wardround.core.seeds import Purpose
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

    @contextmanager
    def ledger() -> Iterator[Ledger]:
        path = folder / "ledger"
        if path.exists():
            opened = Ledger.open(path)
        else:
            planned = None if privacy is None else privacy.cost.account(plan.rounds.rounds)
            policy = BudgetPolicy(epsilon=granted(plan, cap), delta=plan.privacy.delta)
            opened = Ledger.create(path, policy, units=len(set(units)), planned=planned)
        with opened:
            yield opened

    privacy = site_privacy(plan, units, ledger, sources, simulation=True)
    return privacy


def granted(plan: TrainingPlan, cap: float | None) -> float | None:
    """ε of the site's policy.

    Protecting rows says nothing of a patient with several, whom the ledger charges: there is no cap for it
    but one that somebody wrote.
    """
    rules = plan.privacy
    if cap is not None or rules is None or rules.unit == "example" or rules.epsilon is None:
        return cap
    return rules.epsilon * _SLACK
