"""`wardround demo`: four real hospitals, federated against local-only and centralised, merged and asked."""

from __future__ import annotations

import csv
import json
import shutil
from importlib import resources
from pathlib import Path

from hydra import compose, initialize_config_module
from rich.console import Console
from rich.table import Table

from wardround.simulations.after_run import evaluate_rows, merge_run, open_model, predict_rows
from wardround.simulations.command import run_composed
from wardround.simulations.simulate import SimulationResult
from wardround.training.source_spec import SourceSpec


def run_demo(output: Path, seed: int) -> SimulationResult:
    """Run the demo and print what federation bought; everything lies in `output` afterwards.

    Raises:
        ModelError: The base model's weights are not the ones that the demo was made with.
    """
    console = Console()
    console.print(
        "[bold]Four hospitals, one model.[/bold] 735 heart-disease records stay where they are: "
        "adapters travel."
    )
    if former_demo(output):
        shutil.rmtree(output)
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = compose("config", overrides=["experiment=demo", f"seed={seed}", f"output={output}"])
    result = run_composed(composed, console=console)
    console.print(hospital_table(result))
    merge_run(output)
    ask(output, console)
    console.print(
        f"Look at [bold]{output}/curves.png[/bold], [bold]{output}/README.md[/bold] "
        f"and [bold]{output}/merged[/bold]."
    )
    return result


def former_demo(folder: Path) -> bool:
    """Whether a folder holds an earlier run of the demo, which may go; anything else stays."""
    try:
        return bool(json.loads((folder / "plan.json").read_text(encoding="utf-8"))["name"] == "demo")
    except (OSError, ValueError, KeyError):
        return False


def hospital_table(result: SimulationResult) -> Table:
    """Accuracy a hospital, alone and together, on its own test patients and on those of all hospitals."""
    table = Table(
        title="What federation buys: accuracy of each hospital's model, trained alone and together",
        title_justify="left",
    )
    table.add_column("hospital")
    for column in ("patients", "own, alone", "own, federated", "all, alone", "all, federated"):
        table.add_column(column, justify="right")
    together = result.federated.test
    for site, rows in result.federated.arm.sites.items():
        alone, own = result.bounds[f"local/{site}"].test, f"test/{site}"
        table.add_row(
            site,
            str(len(rows.training) + len(rows.validation)),
            *(f"{scores.values['accuracy']:.3f}" for scores in (alone[own], together[own], alone["test"])),
            f"[bold]{together['test'].values['accuracy']:.3f}[/bold]",
        )
    return table


def ask(run: Path, console: Console) -> None:
    """Ask the merged model about the first test patient of each hospital, then about all of them."""
    package = resources.files("wardround.simulations.demo").joinpath("heart.csv")
    merged = open_model(run / "merged")
    with resources.as_file(package) as path:
        with path.open(encoding="utf-8") as file:
            tested = [row for row in csv.DictReader(file) if row["split"] == "test"]
        patients = {row["site"]: row for row in reversed(tested)}
        ids = [patients[site]["id"] for site in sorted(patients)]
        answers = predict_rows(merged, SourceSpec(path=str(path), where={"id": ids}))
        scored = evaluate_rows(merged, SourceSpec(path=str(path), where={"split": "test"}))
    table = Table(title="The merged model, asked about a test patient of each hospital", title_justify="left")
    for column in ("patient", "probability of disease", "in the record"):
        table.add_column(column, justify="right" if column.startswith("prob") else "left")
    for patient, answer in zip((patients[site] for site in sorted(patients)), answers, strict=True):
        truth = "disease" if patient["label"] == "1" else "no disease"
        table.add_row(patient["id"], f"{answer['probabilities']['1']:.2f}", truth)
    console.print(table)
    console.print(f"On all {len(tested)} test patients: accuracy {scored.values['accuracy']:.3f}.")
