"""Compares a federated result with what a site would have had without it, on the site's own rows.

Three adapters on one base model: the one that training starts from (*base*), the one that the site trains
alone with the plan's recipe (*local*), and the released one, or the site's own where the run gave each site
one (*federated*). Nothing of it leaves the site, and nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from wardround.client.data_binding import present_columns
from wardround.client.fetching import Fetched
from wardround.client.local_data import open_bench, read_rows
from wardround.client.site_settings import SiteSettings
from wardround.core.errors import DataError, TrainingError
from wardround.core.metrics.contract import Scores
from wardround.core.packed import Adapter
from wardround.core.plan import TrainingPlan
from wardround.runtime.plan_folder import read_initial
from wardround.training.alone import Alone, train_alone
from wardround.training.examples import Example, parts_of, read_examples
from wardround.training.paired import Counted, Interval, count, differences, grouped
from wardround.training.site_rows import SiteRows, bounded_site, encode_rows, encode_site
from wardround.training.source_spec import SourceSpec
from wardround.training.tasks import TASKS
from wardround.training.workbench import Workbench

BASE: Final = "base"
LOCAL: Final = "local"
FEDERATED: Final = "federated"
OWN_NOTE: Final = (
    "federated: this site's own adapter, what the sites share with the part that never left here; it is not "
    "any other site's, and for rows of others it was not made"
)


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        scores: `base`, `local` (where the site trained alone) and `federated` → scores.
        gains: `base` and `local` → metric → federated minus that, with its interval.
        rows: Test rows.
        units: Units (patients, as a rule) that they are of.
        rounds: Rounds that the site trained alone, and the one that was taken; None where it did not.
        notes: What a reader has to know, in sentences.
    """

    scores: dict[str, Scores]
    gains: dict[str, dict[str, Interval]]
    rows: int
    units: int
    rounds: tuple[int, int] | None
    notes: tuple[str, ...] = field(default=())


def compare(
    settings: SiteSettings,
    fetched: Fetched,
    site: str,
    *,
    test: SourceSpec | None,
    initial: Path | None,
    alone: bool,
    tell: Callable[[str], None],
) -> Comparison:
    """Score the three adapters on the site's held-back rows, or on rows of a file.

    Args:
        settings: Of the site: base model, rows, machine.
        fetched: The checked result of a run.
        site: Its name: which rows it holds back follows from it.
        test: Rows to score on; None: those that the site holds back.
        initial: Folder of the plan, whose initial adapter this machine cannot make; None where it can.
        alone: Whether the site trains alone as well.
        tell: Takes what happens, a sentence each.

    Raises:
        UnreadyError: Base model or rows are not as the plan needs them.
        DataError: There are no rows to score on.
        StorageError: `initial` holds no adapter, and ConfigError or PeerError: another one.
    """
    plan, notes = fetched.plan.plan, _Notes(tell)
    examples = read_rows(settings, plan, site).examples
    bench = open_bench(settings, plan)
    rows = bounded_site(plan, site, encode_site(plan, bench, site, examples, notes.add))
    training, held = parts_of(plan, site, examples)
    if test is None:
        asked = [examples[place] for place in held]
        notes.add(_chosen_by(plan, own=fetched.own))
    else:
        asked = _read(test, settings, plan)
        notes.add(_seen_before(asked, [examples[place] for place in training], plan))
    if not asked:
        raise DataError(
            "there are no rows to score on", found="no row is held back" if test is None else "no usable row",
            expected="at least one", remedy="name a file of them with --rows",
        )  # fmt: skip
    # Packed rows share a sequence: scored apart, each counts for its own unit.
    apart = plan.model_copy(update={"data": plan.data.model_copy(update={"packing": False})})
    encoded = encode_rows(apart, bench, asked, "test rows", notes.add)
    groups = grouped(plan, [example.unit for example in asked])
    start = _start(bench, plan, initial, notes)
    counted = {BASE: count(bench, plan, start, encoded, groups)}
    trained = _alone(bench, plan, rows, site, start, fetched, notes) if alone else None
    if trained is not None:
        counted[LOCAL] = count(bench, plan, trained.adapter, encoded, groups)
    if fetched.own:
        notes.add(OWN_NOTE)
    counted[FEDERATED] = count(bench, plan, fetched.adapter, encoded, groups)
    return Comparison(
        {name: found.scores for name, found in counted.items()},
        _gains(counted),
        len(asked),
        len({example.unit for example in asked}),
        None if trained is None else (trained.rounds, trained.round),
        tuple(notes.kept),
    )


