"""The longest batch that a plan allows, without a row of the site where the task reads texts."""

from __future__ import annotations

import math
from itertools import cycle, islice
from typing import Any, Final

from wardround.client.local_data import read_rows
from wardround.client.site_settings import SiteSettings
from wardround.core.errors import TrainingError, WardroundError
from wardround.core.plan import TrainingPlan
from wardround.training.column_mapping import LABEL
from wardround.training.examples import Example
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
    roles = [
        role for role, needed in bench.task.required_roles(plan.task).items() if needed and role != LABEL
    ]
    words = plan.data.max_length
    for _ in range(MOST_DOUBLINGS):
        example = Example(0, _values(roles, "a " * words), label=0 if plan.data.labels else None)
        try:
            if bench.task.fault(example, plan.task) is not None:
                return None
            (row,) = bench.task.encode([example], bench.tokenizer, bench.data, plan.task)
        except (WardroundError, ValueError, TypeError, KeyError, AttributeError):
            return None  # something else than texts
        if bench.task.targets(row) > 0 and row.length >= plan.data.max_length:
            found: Encoded = row
            return found
        words *= 2
    return None


def _values(roles: list[str], long: str) -> dict[str, Any]:
    """The last role is the answer, in the text formats' own order: it gets the length, hence the loss."""
    values: dict[str, Any] = dict.fromkeys(roles, "a")
    if roles:
        values[roles[-1]] = long
    if "messages" in values:
        values["messages"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": long}]
    return values
