"""`wardround run`: the operator's commands to a running server; `server/run_commands.py` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

run_app = typer.Typer(help="Runs of a consortium's server: start, look, stop, resume.", no_args_is_help=True)

RUN = Annotated[str, typer.Argument(help="The run, as `wardround run list` names it.")]
SERVER = Annotated[
    Path,
    typer.Option(envvar="WARDROUND_SERVER", help="Folder of the server, or of an operator elsewhere."),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON; one document a line where it follows.")]
FOLLOW = Annotated[bool, typer.Option("--follow", help="Go on until the run ends.")]


@run_app.command("start")
def run_start(
    plan: Annotated[Path, typer.Argument(help="Folder of a signed plan.")],
    server: SERVER,
    submission: Annotated[
        Optional[str],  # noqa: UP045 - typer reads Optional
        typer.Option(help="A name of your own: told twice under it, the server makes one run."),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Queue a signed plan; the server offers it to the sites when its turn comes."""
    from wardround.server.run_commands import start_run

    start_run(server, plan, submission, as_json=as_json)


@run_app.command("list")
def run_list(server: SERVER, as_json: JSON = False) -> None:
    """List the runs: the one at work, who waits in which order, what has ended and why."""
    from wardround.server.run_commands import list_runs

    list_runs(server, as_json=as_json)


@run_app.command("status")
def run_status(run: RUN, server: SERVER, follow: FOLLOW = False, as_json: JSON = False) -> None:
    """Show where a run is: round, sites, metrics, ε, bytes. Exits with 4 where it has failed."""
    from wardround.server.run_commands import follow_events, show_status

    raise typer.Exit((follow_events if follow else show_status)(server, run, as_json=as_json))


@run_app.command("why")
def run_why(run: RUN, server: SERVER, as_json: JSON = False) -> None:
    """Say why a run is where it is: what it waits for, and for whom."""
    from wardround.server.run_commands import show_why

    show_why(server, run, as_json=as_json)


@run_app.command("logs")
def run_logs(run: RUN, server: SERVER, follow: FOLLOW = False, as_json: JSON = False) -> None:
    """Print what happened to a run. With --follow it exits with 4 where the run has failed."""
    from wardround.server.run_commands import show_logs

    raise typer.Exit(show_logs(server, run, follow=follow, as_json=as_json))


@run_app.command("drain")
def run_drain(run: RUN, server: SERVER, as_json: JSON = False) -> None:
    """Stop a run after the round that trains."""
    from wardround.server.run_commands import drain_run

    drain_run(server, run, as_json=as_json)


@run_app.command("stop")
def run_stop(run: RUN, server: SERVER, as_json: JSON = False) -> None:
    """Stop a run at once, and wait until it has. Its finished rounds stay."""
    from wardround.server.run_commands import stop_run

    raise typer.Exit(stop_run(server, run, as_json=as_json))


@run_app.command("resume")
def run_resume(run: RUN, server: SERVER, as_json: JSON = False) -> None:
    """Queue a stopped or failed run again; it goes on after its last round."""
    from wardround.server.run_commands import resume_run

    resume_run(server, run, as_json=as_json)


@run_app.command("exclude")
def run_exclude(
    run: RUN,
    site: Annotated[str, typer.Argument(help="The site's name.")],
    server: SERVER,
    as_json: JSON = False,
) -> None:
    """Leave a site out of a run from its next round on."""
    from wardround.server.run_commands import exclude_site

    exclude_site(server, run, site, as_json=as_json)