@dataclass
class _Notes:
    """Sentences, each told once."""

    tell: Callable[[str], None]
    kept: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        if text and text not in self.kept:
            self.kept.append(text)
            self.tell(text)


def _gains(counted: dict[str, Counted]) -> dict[str, dict[str, Interval]]:
    ours = counted[FEDERATED]
    return {name: dict(differences(ours, found)) for name, found in counted.items() if name != FEDERATED}


def _alone(
    bench: Workbench,
    plan: TrainingPlan,
    rows: SiteRows,
    site: str,
    start: Adapter,
    fetched: Fetched,
    notes: _Notes,
) -> Alone | None:
    if plan.privacy is not None:
        notes.add(
            "trained alone without the plan's privacy, which is for what leaves: that adapter stays in this "
            "process, is not kept, and is charged to nobody"
        )
    sites = max(1, len(fetched.record.sites))

    def told(round: int, rounds: int) -> None:
        notes.tell(f"trains alone: round {round} of {rounds}")

    try:
        return train_alone(bench, plan, rows, site, start, sites=sites, tell=told)
    except TrainingError as error:
        notes.add(f"trained alone it came to nothing ({error.code}): {error.what}")
        return None


def _start(bench: Workbench, plan: TrainingPlan, initial: Path | None, notes: _Notes) -> Adapter:
    """The adapter that the federation started from, or the nearest thing that this machine can make."""
    if initial is not None:
        start = read_initial(initial, plan)
    else:
        start = bench.initial_adapter()
        if start.digest != plan.adapter.initial_digest:
            notes.add(
                "base and local start from an adapter that this machine made, which is not the plan's "
                "initial one: name the plan's folder with --initial to start from that"
            )
    heads = bench.base.missing_heads
    notes.add(
        f"base: before any training; its head ({', '.join(heads)}) is untrained, and knows nothing yet"
        if heads
        else "base: before any training; the adapter changes nothing yet"
    )
    return start


def _chosen_by(plan: TrainingPlan, *, own: bool) -> str:
    if own:
        return (
            "test rows: those that this site holds back; the local round was chosen by "
            f"{plan.release.metric} on such rows, so that it looks a little better than on new ones"
        )
    return (
        "test rows: those that this site holds back; the released round and the local one were chosen by "
        f"{plan.release.metric} on such rows, so that both look a little better than on new ones"
    )


def _read(test: SourceSpec, settings: SiteSettings, plan: TrainingPlan) -> list[Example]:
    """Rows to score on, under the plan's names or the site's own; no row has to name its unit."""
    task, present = TASKS.get(plan.task.name), present_columns(test)
    return list(
        read_examples(
            test, plan.data, task.required_roles(plan.task), units=False, name_labels=False,
            fault=lambda example: task.fault(example, plan.task),
            renamed={name: local for name, local in settings.columns.items() if local in present},
        ).examples
    )  # fmt: skip


def _seen_before(asked: Sequence[Example], training: Sequence[Example], plan: TrainingPlan) -> str:
    """A sentence where test rows, or their patients, are among those that were trained on."""
    known = {_content(example) for example in training}
    equal = sum(_content(example) in known for example in asked)
    units = {example.unit for example in training} if plan.data.unit_column is not None else set()
    shared = len(units & {example.unit for example in asked})
    parts = [f"{equal} of {len(asked)} test rows equal one that was trained on"] if equal else []
    parts += [f"{shared} units have rows in both"] if shared else []
    return "; ".join(parts) + (": the scores are too good" if parts else "")


def _content(example: Example) -> str:
    return json.dumps([example.roles, example.label], sort_keys=True, default=repr)


def plain(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON has it."""
    metrics = {
        name: {
            "better": found.scores[FEDERATED].directions[name],
            "support": found.scores[FEDERATED].support[name],
            **{arm: scores.values.get(name) for arm, scores in found.scores.items()},
            "federated_minus": {
                arm: vars(gains[name]) for arm, gains in found.gains.items() if name in gains
            },
        }
        for name in found.scores[FEDERATED].values
    }
    rounds = dict(zip(("trained", "taken"), found.rounds, strict=True)) if found.rounds else None
    return {
        "rows": found.rows, "units": found.units, "metrics": metrics, "local_rounds": rounds,
        "notes": list(found.notes),
    }  # fmt: skip
