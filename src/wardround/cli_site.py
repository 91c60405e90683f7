"""`wardround site`: a thin, lazy table of a site's commands on keys and members."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Optional

import typer

site_app = typer.Typer(help="A site's keys, and the members that it trusts.", no_args_is_help=True)
roster_app = typer.Typer(help="The members: look, update, confirm.", no_args_is_help=True)
site_app.add_typer(roster_app, name="roster")
server_app = typer.Typer(help="The server that this site trusts.", no_args_is_help=True)
site_app.add_typer(server_app, name="server")

FOLDER = Annotated[Path, typer.Option(help="The site's folder.")]
HERE = Path("site")


@site_app.command("join")
def site_join(
    invitation: Annotated[Path, typer.Argument(help="The file that the operator sent.")],
    folder: Annotated[Path, typer.Option(help="Folder to make for the site.")] = HERE,
    fingerprint: Annotated[
        Optional[str],  # noqa: UP045 - typer reads Optional
        typer.Option(help="The consortium's fingerprint as you heard it; another one is refused."),
    ] = None,
) -> None:
    """Answer an invitation: check it, make this site's keys, write the request for the operator."""
    from wardround.client.membership.commands import join_consortium

    join_consortium(invitation, folder, _now(), pinned=fingerprint)


@site_app.command("start")
def site_start(
    folder: FOLDER = HERE,
    deadline: Annotated[
        float, typer.Option(help="Seconds that one message may take before the worker is started anew.")
    ] = 6 * 3600.0,
) -> None:
    """Run the site: its node, its worker, and the supervisor that holds the keys. Ends on SIGTERM."""
    from wardround.client.site_commands import start_site

    start_site(folder, deadline)


@site_app.command("status")
def site_status(
    folder: FOLDER = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show the site's processes, and the runs that it was offered."""
    from wardround.client.site_commands import show_site

    show_site(folder, as_json=as_json)


@site_app.command("check")
def site_check(
    folder: FOLDER = HERE,
    plan: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="A plan's folder or file: looks at what only a plan decides as well."),
    ] = None,
    run: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="Or a run that was offered to this site."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings, as JSON.")] = False,
) -> None:
    """Look whether this site could take part: keys, clock, machine, models, rows, the way to the server."""
    from wardround.client.doctor.command import check_site

    raise typer.Exit(check_site(folder, plan=plan, run=run, as_json=as_json))


@site_app.command("approve")
def site_approve(
    run: Annotated[str, typer.Argument(help="Id of the run, as status shows it.")],
    who: Annotated[str, typer.Option(help="The person who approves; on record.")],
    folder: FOLDER = HERE,
    digest: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="The plan's digest as you know it; another one is refused, and nothing is asked."),
    ] = None,
) -> None:
    """Show what an offered plan asks of this site, and let it take part."""
    from wardround.client.site_commands import approve_run

    approve_run(folder, run, who, said=digest, ask=typer.confirm)


@site_app.command("fetch")
def site_fetch(
    run: Annotated[str, typer.Argument(help="Id of a run that this site took part in.")],
    folder: FOLDER = HERE,
    merge: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="Folder to make: the adapter merged into this site's base model."),
    ] = None,
) -> None:
    """Fetch the result of a run from the server, check it, and keep it with the run."""
    from wardround.client.site_commands import fetch_run

    fetch_run(folder, run, merge=merge)


@site_app.command("stop")
def site_stop(folder: FOLDER = HERE) -> None:
    """End the site's processes; a round that it trains goes on at the next start."""
    from wardround.client.site_commands import stop_site

    stop_site(folder)


@site_app.command("leave")
def site_leave(
    folder: Annotated[Path, typer.Argument(help="The site's folder.")] = HERE,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
) -> None:
    """Leave the consortium: destroy this site's keys and what its runs had kept. The ledger stays."""
    from wardround.client.membership.commands import leave_consortium

    leave_consortium(folder, _now(), ask=None if yes else typer.confirm)


@site_app.command("rotate")
def site_rotate(folder: FOLDER = HERE) -> None:
    """Make new keys, and the request for the operator to put them on the roster."""
    from wardround.client.membership.commands import rotate_keys

    rotate_keys(folder, _now())


@roster_app.command("show")
def roster_show(
    folder: FOLDER = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show the pinned roster, and which members count for this site."""
    from wardround.client.membership.commands import show_roster

    show_roster(folder, _now(), as_json=as_json)


@roster_app.command("update")
def roster_update(
    file: Annotated[Path, typer.Argument(help="The signed roster.")], folder: FOLDER = HERE
) -> None:
    """Pin a newer roster; an older one, or one that contradicts the pinned one, is refused."""
    from wardround.client.membership.commands import take_roster

    take_roster(folder, file, _now())


@roster_app.command("confirm")
def roster_confirm(
    folder: FOLDER = HERE,
    digest: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="The digest as you heard it; another one is refused, and nothing is asked."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Digest and changes as JSON; asks nothing.")
    ] = False,
) -> None:
    """Show the roster's digest and what changed, and record that you compared it with the other sites."""
    from wardround.client.membership.commands import confirm_members

    confirm_members(folder, _now(), said=digest, as_json=as_json, ask=typer.confirm)


@server_app.command("update")
def server_update(
    file: Annotated[Path, typer.Argument(help="The operator's server-notice.json.")], folder: FOLDER = HERE
) -> None:
    """Take the server's new certificate, address or authority, as the consortium key signed it."""
    from wardround.client.membership.commands import take_server_notice

    take_server_notice(folder, file, _now())


def _now() -> datetime:
    return datetime.now(UTC)
