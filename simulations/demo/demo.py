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
    merge_run(output, None, None, None)
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
    """Accuracy a hospital: alone and together, on its own test patients and on everybody's."""
    table = Table(title="What federation buys: accuracy on test patients", title_justify="left")
    for column, justify in (
        ("hospital", "left"),
        ("patients", "right"),
        ("own: alone", "right"),
        ("own: federated", "right"),
        ("everybody's: alone", "right"),
        ("everybody's: federated", "right"),
    ):
        table.add_column(column, justify="right" if justify == "right" else "left")
    everybody = result.federated.test["test"].values["accuracy"]
    for site, rows in result.federated.arm.sites.items():
        alone, together = result.bounds[f"local/{site}"].test, result.federated.test
        part = f"test/{site}"
        table.add_row(
            site,
            str(len(rows.training) + len(rows.validation)),
            f"{alone[part].values['accuracy']:.3f}",
            f"{together[part].values['accuracy']:.3f}",
            f"{alone['test'].values['accuracy']:.3f}",
            f"[bold]{everybody:.3f}[/bold]",
        )
    return table


def ask(run: Path, console: Console) -> None:
    """Ask the merged model about one test patient."""
    table = resources.files("wardround.simulations.demo").joinpath("heart.csv")
    with resources.as_file(table) as path, path.open(encoding="utf-8") as file:
        patient = next(row for row in csv.DictReader(file) if row["split"] == "test")
        merged = open_model(run / "merged")
        source = SourceSpec(path=str(path), where={"id": patient["id"]})
        answer = predict_rows(merged, source)[0]
        scored = evaluate_rows(merged, SourceSpec(path=str(path), where={"split": "test"}))
    truth = "disease" if patient["label"] == "1" else "no disease"
    console.print(f"The merged model on test patient [bold]{patient['id']}[/bold] ({truth} in the record):")
    console.print_json(data=answer)
    console.print(f"The merged model on all test patients: accuracy {scored.values['accuracy']:.3f}.")
