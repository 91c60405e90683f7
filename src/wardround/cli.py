"""The command line: a thin, lazy table of commands. Heavy rooms are imported when their command runs."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from wardround.cli_consortium import consortium_app
from wardround.cli_ledger import ledger_app
from wardround.cli_plan import plan_app
from wardround.cli_run import run_app
from wardround.cli_server import server_app
from wardround.cli_site import site_app
from wardround.core.errors import ConfigError, WardroundError

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# PEFT imports bitsandbytes where it is installed, which then tells of optional kernels that are not.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

app = typer.Typer(
    name="wardround", help="Federated LoRA fine-tuning across sites that may not share a record.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
data_app = typer.Typer(help="Look at data before anything is trained.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(ledger_app, name="ledger")
audit_app = typer.Typer(help="Test what a finished run claims.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
app.add_typer(plan_app, name="plan")
app.add_typer(consortium_app, name="consortium")
app.add_typer(server_app, name="server")
app.add_typer(site_app, name="site")
app.add_typer(run_app, name="run")

MOVED_BASE = "Base model, where it lies elsewhere now."
HYDRA_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=HYDRA_ARGUMENTS)
def simulate(context: typer.Context) -> None:
    """Simulate a federation on this machine. Takes Hydra overrides: seed=1, -m, --cfg job, --help."""
    from wardround.simulations.command import main as hydra_main

    hydra_main(context.args)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Result folder.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Root of the seed tree.")] = 0,
) -> None:
    """Fine-tune across four real hospitals, compare with local-only and centralised, merge, ask the model."""
    from wardround.simulations.demo.demo import run_demo

    run_demo(output, seed)


@app.command()
def practice(
    folder: Annotated[Path, typer.Argument(help="Folder of the practice consortium; made where it is new.")],
    server: Annotated[bool, typer.Option("--server", help="Start its server as well.")] = False,
) -> None:
    """Start five practice sites on this machine, with keys, folders and processes as real ones have them."""
    _needs_torch()
    from wardround.simulations.practice.command import run_practice

    run_practice(folder, server=server)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make; gets a commented wardround.yaml.")],
) -> None:
    """Write a commented configuration for your own data and model."""
    from wardround.simulations.starter import write_starter

    write_starter(folder)


@data_app.command("check")
def data_check(
    source: Annotated[
        str, typer.Argument(help="File or folder: JSONL, JSON, CSV, Parquet (.gz), datasets folder.")
    ],
    kind: Annotated[Optional[str], typer.Option(help="Source kind, where the ending does not tell.")] = None,  # noqa: UP045 - typer reads Optional
    text: Annotated[
        str | None, typer.Option(help="Column with the text, for lengths and duplicates.")
    ] = None,
    label: Annotated[Optional[str], typer.Option(help="Column with the label.")] = None,  # noqa: UP045 - as above
    unit: Annotated[Optional[str], typer.Option(help="Column that names the patient.")] = None,  # noqa: UP045 - as above
    row_id: Annotated[
        str | None, typer.Option("--id", help="Column that names the row, for repeated ids.")
    ] = None,
    text_format: Annotated[
        Optional[str],  # noqa: UP045 - typer reads Optional
        typer.Option(
            "--format", help="As a language model reads: alpaca, messages, prompt_completion, text."
        ),
    ] = None,
    column: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Option(help="ROLE=COLUMN for the format, as data.columns; once for each role."),
    ] = None,
    template: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Option(help="Segment of a template that builds the text, such as '{age} years'; in order."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model folder or hub name whose tokenizer measures lengths.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens above which a row would be cut.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Read a source and say what is in it: rows, columns, labels, lengths, duplicates, broken rows."""
    from wardround.training.commands import check_data

    check_data(
        source,
        kind,
        text=text,
        label=label,
        unit=unit,
        row_id=row_id,
        tokenizer=tokenizer,
        max_length=max_length,
        as_json=as_json,
        columns=_pairs(column or []),
        text_format=text_format,
        template=template or [],
    )


