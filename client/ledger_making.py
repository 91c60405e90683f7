"""`wardround ledger create`: a site's ledger, with what the site had accepted before there was one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wardround.client.earlier_runs import Earlier, earlier_runs, sites_of
from wardround.client.ledger.commands import create_ledger
from wardround.client.ledger_place import note_ledger


def make_ledger(
    folder: Path,
    policy: dict[str, Any],
    units: int,
    mirror: Path | None,
    *,
    sites: Sequence[Path] = (),
    earlier: bool = True,
) -> None:
    """Make a ledger, enter the earlier runs of its sites, and note in their folders that there is one.

    Args:
        folder: To make.
        policy: Fields of a `BudgetPolicy`.
        units: How many patients the hospital has.
        mirror: Its second place, if there is one.
        sites: Folders of its sites; none: the one in whose folder it is to lie.
        earlier: Enter what they accepted before.

    Raises:
        ConfigError: The policy is none, or its cap has no room; or the rows of an earlier run cannot be read.
        PolicyError: δ ≥ 1/units.
        StorageError: A folder is no site's, holds something, or cannot be written.
    """
    known = sites_of(folder, sites)
    found = earlier_runs(folder, known) if earlier else Earlier((), ())
    create_ledger(folder, policy, units, mirror, found.enter)
    for site in known:
        note_ledger(site.path)
    for line in _told(found, earlier=earlier, anywhere=bool(known)):
        sys.stdout.write(line + "\n")


def _told(found: Earlier, *, earlier: bool, anywhere: bool) -> list[str]:
    told = [
        f"run {run.run} was accepted here before, without differential privacy for {len(run.released)} of "
        f"the {len(run.units)} patients of its rows as they are now: their ε is infinite"
        for run in found.runs
    ]
    if found.private:
        told.append(
            f"{', '.join(found.private)} trained privately here, and another ledger was charged for that: "
            "put it back in place of this one, or write its cap off here (wardround ledger write-off)"
        )
    if not earlier:
        told.append(
            "Nothing is entered of what was accepted before: this ledger grants those patients a budget"
        )
    elif anywhere:
        told.append(
            "Not entered, since nothing here knows of it: runs whose folders in runs/ are gone, and rows "
            "that are no longer in the source"
        )
    else:
        told.append(
            "No site was named, and the folder is in none: nothing is entered of what was accepted before "
            "(--site FOLDER)"
        )
    return told
