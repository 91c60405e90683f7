"""Privacy of a simulated site: a ledger of its own, and randomness from the seed tree.

Batches and noise can be repeated here, so that a run can: they protect nobody, and every output says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wardround.client.ledger import Ledger
from wardround.client.private import SitePrivacy, site_privacy
from wardround.core.plan import TrainingPlan
from wardround.core.seeds import Purpose
from wardround.privacy.noise.source import RandomSource, RepeatableSource


def simulated_privacy(
    plan: TrainingPlan, site: str, units: Sequence[str], folder: Path
) -> SitePrivacy | None:
    """A simulated site's side of the plan's privacy; None where sites train without noise of their own.

    Args:
        plan: What is trained.
        site: Its name.
        units: The unit of each training row.
        folder: What the site keeps; its ledger lies in `ledger/`.

    Raises:
        ConfigError: The plan asks for larger batches than the site has units.
        PolicyError: δ ≥ 1 / units.
    """

    def sources(purpose: Purpose, round: int) -> RandomSource:
        return RepeatableSource(plan.seed, purpose, round=round, site=site)

    def ledger() -> Iterator[Ledger]:
        raise NotImplementedError

    return site_privacy(plan, units, contextmanager(ledger), sources, simulation=True)
