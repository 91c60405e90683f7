"""What a finished run tells people: the table on the terminal, per-site file, samples, curves and card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from wardround.core.plan import TrainingPlan
from wardround.runtime.files import write_atomic
from wardround.runtime.results import write_site_table
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.comparison import EVERYBODY, local_site, part_of, support_unit
from wardround.simulations.config import RunConfig
from wardround.simulations.finished_run import own_folder
from wardround.simulations.privacy_record import BANDED, TUNING
from wardround.simulations.rows import Rows
from wardround.simulations.secure_costs import secure_text
from wardround.simulations.traffic import traffic_text
from wardround.simulations.virtual.record import virtual_text
from wardround.training.tasks.contract import Example, Task
from wardround.training.workbench import Workbench

if TYPE_CHECKING:
    from wardround.simulations.simulate import ArmResult, SimulationResult

LONGEST_TEXT = 600
"""Characters of a prompt, a reference or an answer that `samples.md` shows."""


def site_rows(rows: Rows, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record a site: rows, bytes of the run, each released adapter's scores on its own test rows and all.

    `summary` is what stands in `summary.json`; `before_training` is the initial adapter.
    """
    columns = {"before_training": summary["before_training"]}
    columns |= {arm: record["test"] for arm, record in summary["arms"].items()}
    records, moved = [], summary["traffic"]["sites"]
    took = summary.get("virtual", {}).get("sites", {})
    for site, examples in rows.sites.items():
        record: dict[str, Any] = {
            "site": site,
            "rows": len(examples),
            "test_rows": len(rows.site_tests.get(site, [])),
            **moved.get(site, {}),
            **{f"virtual_{name}": value for name, value in took.get(site, {}).items()},
        }
        for arm, parts in columns.items():
            alone = local_site(arm)
            if alone not in (None, site):
                continue
            label = arm if alone is None else "local_only"
            for part, name in ((part_of(site), "own"), (EVERYBODY, "all")):
                for metric, value in parts.get(part, {"values": {}})["values"].items():
                    record[f"{label}.{name}.{metric}"] = value
        records.append(record)
    return records


def print_result(result: SimulationResult, console: Console) -> None:
    """The closing tables of a run."""
    lines: dict[str, dict[str, float]] = result.summary["comparison"]
    if lines:
        console.print(_comparison(result, lines))
    private = result.summary["privacy"]
    if private["differential_privacy"] != "none":
        console.print(
            f"Differential privacy: {private['differential_privacy']} ({private['accounting']}). {TUNING} "
            "Not private as it was run: batches and noise came from the seed.",
            highlight=False,
        )
        if private["mechanism"] == "banded":
            console.print(f"Mechanism: {BANDED}.", highlight=False)
    console.print(secure_text(result.summary["secure"]), highlight=False)
    console.print(traffic_text(result.summary["traffic"]), highlight=False)
    if "virtual" in result.summary:
        text = virtual_text(result.summary["virtual"], result.federated.wall_s)
        console.print(text, highlight=False)
    outcome, own = result.federated.outcome, result.federated.own
    if own:
        console.print(
            f"each of {len(own)} sites has its own adapter, of round {outcome.last.round}, in "
            f"[bold]{result.folder}[/bold]: {own_folder('NAME')}"
        )
        return
    console.print(
        f"released: round {outcome.released_round} of {outcome.last.round}, "
        f"adapter {outcome.for_everybody.digest[:12]}, in [bold]{result.folder}[/bold]"
    )


