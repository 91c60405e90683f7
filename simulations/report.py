"""What a finished run tells people: the table on the terminal, the per-site file, curves and model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from wardround.core.metrics.contract import Scores
from wardround.core.plan import TrainingPlan
from wardround.runtime.files import write_atomic
from wardround.runtime.results import write_site_table
from wardround.simulations.config import RunConfig
from wardround.simulations.rows import Rows
from wardround.training.workbench import Workbench

if TYPE_CHECKING:
    from wardround.simulations.simulate import ArmResult, SimulationResult


def site_rows(rows: Rows, results: Mapping[str, ArmResult]) -> list[dict[str, Any]]:
    """One record a site: rows, and each arm's released adapter on its own test rows and everybody's."""
    records = []
    for site, examples in rows.sites.items():
        record: dict[str, Any] = {
            "site": site,
            "rows": len(examples),
            "test_rows": len(rows.site_tests.get(site, [])),
        }
        for arm, result in results.items():
            if arm.startswith("local/") and arm != f"local/{site}":
                continue
            label = "local_only" if arm.startswith("local/") else arm
            for part, name in ((f"test/{site}", "own"), ("test", "all")):
                for metric, value in result.test.get(part, _NOTHING).values.items():
                    record[f"{label}.{name}.{metric}"] = value
        records.append(record)
    return records


_NOTHING = Scores({}, {}, {})


def headline(result: SimulationResult) -> list[tuple[str, dict[str, float]]]:
    """Arm → metrics on everybody's test rows; local-only as the mean over sites, said so in its name."""
    lines = [("federated", result.federated.test.get("test", _NOTHING).values)]
    local = [
        bound.test.get("test", _NOTHING).values
        for name, bound in result.bounds.items()
        if name.startswith("local/")
    ]
    if local:
        names = [name for name in local[0] if all(name in values for values in local)]
        lines.append(
            (
                f"local-only, mean of {len(local)}",
                {name: sum(v[name] for v in local) / len(local) for name in names},
            )
        )
    if "centralised" in result.bounds:
        lines.append(("centralised", result.bounds["centralised"].test.get("test", _NOTHING).values))
    return lines


def print_result(result: SimulationResult, console: Console) -> None:
    """The closing tables of a run."""
    lines = headline(result)
    metrics = list(lines[0][1])
    if metrics:
        support = result.federated.test["test"].support
        table = Table(
            title=f"Everybody's test rows (n = {max(support.values(), default=0)})", title_justify="left"
        )
        table.add_column("trained")
        for metric in metrics:
            table.add_column(metric, justify="right")
        for name, values in lines:
            table.add_row(name, *(f"{values[metric]:.3f}" if metric in values else "–" for metric in metrics))
        console.print(table)
    outcome = result.federated.outcome
    console.print(
        f"released: round {outcome.released_round} of {outcome.last.round}, "
        f"adapter {outcome.released.digest[:12]}, in [bold]{result.folder}[/bold]"
    )


def write_report(
    folder: Path,
    config: RunConfig,
    plan: TrainingPlan,
    rows: Rows,
    bench: Workbench,
    results: Mapping[str, ArmResult],
    summary: Mapping[str, Any],
) -> None:
    """Write `sites.csv`, `curves.png` and the model card `README.md`."""
    from wardround.simulations.model_card import card_of
    from wardround.simulations.plots import plot_run

    write_site_table(folder / "sites.csv", site_rows(rows, results))
    plot_run(folder / "metrics.jsonl", folder / "curves.png", metric=plan.release.metric)
    samples = sample_answers(config, plan, rows, bench, results["federated"])
    write_atomic(folder / "README.md", card_of(plan, summary, samples).encode())


def sample_answers(
    config: RunConfig, plan: TrainingPlan, rows: Rows, bench: Workbench, result: ArmResult
) -> list[dict[str, Any]]:
    """A few answers of the released adapter to test rows."""
    chosen = rows.test[: config.evaluation.samples]
    if not chosen:
        return []
    bench.load_adapter(result.outcome.released)
    return bench.task.predict(
        bench.model,
        bench.tokenizer,
        chosen,
        plan.data,
        plan.task,
        batch_size=bench.machine.evaluation_batch_size,
        device=bench.device,
    )
