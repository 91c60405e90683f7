"""The commands `wardround plan …`: thin and lazy; what they need is imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

plan_app = typer.Typer(help="Make, check and sign a consortium's training plan.", no_args_is_help=True)
FOLDER = Annotated[Path, typer.Argument(help="Folder of the plan.")]


@plan_app.command(
    "new",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def plan_new(context: typer.Context) -> None:
    """Make the plan and its initial adapter in a new FOLDER. Then Hydra overrides: plan.sites=5 --cfg job."""
    from wardround.simulations.plan_new import new_plan

    new_plan(context.args)


@plan_app.command("check")
def plan_check(
    folder: FOLDER,
    sites: Annotated[
        Optional[int],  # noqa: UP045 - typer reads Optional
        typer.Option(
            min=1, help="Sites that are expected; the least number that the plan waits for without it."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Consortium's public key in hex, for which a signature has to hold.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Refuse what can be refused of a plan, with exit code 1, or say what is in it."""
    from wardround.training.plan_commands import show_check

    if not show_check(folder, sites=sites, key=key, as_json=as_json):
        raise typer.Exit(1)


@plan_app.command("sign")
def plan_sign(
    folder: FOLDER,
    consortium: Annotated[Path, typer.Option(help="The operator's folder, which holds consortium.key.")],
) -> None:
    """Sign a sound plan with the consortium's key."""
    from wardround.training.plan_commands import sign_folder

    sign_folder(folder, consortium)
