"""A site under a private plan, over what a test's folder holds of its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from wardround.client.charges import LedgerCharges
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.noise_file import NoiseFile
from wardround.client.private import SitePrivacy
from wardround.core.plan import StrategySpec
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.seeds import Purpose
from wardround.privacy.accounting.of_plan import round_cost
from wardround.privacy.noise.source import RandomSource, RepeatableSource, SystemSource
from wardround.simulations.consortium import Consortium

RULES = PrivacyRules(unit="patient", epsilon=4.0, delta=1e-2)
UNITS = ["ann", "ann", "bob", "cyd", "dan", "dan"]


def system(purpose: Purpose, round: int) -> RandomSource:
    """What a real site draws from."""
    return SystemSource(f"{purpose} {round}")


def seeded(purpose: Purpose, round: int) -> RandomSource:
    """What a simulated one draws from."""
    return RepeatableSource(5, purpose, round=round, site="ward")


def private_server(
    plain: Any,
    folder: Path,
    sources: Any = system,
    *,
    simulation: bool = False,
    cap: float = 4.1,
    rules: PrivacyRules = RULES,
) -> Any:
    """The server's side of a private site, which keeps its ledger in `folder`.

    Args:
        plain: The same site without privacy.
        folder: Where the ledger is, or is made.
        sources: What the site draws from.
        simulation: Says "not private".
        cap: ε that the ledger grants.
        rules: The plan's.
    """
    site = plain.site
    plan = site.plan.model_copy(
        update={
            "privacy": rules,
            "strategy": StrategySpec(weighting="uniform"),
            "data": site.plan.data.model_copy(update={"unit_column": "patient"}),
        }
    )
    cost = round_cost(plan, 4)
    assert cost is not None

    @contextmanager
    def ledger() -> Iterator[Ledger]:
        path = folder / "ledger"
        policy = BudgetPolicy(epsilon=cap, delta=1e-2)
        planned = cost.account(3)
        opened = Ledger.open(path) if path.exists() else Ledger.create(path, policy, units=4, planned=planned)
        with opened:
            yield opened

    privacy = SitePrivacy(
        rules, cost, UNITS, 2.0, LedgerCharges(ledger), sources, simulation=simulation,
        noise=NoiseFile.plain(folder),
    )  # fmt: skip
    consortium = Consortium.of(plain.wards, plain.consortium.policy)
    parties = consortium.parties("ward", plan, "run")
    folds = replace(site.folds, plan=plan)
    shown = None if simulation else ()
    fresh = replace(site, plan=plan, parties=parties, folds=folds, privacy=privacy, figures=shown)
    return replace(plain, site=fresh, consortium=consortium)