def _comparison(result: SimulationResult, lines: Mapping[str, Mapping[str, float]]) -> Table:
    metrics = list(next(iter(lines.values())))
    support = result.federated.test[EVERYBODY].support
    rows = result.summary["test_rows"]["everybody"]
    table = Table(title=f"Everybody's test rows ({rows:,} rows)", title_justify="left")
    table.add_column("trained")
    for metric in metrics:
        table.add_column(metric, justify="right")
    for name, values in lines.items():
        table.add_row(name, *(f"{values[metric]:.3f}" if metric in values else "–" for metric in metrics))
    units = [support_unit(result.plan.task.metrics, metric) for metric in metrics]
    if set(units) != {"rows"}:  # otherwise the title has said it
        cells = [
            f"{support.get(metric, 0):,} {unit}".rstrip() for metric, unit in zip(metrics, units, strict=True)
        ]
        table.add_section()
        table.add_row("support", *cells)
    return table


def write_report(
    folder: Path,
    config: RunConfig,
    plan: TrainingPlan,
    rows: Rows,
    bench: Workbench,
    results: Mapping[str, ArmResult],
    summary: Mapping[str, Any],
) -> None:
    """Write `sites.csv`, `curves.png`, `samples.md` (where there are any) and the model card `README.md`."""
    from wardround.simulations.model_card import card_of
    from wardround.simulations.plots import plot_run

    write_site_table(folder / "sites.csv", site_rows(rows, summary))
    plot_run(folder / "metrics.jsonl", folder / "curves.png", metric=plan.release.metric)
    asked = rows.test[: config.evaluation.samples]
    answers = _without_ids(_answers_to(asked, plan, bench, results[FEDERATED]))
    if answers:
        texts = config.evaluation.sample_texts
        shown = [texts_of(example, plan, bench.task) for example in asked] if texts else [{}] * len(answers)
        write_atomic(folder / "samples.md", samples_page(answers, shown).encode())
    write_atomic(folder / "README.md", card_of(plan, summary, answers).encode())


def _answers_to(
    asked: Sequence[Example], plan: TrainingPlan, bench: Workbench, result: ArmResult
) -> list[dict[str, Any]]:
    """Answers of the released adapter, in order; none where each site has its own."""
    if not asked or result.own:  # of no site in particular
        return []
    bench.load_adapter(result.outcome.for_everybody)
    return bench.task.predict(
        bench.model,
        bench.tokenizer,
        asked,
        plan.data,
        plan.task,
        batch_size=bench.machine.evaluation_batch_size,
        device=bench.device,
    )


def _without_ids(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row's id may be a patient's: it stays out of every page."""
    return [{key: value for key, value in answer.items() if key != "id"} for answer in answers]


def texts_of(example: Example, plan: TrainingPlan, task: Task) -> dict[str, str]:
    """A row's `prompt` (what the task is asked with) and `reference` (its label or written answer)."""
    asked = task.required_roles(plan.task, predict=True)
    answer = [role for role in task.required_roles(plan.task) if role not in asked]
    reference = (
        plan.data.labels[example.label] if example.label is not None else _written(example.roles, answer)
    )
    return {"prompt": _written(example.roles, list(asked)), "reference": reference}


def _written(roles: Mapping[str, Any], wanted: Sequence[str]) -> str:
    values = [roles[role] for role in wanted if role in roles]
    return "\n".join(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for value in values
    )


def samples_page(answers: Sequence[Mapping[str, Any]], texts: Sequence[Mapping[str, str]]) -> str:
    """`samples.md`: the released adapter's answers, beside the rows' texts where these are given."""
    warning = (
        "**Holds texts of test rows: do not publish it with the model unless the rows are public.**"
        if any(texts)
        else "The rows' own texts are left out; `evaluation.sample_texts=true` shows them."
    )
    blocks = [_indented({**text, **answer}) for text, answer in zip(texts, answers, strict=True)]
    return f"# Sample answers\n\nTo the first test rows. {warning}\n\n" + "\n\n---\n\n".join(blocks) + "\n"


def _indented(entries: Mapping[str, Any]) -> str:
    """One line an entry, cut, as Markdown's code: what a row or a model says cannot become markup."""
    cut = {key: " ".join(str(value).split())[:LONGEST_TEXT] for key, value in entries.items()}
    return "\n".join(f"    {key}: {text}" for key, text in cut.items())
