"""`wardround consortium`: what the operator sees and does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wardround.privacy.secagg.secret import Secret
from wardround.runtime.membership import LARGEST_REQUEST, spoken
from wardround.runtime.passphrases import VARIABLE, given_passphrase, long_enough, new_passphrase
from wardround.runtime.roster import Expiring, expiring
from wardround.runtime.small_files import is_encrypted, read_bounded
from wardround.server.consortium.admission import Changed, admit, revoke, rotate_site
from wardround.server.consortium.creation import create
from wardround.server.consortium.invitations import invite
from wardround.server.consortium.operator_folder import (
    CONSORTIUM_KEY,
    NOTICE_FILE,
    ROSTER_FILE,
    SERVER_FOLDER,
    open_operator_folder,
)
from wardround.server.consortium.overview import folder_ends, overview
from wardround.server.consortium.rotation import rotate_ca, rotate_server, rotate_token

WARN_DAYS: Final = 30


def make_consortium(
    folder: Path, name: str, address: str, now: datetime, *, hosts: Sequence[str], days: int, ask: bool
) -> None:
    """Make a consortium, and say what to do with its two folders; raises as `create`."""
    made = create(folder, name, address, now, hosts=hosts, days=days, passphrase=_new_passphrase(ask=ask))
    _say(f"{folder} is the operator's folder of {name!r}; it stays on this computer, with a copy locked away")
    _say(f"{made.server} is the server's folder: carry it to the server's machine")
    _say(f"fingerprint, for sites to compare on the phone:\n  {spoken(made.fingerprint)}")
    _warn(folder, now)


def invite_site(folder: Path, site: str, output: Path | None, now: datetime, *, days: int) -> None:
    """Write an invitation, and say how to hand it over; raises as `invite`."""
    file = output or Path(f"{site}.invitation.json")
    record = invite(folder, site, file, now, days=days, passphrase=_passphrase(folder))
    _say(f"{file} invites {site!r}, once, until {record.expires:%Y-%m-%d %H:%M} UTC")
    _say(
        "Whoever has the file can ask to be this site: send it to the site's own people only, and compare the"
    )
    _say(f"fingerprint with them on the phone:\n  {spoken(open_operator_folder(folder).fingerprint)}")
    _warn(folder, now)


def admit_site(folder: Path, request: Path, now: datetime, *, said: str | None, days: int | None) -> None:
    """Admit a site, and say what comes next; raises as `admit`."""
    data = read_bounded(request, LARGEST_REQUEST)
    _changed("is a member", folder, admit(
        folder, data, now, said=said, days=days, passphrase=_passphrase(folder)
    ), now, compared=said is not None)  # fmt: skip


def revoke_site(folder: Path, site: str, now: datetime, *, request: Path | None = None) -> None:
    """Revoke a site, and say what comes next; raises as `revoke`."""
    _changed("is no member, and not invited", folder, revoke(
        folder, site, now, passphrase=_passphrase(folder),
        request=None if request is None else read_bounded(request, LARGEST_REQUEST),
    ), now)  # fmt: skip


def take_new_keys(folder: Path, request: Path, now: datetime, *, said: str | None, days: int | None) -> None:
    """Give a member its new keys, and say what comes next; raises as `rotate_site`."""
    data = read_bounded(request, LARGEST_REQUEST)
    _changed("has its new keys", folder, rotate_site(
        folder, data, now, said=said, days=days, passphrase=_passphrase(folder)
    ), now, compared=said is not None)  # fmt: skip


def renew_server(
    folder: Path,
    now: datetime,
    *,
    address: str | None,
    hosts: Sequence[str] | None,
    new_identity: bool,
    days: int,
) -> None:
    """Make the server's new certificates, and say where they have to go; raises as `rotate_server`."""
    certificate = rotate_server(
        folder, now, address=address, hosts=hosts, new_identity=new_identity, days=days,
        passphrase=_passphrase(folder),
    )  # fmt: skip
    _say(f"the server's certificates are new, until {certificate.expires:%Y-%m-%d} UTC")
    _hand_over(folder, now, sites=new_identity or address is not None)


