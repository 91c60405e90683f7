"""What the arms of a run scored, side by side: computed once, for terminal, summary, card and picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from wardround.core.metrics.contract import Scores
from wardround.simulations.arm_names import CENTRALISED, FEDERATED

LOCAL = "local/"
"""Before a site's name: the arm in which it trains alone."""
BEFORE = "before training"
"""The initial adapter on the base model: what every arm begins with."""
EVERYBODY = "test"
"""The part of the test rows that scores every arm."""
OWN_ROWS = "own"
"""Every site's own adapter on that site's own test rows, summed: of a run that leaves each one of its own."""

SUPPORT_UNITS = {
    ("classification", None): "rows",
    ("language", None): "tokens",
    ("language", "bits_per_byte"): "bytes",
    ("language", "exact_match"): "answers",
    ("language", "rouge_l"): "answers",
}
"""(Metric family, metric; None: its other metrics) → what the support counts."""

K = TypeVar("K")


def local_site(arm: str) -> str | None:
    """The site that trains alone in an arm; None in the other arms."""
    return arm.removeprefix(LOCAL) if arm.startswith(LOCAL) else None


def part_of(site: str) -> str:
    """Name of a site's own test rows."""
    return f"{EVERYBODY}/{site}"


def site_of(part: str) -> str | None:
    """The site whose own test rows a part is, or None."""
    return part.removeprefix(part_of("")) if part.startswith(part_of("")) else None


def support_unit(family: str, metric: str) -> str:
    """What stands behind a metric; empty where the family is not one of ours."""
    return SUPPORT_UNITS.get((family, metric), SUPPORT_UNITS.get((family, None), ""))


def mean_where_all(runs: Collection[Mapping[K, float]]) -> dict[K, float]:
    """Plain mean over runs, at the keys that all of them have, in the order of the first."""
    first = next(iter(runs), None)
    shared = [key for key in first or () if all(key in run for run in runs)]
    return {key: sum(run[key] for run in runs) / len(runs) for key in shared}


def compare(
    arms: Mapping[str, Mapping[str, Scores]], before: Mapping[str, Scores]
) -> dict[str, dict[str, float]]:
    """How it was trained → metrics on everybody's test rows.

    Args:
        arms: Arm → part → scores of its released adapter.
        before: Part → scores of the initial adapter.

    Returns:
        Before training, federated, the mean over the local-only runs (whose name says so) and centralised, as
        far as they were scored.
    """
    found = {arm: parts[EVERYBODY].values for arm, parts in arms.items() if EVERYBODY in parts}
    local = [values for arm, values in found.items() if local_site(arm) is not None]
    lines = {
        BEFORE: before[EVERYBODY].values if EVERYBODY in before else {},
        FEDERATED: found.get(FEDERATED, {}),
        f"local-only, mean of {len(local)} sites": mean_where_all(local),
        CENTRALISED: found.get(CENTRALISED, {}),
    }
    return {name: dict(values) for name, values in lines.items() if values}
