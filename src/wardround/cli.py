"""The command line: a thin, lazy table of commands. Heavy rooms are imported when their command runs."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from wardround.cli_consortium import consortium_app
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
ledger_app = typer.Typer(help="A site's privacy ledger: look, check, repair.", no_args_is_help=True)
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


LEDGER = Annotated[Path, typer.Argument(help="Folder of the ledger.")]
WHO = Annotated[str, typer.Option(help="The person who signs for this; on record.")]
WHY = Annotated[str, typer.Option(help="Why, in a sentence; on record.")]
MIRROR = Annotated[Optional[Path], typer.Option(help="Folder of the ledger's mirror.")]  # noqa: UP045 - typer reads Optional
EPSILON = Annotated[
    float | None, typer.Option(help="No patient's account goes beyond it; without it there is no cap.")
]
ALLOW_RELEASE = Annotated[
    bool | None, typer.Option(help="Let patients into runs without differential privacy.")
]
ALLOW_AFTER = Annotated[bool | None, typer.Option(help="Let them into private runs after such a run.")]


@ledger_app.command("create")
def ledger_create(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    delta: Annotated[float, typer.Option(help="δ of every ε; well below 1/units.")],
    units: Annotated[int, typer.Option(help="How many patients the site has.")],
    epsilon: EPSILON = None,
    allow_release: ALLOW_RELEASE = None,
    allow_after_release: ALLOW_AFTER = None,
    mirror: MIRROR = None,
) -> None:
    """Make a site's ledger, once, with its keys and its policy."""
    from wardround.client.ledger.commands import create_ledger

    policy = {"epsilon": epsilon, "delta": delta}
    allowed = {"allow_release": bool(allow_release), "allow_after_release": bool(allow_after_release)}
    create_ledger(folder, policy | allowed, units, mirror)


@ledger_app.command("show")
def ledger_show(
    folder: LEDGER,
    last: Annotated[int, typer.Option(min=0, help="So many reservations, from the end.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what was charged: by reservation, by run and in all, the cap and what is left of it."""
    from wardround.client.ledger.commands import show_ledger

    show_ledger(folder, last=last, as_json=as_json)


@ledger_app.command("verify")
def ledger_verify(
    path: Annotated[Path, typer.Argument(help="Folder of a ledger, or the file of an export.")],
    key: Annotated[Optional[str], typer.Option(help="The site's public key, as it is known.")] = None,  # noqa: UP045 - as above
    mirror: MIRROR = None,
) -> None:
    """Check every row's chain and signature, the lists of units, the keys and the mirror."""
    from wardround.client.ledger.commands import verify_ledger

    verify_ledger(path, key=key, mirror=mirror)


@ledger_app.command("export")
def ledger_export(
    folder: LEDGER, file: Annotated[Path, typer.Argument(help="File to write; a new one.")]
) -> None:
    """Write the rows for whoever is to check them; nothing in them tells who a patient is."""
    from wardround.client.ledger.commands import export_ledger

    export_ledger(folder, file)


@ledger_app.command("amend")
def ledger_amend(
    folder: LEDGER,
    who: WHO,
    why: WHY,
    epsilon: EPSILON = None,
    delta: Annotated[Optional[float], typer.Option(help="δ of every ε.")] = None,  # noqa: UP045 - as above
    allow_release: ALLOW_RELEASE = None,
    allow_after_release: ALLOW_AFTER = None,
    mirror: MIRROR = None,
) -> None:
    """Change the policy; what is not named stays."""
    from wardround.client.ledger.commands import amend_policy

    policy = {
        "epsilon": epsilon, "delta": delta, "allow_release": allow_release,
        "allow_after_release": allow_after_release,
    }  # fmt: skip
    amend_policy(folder, policy, who, why, mirror)


@ledger_app.command("declare")
def ledger_declare(
    folder: LEDGER,
    source: Annotated[str, typer.Argument(help="Name of the source.")],
    who: WHO,
    why: WHY,
    mirror: MIRROR = None,
) -> None:
    """Sign that the patients who are new with a source are nobody whom the ledger knew."""
    from wardround.client.ledger.commands import declare_source

    declare_source(folder, source, who, why, mirror)


@ledger_app.command("replay")
def ledger_replay(
    folder: LEDGER,
    source: Annotated[Path, typer.Argument(help="Folder of the mirror, or of another copy.")],
) -> None:
    """Append the rows that another copy has and a restored ledger lacks."""
    from wardround.client.ledger.commands import replay_rows

    replay_rows(folder, source)


@ledger_app.command("mend")
def ledger_mend(folder: LEDGER, who: WHO, why: WHY, mirror: MIRROR = None) -> None:
    """Cut off a last line that a kill or a power cut tore."""
    from wardround.client.ledger.commands import mend_ledger

    mend_ledger(folder, who, why, mirror)


@ledger_app.command("write-off")
def ledger_write_off(
    folder: LEDGER,
    who: WHO,
    why: WHY,
    run: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads Optional
        typer.Option(help="A run that the lost rows may have been about; once for each."),
    ] = None,
    mirror: MIRROR = None,
) -> None:
    """Charge the whole cap for rows that are lost for good."""
    from wardround.client.ledger.commands import write_cap_off

    write_cap_off(folder, who, why, run or [], mirror)


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
)  # fmt: skip
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