def _pairs(settings: list[str]) -> dict[str, str]:
    """ROLE=COLUMN settings as a mapping."""
    from wardround.core.errors import ConfigError

    pairs = [setting.partition("=") for setting in settings]
    bad = [
        setting for setting, (role, _, column) in zip(settings, pairs, strict=True) if not (role and column)
    ]
    if bad:
        raise ConfigError(
            "--column does not name a role and a column", found=bad[0], expected="such as prompt=question"
        )
    return {role: column for role, _, column in pairs}


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    output: Annotated[Optional[Path], typer.Option(help="Folder to make; RUN/merged by default.")] = None,  # noqa: UP045 - typer reads Optional
    model: Annotated[Optional[str], typer.Option(help=MOVED_BASE)] = None,  # noqa: UP045 - as above
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference of logits, relative to their largest; by the base's dtype without it."
        ),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="Rows to ask both about, where the run's own have moved.")
    ] = None,
) -> None:
    """Merge the released adapter into its base model, and prove that both give the same logits."""
    _needs_torch()
    from wardround.simulations.after_run import merge_run
    from wardround.simulations.own_modules import own_modules

    own_modules()
    merge_run(run, output, model, tolerance, rows)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a run, of its adapter, or of a merged model.")],
    source: Annotated[str, typer.Argument(help="Rows to score.")],
    run: Annotated[
        Path | None, typer.Option(help="Run whose plan maps the rows, where MODEL lies outside it.")
    ] = None,
    base: Annotated[Optional[str], typer.Option("--model", help=MOVED_BASE)] = None,  # noqa: UP045 - as above
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score an adapter or a merged model on a file."""
    _needs_torch()
    from wardround.simulations.after_run import evaluate_file
    from wardround.simulations.own_modules import own_modules

    own_modules()
    evaluate_file(model, source, run, as_json=as_json, base=base)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a run, of its adapter, or of a merged model.")],
    source: Annotated[str, typer.Argument(help="Rows to answer.")],
    output: Annotated[Optional[Path], typer.Option(help="JSONL file to write; printed without it.")] = None,  # noqa: UP045 - typer reads Optional
    run: Annotated[
        Path | None, typer.Option(help="Run whose plan maps the rows, where MODEL lies outside it.")
    ] = None,
    base: Annotated[Optional[str], typer.Option("--model", help=MOVED_BASE)] = None,  # noqa: UP045 - as above
) -> None:
    """Answer rows with an adapter or a merged model."""
    _needs_torch()
    from wardround.simulations.after_run import predict_file
    from wardround.simulations.own_modules import own_modules

    own_modules()
    predict_file(model, source, output, run, base)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, or of a sweep.")],
    output: Annotated[Path, typer.Option(help="Folder for tables, picture and page.")] = Path("comparison"),
    metric: Annotated[Optional[str], typer.Option(help="Metric to put first and to draw.")] = None,  # noqa: UP045 - typer reads Optional
) -> None:
    """Compare finished runs: means over seeds with intervals, curves, one page that needs no other file."""
    from wardround.simulations.compare import compare_runs

    compare_runs(runs, output, metric)


TUNE_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=TUNE_ARGUMENTS)
def tune(
    context: typer.Context,
    trials: Annotated[int, typer.Option(min=1, help="Trials of the study in all.")] = 20,
    metric: Annotated[
        Optional[str],  # noqa: UP045 - typer reads Optional
        typer.Option(help="Validation metric that judges; release.metric without it."),
    ] = None,
    pruner: Annotated[
        Literal["median", "hyperband", "none"],
        typer.Option(help="Who ends bad trials early: median, hyperband or none."),
    ] = "median",
    output: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="Folder of the study; runs/NAME/tune without it. One that is there goes on."),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Score the test rows as well; they choose nothing.")
    ] = False,
) -> None:
    """Find good settings by an Optuna study: Hydra overrides, some with a distribution as value."""
    _needs_torch()
    from wardround.simulations.tuning.command import tune as run_study

    run_study(context.args, trials=trials, metric=metric, pruner=pruner, output=output, scores_test=test)


@audit_app.command("privacy")
def audit_privacy(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    designed: Annotated[
        Optional[str],  # noqa: UP045 - typer reads Optional
        typer.Option("--canaries", help="Beginning of the ids of rows that were planted to be found."),
    ] = None,
    model: Annotated[Optional[str], typer.Option(help=MOVED_BASE)] = None,  # noqa: UP045 - as above
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Test a run's differential privacy, and whether its adapter gives its training rows away."""
    from wardround.simulations.own_modules import own_modules
    from wardround.simulations.privacy_audit import audit_privacy as audit

    own_modules()
    if audit(run, as_json=as_json, designed=designed, model=model).passed is False:
        raise typer.Exit(1)


def _needs_torch() -> None:
    """Say that an extra is missing before anything is said about files; imports nothing.

    Raises:
        ModuleNotFoundError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


EXTRA_OF = dict.fromkeys(
    (
        "datasets", "huggingface_hub", "jinja2", "matplotlib", "peft", "pyarrow", "rouge_score",
        "tensorboardX", "tokenizers", "torch", "transformers",
    ),
    "simulation",
) | {"optuna": "tune"}  # fmt: skip
"""Module that the base install lacks → the extra that brings it."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: an error of ours is a message and an exit code, never a traceback."""
    try:
        app(arguments, standalone_mode=True)
    except WardroundError as error:
        sys.stderr.write(f"wardround: {error}\n")
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        missing = ConfigError(
            "this command needs more than the base install",
            found=f"no {error.name}",
            remedy=f"pip install 'wardround[{extra}]'",
        )
        sys.stderr.write(f"wardround: {missing}\n")
        raise SystemExit(missing.exit_code) from None


if __name__ == "__main__":
    main()
