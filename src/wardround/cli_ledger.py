"""`wardround ledger`: a thin, lazy table of a privacy ledger's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

ledger_app = typer.Typer(help="A site's privacy ledger: look, check, repair.", no_args_is_help=True)

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
    site: Annotated[
        Optional[list[Path]],  # noqa: UP045 - as above
        typer.Option(
            help="Folder of a site whose ledger it is, where it does not lie in one; several times."
        ),
    ] = None,
    without_earlier: Annotated[
        bool, typer.Option("--without-earlier", help="Enter nothing of what the site accepted before.")
    ] = False,
) -> None:
    """Make a site's ledger, once, with its keys, its policy, and what the site accepted before."""
    from wardround.client.ledger_making import make_ledger

    policy = {"epsilon": epsilon, "delta": delta}
    allowed = {"allow_release": bool(allow_release), "allow_after_release": bool(allow_after_release)}
    make_ledger(folder, policy | allowed, units, mirror, sites=site or (), earlier=not without_earlier)


@ledger_app.command("mirror")
def ledger_mirror(
    folder: LEDGER, mirror: Annotated[Path, typer.Argument(help="Folder to make, on another disk.")]
) -> None:
    """Make a ledger's second place, where there is none yet or it is lost for good."""
    from wardround.client.ledger.commands import add_mirror

    add_mirror(folder, mirror)


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
    mirror: MIRROR = None,
) -> None:
    """Take the rows that another copy has and a restored ledger lacks."""
    from wardround.client.ledger.commands import replay_rows

    replay_rows(folder, source, mirror)


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
    went_on: Annotated[
        bool, typer.Option("--went-on", help="It was used after it was put back: that counts beside the cap.")
    ] = False,
    epsilon: Annotated[
        Optional[float],  # noqa: UP045 - as above
        typer.Option(help="Of a cap that the lost rows had, where it was raised in them."),
    ] = None,
    mirror: MIRROR = None,
) -> None:
    """Charge the whole cap for rows that are lost for good."""
    from wardround.client.ledger.commands import write_cap_off

    write_cap_off(folder, who, why, run or [], mirror, went_on=went_on, epsilon=epsilon)
