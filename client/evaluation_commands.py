"""`wardround site evaluate`: base, local and federated on the site's own rows, for the site's own people."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from wardround.client.accepted import RUNS, RunFolders
from wardround.client.membership.site_folder import open_site_folder
from wardround.client.site_settings import FILE, read_site_settings
from wardround.training.source_spec import named_source

if TYPE_CHECKING:
    from wardround.client.evaluating import Comparison
    from wardround.training.paired import Interval


def evaluate_run(
    folder: Path,
    run: str,
    *,
    rows: str | None,
    kind: str | None,
    initial: Path | None,
    alone: bool,
    as_json: bool,
) -> None:
    """Score what came of a run beside what the site would have had without it; nobody is asked for anything.

    Args:
        folder: Of the site.
        run: A run whose result was fetched.
        rows: File or folder of test rows; None: those that the site holds back.
        kind: Of `rows`, where the ending does not tell.
        initial: The plan's folder, where its initial adapter is not one that this machine can make.
        alone: Whether the site trains alone as well.
        as_json: Print JSON, and progress nowhere.

    Raises:
        WardroundError: As `kept_result` and `compare`.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # before anything that would ask a hub is imported
    from wardround.client.evaluating import compare, plain
    from wardround.client.fetching import kept_result

    site = open_site_folder(folder)
    fetched = kept_result(site, RunFolders(site.path / RUNS), run)
    settings = read_site_settings(site.path / FILE)
    found = compare(
        settings, fetched, site.name, test=None if rows is None else named_source(rows, kind),
        initial=initial, alone=alone, tell=(lambda _: None) if as_json else _say,
    )  # fmt: skip
    if as_json:
        about = {
            "run": run, "plan": fetched.plan.digest, "released_round": fetched.record.released_round,
            "own_adapter": fetched.own,
        }  # fmt: skip
        sys.stdout.write(json.dumps(about | plain(found), indent=2, allow_nan=False) + "\n")
        return
    Console().print(comparison_table(found))
    _say(
        f"{found.rows} rows of {found.units} units of this site. Nothing of this has left it; to pass a "
        "figure on is a release that no ledger counts."
    )


def comparison_table(found: Comparison) -> Table:
    """A line a metric, a column an adapter, and the gains of the federated one with their intervals."""
    table = Table("metric", "better")
    for name in (*found.scores, *(f"federated − {arm} (95 %)" for arm in found.gains)):
        table.add_column(name, justify="right")
    arms = list(found.scores)
    for metric, direction in found.scores[arms[-1]].directions.items():
        cells = [_number(found.scores[arm].values.get(metric)) for arm in arms]
        cells += [_gain(gains.get(metric)) for gains in found.gains.values()]
        table.add_row(metric, {"max": "higher", "min": "lower"}[direction], *cells)
    return table


def _gain(gain: Interval | None) -> str:
    if gain is None:
        return "–"
    if gain.low is None or gain.high is None:
        return f"{gain.difference:+.3f} (too few units)"
    return f"{gain.difference:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
