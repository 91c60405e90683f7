"""Rows that are nobody's: a text that this program wrote, read by the plan's task as any other row."""

from __future__ import annotations

from typing import Any

from wardround.core.errors import WardroundError
from wardround.core.plan import TaskSpec
from wardround.training.column_mapping import LABEL
from wardround.training.examples import Example
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench


def made_up(bench: Workbench, spec: TaskSpec, text: str, *, label: int = 0) -> Encoded | None:
    """One row with this text; None: the task makes nothing of it, since it reads something else than texts.

    Args:
        bench: Task, its processor, the data contract.
        spec: The plan's.
        text: What the answer, or else the last role, consists of.
        label: Number of a label, where the plan has some.
    """
    labels = bench.data.labels
    try:
        roles = [role for role, needed in bench.task.required_roles(spec).items() if needed and role != LABEL]
        example = Example(0, _values(roles, text), label=label % len(labels) if labels else None)
        if bench.task.fault(example, spec) is not None:
            return None
        (row,) = bench.task.encode([example], bench.tokenizer, bench.data, spec)
        found: Encoded = row
        return found if bench.task.targets(found) > 0 else None
    except (WardroundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _values(roles: list[str], text: str) -> dict[str, Any]:
    """The last role is the answer, in the text formats' own order: it gets the text, hence the loss."""
    values: dict[str, Any] = dict.fromkeys(roles, "a")
    if roles:
        values[roles[-1]] = text
    if "messages" in values:
        values["messages"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
    return values