def renew_ca(folder: Path, now: datetime, *, compromised: bool, days: int) -> None:
    """Make a new authority, and say who has to get it; raises as `rotate_ca`."""
    rotate_ca(folder, now, compromised=compromised, days=days, passphrase=_passphrase(folder))
    _say("the consortium has a new authority" + (", and trusts no other" if compromised else ""))
    _hand_over(folder, now, sites=True)
    if not compromised:
        _say("Once every site has taken the notice: wardround consortium rotate server")


def renew_token(folder: Path, now: datetime) -> None:
    """Make a new operator's token; raises as `rotate_token`."""
    _say(f"{rotate_token(folder, now)} is new: carry it to the server's folder, and start the server again")
    _warn(folder, now)


def show_consortium(folder: Path, now: datetime, *, as_json: bool) -> None:
    """Print members, open invitations and what expires; raises as `overview`."""
    seen = overview(folder, now)
    if as_json:
        sys.stdout.write(json.dumps(seen.plain(), indent=2, ensure_ascii=False) + "\n")
        return
    _say(f"{seen.consortium}, server {seen.address}, roster version {seen.roster.version}")
    _say(f"fingerprint    {spoken(seen.fingerprint)}\nroster digest  {spoken(seen.roster.digest)}")
    table = Table("site", "state", "since", "until", "identity key")
    for member in seen.roster.members:
        until = f"{member.expires:%Y-%m-%d}" if member.expires else ""
        table.add_row(
            escape(member.site), "member", f"{member.admitted:%Y-%m-%d}", until, member.identity[:16]
        )
    for record in seen.invitations:
        table.add_row(
            escape(record.site), "invited", f"{record.issued:%Y-%m-%d}", f"{record.expires:%Y-%m-%d}", ""
        )
    Console().print(table)
    for end in seen.ends:
        _say(end.text(now))
    if seen.unfinished:
        _say("A change is written down and not carried out: the next command that changes something does it.")


def _changed(what: str, folder: Path, changed: Changed, now: datetime, *, compared: bool = True) -> None:
    _say(f"{changed.site!r} {what}" + (" already" if changed.already else ""))
    if not compared:
        _say(f"Compare with the site on the phone, it reads out the same:\n  {spoken(changed.request)}")
    roster = changed.roster
    _say(f"roster version {roster.version}, members: {len(roster.members)}; every site confirms its digest")
    _say(f"  {spoken(roster.digest)}")
    _say(f"Send {folder / ROSTER_FILE} to the sites, and carry it into the server's folder", end="")
    there = open_operator_folder(folder).server.is_dir()
    _say(f" if that is another one than {folder / SERVER_FOLDER}." if there else ".")
    _warn(folder, now)


def _hand_over(folder: Path, now: datetime, *, sites: bool) -> None:
    _say(f"{open_operator_folder(folder).server}: carry its files into the server's folder")
    need = "has to take" if sites else "may take"
    _say(f"{folder / NOTICE_FILE}: every site {need} it by wardround site server update FILE")
    _warn(folder, now)


def _warn(folder: Path, now: datetime) -> None:
    """Name on the error stream what ends within `WARN_DAYS`."""
    soon: tuple[Expiring, ...] = expiring(folder_ends(open_operator_folder(folder)), now, WARN_DAYS)
    for end in soon:
        sys.stderr.write(f"soon: {end.text(now)}\n")


def _passphrase(folder: Path) -> Secret | None:
    """The passphrase of a folder's keys; None where they have none, or nobody can be asked.

    Raises:
        StorageError: The folder or the key cannot be read.
    """
    encrypted = is_encrypted(open_operator_folder(folder).path / CONSORTIUM_KEY)
    return given_passphrase("the consortium") if encrypted else None


def _new_passphrase(*, ask: bool) -> Secret | None:
    """A passphrase for new keys: from the environment, or typed twice where it is asked for.

    Raises:
        ConfigError: It is short, the two differ, or there is no terminal to ask at.
    """
    if (given := os.environ.get(VARIABLE)) is not None:
        return long_enough(given)
    return new_passphrase("the consortium") if ask else None


def _say(line: str, *, end: str = "\n") -> None:
    sys.stdout.write(line + end)
