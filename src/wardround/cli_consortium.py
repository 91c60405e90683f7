"""`wardround consortium`: a thin, lazy table of the operator's commands on keys and members."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Optional

import typer

consortium_app = typer.Typer(help="The operator's keys and members.", no_args_is_help=True)
rotate_app = typer.Typer(help="New keys and certificates for old ones.", no_args_is_help=True)
consortium_app.add_typer(rotate_app, name="rotate")

FOLDER = Annotated[Path, typer.Option(help="The operator's folder.")]
HERE = Path("consortium")
HOSTS = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads Optional
    typer.Option("--host", help="A further name or IP address of the server; once for each."),
]
DAYS_VALID = Annotated[int, typer.Option("--days", min=1, max=3650, help="Days for which it is valid.")]
MEMBER_DAYS = Annotated[
    Optional[int],  # noqa: UP045 - as above
    typer.Option(
        "--days", min=1, max=3650, help="Days after which the membership ends; it does not without."
    ),
]
SAID = Annotated[
    Optional[str],  # noqa: UP045 - as above
    typer.Option("--digest", help="Digest of the request as the site reads it out; another one is refused."),
]


@consortium_app.command("init")
def consortium_init(
    folder: Annotated[Path, typer.Argument(help="Folder to make, on the operator's own computer.")],
    name: Annotated[str, typer.Option(help="Name of the consortium.")],
    address: Annotated[str, typer.Option(help="HOST:PORT by which sites reach the server.")],
    host: HOSTS = None,
    days: DAYS_VALID = 365,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for one that encrypts the keys.")
    ] = False,
) -> None:
    """Make a consortium: its keys, its authority, an empty roster, the server's folder."""
    from wardround.server.consortium.commands import make_consortium

    make_consortium(folder, name, address, _now(), hosts=host or (), days=days, ask=passphrase)


@consortium_app.command("invite")
def consortium_invite(
    site: Annotated[str, typer.Argument(help="Name that the site will have.")],
    folder: FOLDER = HERE,
    days: Annotated[int, typer.Option(help="Days until the invitation expires.")] = 14,
    output: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="File to write; SITE.invitation.json without it."),
    ] = None,
) -> None:
    """Write an invitation for one site: one file, for one use, which expires."""
    from wardround.server.consortium.commands import invite_site

    invite_site(folder, site, output, _now(), days=days)


@consortium_app.command("admit")
def consortium_admit(
    request: Annotated[Path, typer.Argument(help="The request that the site sent.")],
    folder: FOLDER = HERE,
    digest: SAID = None,
    days: MEMBER_DAYS = None,
) -> None:
    """Admit a site that answers its invitation, and sign the next roster."""
    from wardround.server.consortium.commands import admit_site

    admit_site(folder, request, _now(), said=digest, days=days)


@consortium_app.command("revoke")
def consortium_revoke(
    site: Annotated[str, typer.Argument(help="Name of the member.")],
    folder: FOLDER = HERE,
    request: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads Optional
        typer.Option(help="The site's leaving.json: refused where it is not the member's own word."),
    ] = None,
) -> None:
    """Take a site off the roster, and withdraw its invitations."""
    from wardround.server.consortium.commands import revoke_site

    revoke_site(folder, site, _now(), request=request)


@consortium_app.command("list")
def consortium_list(
    folder: FOLDER = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show members, open invitations, and what expires when."""
    from wardround.server.consortium.commands import show_consortium

    show_consortium(folder, _now(), as_json=as_json)


@rotate_app.command("server")
def rotate_server(
    folder: FOLDER = HERE,
    address: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="A new HOST:PORT of the server."),
    ] = None,
    host: HOSTS = None,
    new_identity: Annotated[
        bool, typer.Option("--new-identity", help="A new identity key as well: the old one may be stolen.")
    ] = False,
    days: DAYS_VALID = 365,
) -> None:
    """Make the server's new TLS key and certificates."""
    from wardround.server.consortium.commands import renew_server

    renew_server(folder, _now(), address=address, hosts=host, new_identity=new_identity, days=days)


@rotate_app.command("ca")
def rotate_ca(
    folder: FOLDER = HERE,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="The old key may be stolen: trust the old one no longer.")
    ] = False,
    days: DAYS_VALID = 365,
) -> None:
    """Make a new authority, after the old one's key is lost, stolen or about to expire."""
    from wardround.server.consortium.commands import renew_ca

    renew_ca(folder, _now(), compromised=compromised, days=days)


@rotate_app.command("token")
def rotate_token(folder: FOLDER = HERE) -> None:
    """Make a new operator's token."""
    from wardround.server.consortium.commands import renew_token

    renew_token(folder, _now())


@rotate_app.command("site")
def rotate_site(
    request: Annotated[Path, typer.Argument(help="The rotation request that the site sent.")],
    folder: FOLDER = HERE,
    digest: SAID = None,
    days: MEMBER_DAYS = None,
) -> None:
    """Give a member the new keys that it asks for, and sign the next roster."""
    from wardround.server.consortium.commands import take_new_keys

    take_new_keys(folder, request, _now(), said=digest, days=days)


def _now() -> datetime:
    return datetime.now(UTC)
