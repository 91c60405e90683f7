"""`wardround demo`: four real hospitals, federated against local-only and centralised, merged and asked."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from wardround.core.errors import ConfigError
from wardround.runtime.events import Event
from wardround.runtime.files import write_atomic
from wardround.simulations.after_run import merge_run
from wardround.simulations.command import run_composed
from wardround.training.source_spec import SourceSpec

if TYPE_CHECKING:
    from wardround.simulations.simulate import SimulationResult

MARKER = ".wardround-demo"
"""File in the folders that the demo made, and may therefore replace."""


def run_demo(output: Path, seed: int) -> SimulationResult:
    """Run the demo and print what federation bought; everything lies in `output` afterwards.

    Raises:
        ConfigError: `output` holds something that the demo did not make.
        ModelError: The base model's weights are not the ones that the demo was made with.
    """
    console = Console()
    console.print(
        "[bold]Four hospitals, one model.[/bold] 735 heart-disease records stay where they are: "
        "adapters travel."
    )
    make_room(output)
    result = run_composed(composed_demo(output, seed), console=console, sinks=(Marks(output),))
    console.print(hospital_table(result))
    merge_run(output)
    ask(output, console)
    console.print(
        f"Look at [bold]{output}/curves.png[/bold], [bold]{output}/README.md[/bold] "
        f"and [bold]{output}/merged[/bold]."
    )
    return result


def composed_demo(output: Path, seed: int) -> DictConfig:
    """`experiment=demo`; its rows are public, so that samples may show them."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = compose("config", overrides=["experiment=demo", f"seed={seed}", f"output={output}"])
    composed.evaluation.sample_texts = True
    return composed


class Marks:
    """Marks the folder as the demo's with the run's first event, so that an interrupted demo is replaced."""

    def __init__(self, folder: Path) -> None:
        self._marker = folder / MARKER

    def emit(self, event: Event) -> None:
        """Write the marker where it is missing."""
        del event
        if not self._marker.exists():
            write_atomic(self._marker, b"Made by `wardround demo`, which may replace this folder.\n")

    def close(self) -> None:
        """Nothing is held."""


def make_room(folder: Path) -> None:
    """Remove what an earlier demo left; anything else stays, and the demo goes elsewhere.

    Raises:
        ConfigError: The folder holds something without the demo's marker.
    """
    if (folder / MARKER).is_file() or _nothing_but_begun(folder):
        shutil.rmtree(folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} holds something that the demo did not make", found=f"no {MARKER} in it",
            expected="a new folder, or one of an earlier demo",
            remedy=f"name another: wardround demo --output {folder}-2; or move that folder away",
        )  # fmt: skip


def _nothing_but_begun(folder: Path) -> bool:
    """Whether a demo was killed before its first event: its configuration is there, and no result."""
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        ours = values["name"] == "demo" and values["evaluation"]["sample_texts"] is True
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return False
    return ours and not (folder / "metrics.jsonl").exists()


def hospital_table(result: SimulationResult) -> Table:
    """Accuracy a hospital, alone and together, on its own test patients and on those of all hospitals."""
    from wardround.simulations.comparison import EVERYBODY, LOCAL, part_of

    table = Table(
        title="What federation buys: accuracy of each hospital's model, trained alone and together",
        title_justify="left",
    )
    table.add_column("hospital")
    for column in ("patients", "own, alone", "own, federated", "all, alone", "all, federated"):
        table.add_column(column, justify="right")
    together = result.federated.test
    for site, rows in result.federated.arm.sites.items():
        alone, own = result.bounds[LOCAL + site].test, part_of(site)
        table.add_row(
            site,
            str(len(rows.training) + len(rows.validation)),
            *(f"{scores.values['accuracy']:.3f}" for scores in (alone[own], together[own], alone[EVERYBODY])),
            f"[bold]{together[EVERYBODY].values['accuracy']:.3f}[/bold]",
        )
    return table


def ask(run: Path, console: Console) -> None:
    """Ask the merged model about the first test patient of each hospital, then about all of them."""
    from wardround.simulations.open_model import evaluate_rows, open_model, predict_rows

    package = resources.files("wardround.simulations.demo").joinpath("heart.csv")
    merged = open_model(run / "merged")
    with resources.as_file(package) as path:
        with path.open(encoding="utf-8") as file:
            tested = [row for row in csv.DictReader(file) if row["split"] == "test"]
        patients = {row["site"]: row for row in reversed(tested)}
        ids = [patients[site]["id"] for site in sorted(patients)]
        said = predict_rows(merged, SourceSpec(path=str(path), where={"id": ids}))
        scored = evaluate_rows(merged, SourceSpec(path=str(path), where={"split": "test"}))
    table = Table(title="The merged model, asked about a test patient of each hospital", title_justify="left")
    for column in ("patient", "probability of disease", "in the record"):
        table.add_column(column, justify="right" if column.startswith("prob") else "left")
    for patient, probability in asked(patients, said):
        truth = "disease" if patient["label"] == "1" else "no disease"
        table.add_row(patient["id"], f"{probability:.2f}", truth)
    console.print(table)
    console.print(f"On all {len(tested)} test patients: accuracy {scored.values['accuracy']:.3f}.")


def asked(
    patients: Mapping[str, Mapping[str, str]], answers: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, str], float]]:
    """Each site's patient, by site, with the probability of disease in the answer that bears its id."""
    found = {answer["id"]: float(answer["probabilities"]["1"]) for answer in answers}
    return [(patients[site], found[patients[site]["id"]]) for site in sorted(patients)]
