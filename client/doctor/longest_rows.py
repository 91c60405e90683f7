"""The longest batch that a plan allows, without a row of the site where the task reads texts."""

from __future__ import annotations

import math
from itertools import cycle, islice
from typing import Final

from wardround.client.local_data import read_rows
from wardround.client.site_settings import SiteSettings
from wardround.core.errors import TrainingError
from wardround.core.plan import TrainingPlan
from wardround.training.made_up import made_up
from wardround.training.site_rows import encode_rows
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench

MOST_DOUBLINGS: Final = 4
"""Of the made-up text, where a tokenizer makes one token of several words."""


def batch_rows(plan: TrainingPlan) -> int:
    """Rows of the largest batch that is to be expected.

    Without privacy the logical batch. With it a batch is a Poisson draw of units, B on the mean: four
    standard deviations more, times the rows of a unit where the plan bounds them, else one.
    """
    batch, rules = plan.local.batch_size, plan.privacy
    if rules is None or not rules.trains_privately:
        return batch
    rows = (rules.most_examples or 1) if rules.unit == "patient" else 1
    return math.ceil(batch + 4 * math.sqrt(batch)) * rows


def longest_rows(
    plan: TrainingPlan, bench: Workbench, settings: SiteSettings, site: str
) -> tuple[list[Encoded], bool]:
    """Rows for one batch, each as long as the plan allows, and whether they are made up.

    Where the task reads something else than texts, the site's own longest ones stand in, again and again.

    Raises:
        TrainingError: The task makes nothing of a made-up text, and the site has no row that it could use.
        UnreadyError: As `read_rows`.
    """
    made, count = _made_up(plan, bench), batch_rows(plan)
    if made is not None:
        return [made] * count, True
    examples = read_rows(settings, plan, site).examples
    own = encode_rows(plan, bench, examples, site, lambda _: None)
    own = sorted((row for row in own if bench.task.targets(row) > 0), key=lambda row: -row.length)[:count]
    if not own:
        raise TrainingError("no_rows", "no row of this site has anything to learn from")
    return list(islice(cycle(own), count)), False


def _made_up(plan: TrainingPlan, bench: Workbench) -> Encoded | None:
    """A text of full length with something to learn from, encoded; None: the task reads no such text."""
    words = plan.data.max_length
    for _ in range(MOST_DOUBLINGS):
        row = made_up(bench, plan.task, "a " * words)
        if row is None:
            return None
        if row.length >= plan.data.max_length:
            return row
        words *= 2
    return None
