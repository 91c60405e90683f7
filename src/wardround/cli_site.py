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
