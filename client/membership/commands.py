"""`wardround site join`, `roster`, `server` and `rotate`: what the site's own people see and do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wardround.client.ledger_place import LedgerPlace, share_ledger
from wardround.client.membership.joining import join
from wardround.client.membership.leaving import leave, nobody_runs, unfinished
from wardround.client.membership.locking import key_files, locked_files, relock
from wardround.client.membership.roster_pin import (
    RosterChanges,
    changes_since,
    confirm_roster,
    update_roster,
    update_server,
)
from wardround.client.membership.rotation import rotate
from wardround.client.membership.site_folder import (
    LEAVING_FILE,
    REQUEST,
    ROTATION_FILE,
    SiteFolder,
    confirmed_roster,
    open_site_folder,
)
from wardround.client.site_settings import FILE, write_site_starter
from wardround.core.errors import ConfigError, PolicyError
from wardround.runtime.membership import LARGEST_INVITATION, LARGEST_NOTICE, fingerprint, spoken
from wardround.runtime.passphrases import VARIABLE, Lock, given_passphrase, new_passphrase, use_lock
from wardround.runtime.roster import LARGEST_ROSTER, expiring
from wardround.runtime.small_files import read_bounded

WARN_DAYS: Final = 30
OWNER: Final = "this site's keys"
"""Whose the passphrase is, where it is asked for."""


def join_consortium(
    invitation: Path,
    folder: Path,
    now: datetime,
    *,
    pinned: str | None,
    lock: bool = False,
    beside: Path | None = None,
) -> None:
    """Join, and say what to send and what to compare; raises as `join`.

    Args:
        invitation: The operator's file.
        folder: To make.
        now: The present moment.
        pinned: The consortium's fingerprint, as it was read out.
        lock: Ask for a passphrase, and lock the keys with it before they are written.
        beside: Another site of this hospital over the same patients, with whose ledger this one goes on.
    """
    other = None if beside is None else open_site_folder(beside)
    if lock:
        use_lock(Lock(new_passphrase(OWNER)))
    site, request = join(read_bounded(invitation, LARGEST_INVITATION), folder, now, pinned=pinned)
    write_site_starter(folder / FILE)
    if other is not None:
        ledger = share_ledger(folder, other.path)
        _say(f"{folder} and {other.path} have one ledger, {ledger}, and count each other's runs")
    _say(f"{folder} is the folder of {site.name!r} in {site.consortium!r}; its keys stay in it")
    _say(f"{folder / FILE} says where base models and rows lie, and what the site demands: fill it in")
    if pinned is None:
        key = bytes.fromhex(request.consortium)
        _say("Before you send anything, compare the consortium's fingerprint on the phone; if it differs,")
        _say(f"remove the folder:\n  {spoken(fingerprint(key))}")
    _say(f"Send {folder / REQUEST} to the operator, and read out its digest:\n  {spoken(request.digest)}")
    _warn(site, now)


def show_roster(folder: Path, now: datetime, *, as_json: bool) -> None:
    """Print the pinned roster, and who of it counts; raises as `confirmed_roster`."""
    site = open_site_folder(folder)
    roster, confirmed = site.roster(), site.confirmed()
    counting = confirmed_roster(site, now)
    if as_json:
        shown = {
            "site": site.name, "consortium": site.consortium, "fingerprint": site.fingerprint,
            "version": roster.version, "digest": roster.digest,
            "confirmed": confirmed.digest if confirmed else None,
            "members": [
                m.model_dump(mode="json") | {"counts": m.site in counting.keys} for m in roster.members
            ],
            "expires": [{"what": end.what, "when": end.when.isoformat()} for end in site.ends()],
        }  # fmt: skip
        sys.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
        return
    _say(f"{site.consortium}, roster version {roster.version}, seen by {site.name!r}")
    _say(f"digest  {spoken(roster.digest)}")
    table = Table("site", "counts", "since", "until", "identity key")
    for member in roster.members:
        until = f"{member.expires:%Y-%m-%d}" if member.expires else ""
        counts = "yes" if member.site in counting.keys else "no"
        table.add_row(escape(member.site), counts, f"{member.admitted:%Y-%m-%d}", until, member.identity[:16])
    Console().print(table)
    _say_changes(changes_since(confirmed, roster))
    _warn(site, now)


def take_roster(folder: Path, file: Path, now: datetime) -> None:
    """Pin a newer roster, and say what has to be confirmed; raises as `update_roster`."""
    site = open_site_folder(folder)
    is_newer = update_roster(site, read_bounded(file, LARGEST_ROSTER), now)
    roster = site.roster()
    _say(f"roster version {roster.version} is pinned" + ("" if is_newer else ", as before"))
    if roster.member(site.name) is None:
        _say(f"{site.name!r} is no member of it")
    _say_changes(changes_since(site.confirmed(), roster))
    _warn(site, now)


def confirm_members(
    folder: Path, now: datetime, *, said: str | None, as_json: bool, ask: Callable[[str], bool]
) -> None:
    """Show digest and changes, and record that people compared them.

    Args:
        folder: Of the site.
        now: The present moment.
        said: The digest as they heard it; without it they are asked.
        as_json: Print digest and changes as JSON. Nothing is asked then: without `said`, nothing is recorded.
        ask: Puts a question that is answered by yes or no.

    Raises:
        PolicyError: They did not confirm it; nothing is recorded.
        PeerError: The digest is another roster's.
        StorageError: Something cannot be read or written.
    """
    site = open_site_folder(folder)
    roster = site.roster()
    changes = changes_since(site.confirmed(), roster)
    if not as_json:
        _say(f"{site.consortium}, roster version {roster.version}, members: {len(roster.members)}")
        _say(f"digest, to be read out and compared with the other sites:\n  {spoken(roster.digest)}")
        _say_changes(changes)
    if (
        said is None
        and not as_json
        and not ask("Do the others read out the same digest, and is each a member?")
    ):
        raise PolicyError(
            "the roster is not confirmed", remedy="nobody new counts: speak with the others and the operator"
        )
    confirmed = None if as_json and said is None else confirm_roster(site, said or roster.digest, now)
    if as_json:
        shown = {
            "version": roster.version, "digest": roster.digest, "added": changes.added,
            "removed": changes.removed, "other_keys": changes.other_keys, "confirmed": confirmed is not None,
        }  # fmt: skip
        sys.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
    else:
        _say(f"confirmed; members that count: {len(confirmed_roster(site, now).keys)}")
    _warn(site, now)


def take_server_notice(folder: Path, file: Path, now: datetime) -> None:
    """Take the server's new certificate; raises as `update_server`."""
    site = open_site_folder(folder)
    certificate = update_server(site, read_bounded(file, LARGEST_NOTICE), now)
    _say(f"the server at {certificate.address} is certified until {certificate.expires:%Y-%m-%d} UTC")
    _warn(open_site_folder(folder), now)


def rotate_keys(folder: Path, now: datetime) -> None:
    """Make new keys and the request for them, and say what to send; raises as `rotate`."""
    site = open_site_folder(folder)
    site.require_present()
    request = rotate(site, now)
    _say("new identity and transport keys are made; the old ones count until the roster names the new ones")
    _say(
        f"Send {folder / ROTATION_FILE} to the operator, and read out its digest:\n  {spoken(request.digest)}"
    )
    _warn(site, now)


def lock_keys(folder: Path, *, remove: bool, file: Path | None) -> None:
    """Set, change or take off the passphrase of a site's keys; raises as `relock`.

    Args:
        folder: Of the site.
        remove: Let the keys lie open.
        file: Holds the new passphrase; None: a terminal is asked at.
    """
    site = open_site_folder(folder)
    with nobody_runs(site, "change the passphrase"):
        files = key_files(site, LedgerPlace.of(site).folder)
        locked = locked_files(files)
        if remove and not locked:
            _say("No key of this site is locked")
            return
        present = given_passphrase(OWNER) if locked else None
        if locked and present is None:
            raise ConfigError(
                "the keys are locked with a passphrase", found="none",
                remedy=f"set {VARIABLE} to the present one, or run this at a terminal",
            )  # fmt: skip
        new = None if remove else new_passphrase(OWNER, file)
        count = relock(files, present, new)
    _say(f"{count} of {len(files)} keys written: they lie open now" if remove else f"{count} keys locked")
    if not remove:
        _say("Keep the passphrase where the hospital keeps such things: without it the site does not start,")
        _say("and its ledger cannot be read. A copy of the folder from before holds the keys as they were")


def leave_consortium(folder: Path, now: datetime, *, ask: Callable[[str], bool] | None) -> None:
    """Leave, and say what is gone, what stays and what to send.

    Args:
        folder: Of the site.
        now: The present moment.
        ask: Puts a question that is answered by yes or no; None asks nothing.

    Raises:
        PolicyError: They said no; nothing has changed.
        ConfigError: The site runs.
        StorageError: Something cannot be read, written or destroyed; called again, it goes on.
    """
    site = open_site_folder(folder)
    if site.left() is None:
        for run in unfinished(site):
            _say(f"run {run}: accepted, its result not fetched: it may still train, and goes on without you")
        kept = f"destroy the keys of {site.name} and what its runs had kept"
        if ask is not None and not ask(f"Leave {site.consortium!r} for good, and {kept}?"):
            raise PolicyError("the site has not left", remedy="nothing was changed")
    came = leave(site, now)
    before = " before; what was still there is destroyed" if came.again else ""
    _say(f"{site.name} has left {site.consortium!r}{before}")
    _say("destroyed: its keys, and of its runs the contributions, memories and records that they had kept")
    _say(
        "kept: the privacy ledger (its charges outlive every membership), the history of what left, results, "
        "site.yaml, logs"
    )
    if came.request is not None:
        _say(f"Send {folder / LEAVING_FILE} to the operator, who takes {site.name} off the roster with it:")
        _say(f"  wardround consortium revoke {site.name} --request {LEAVING_FILE}")
        _say(f"Read out its digest:\n  {spoken(came.request.digest)}")
    elif not came.again:
        _say("no key was left to sign a request with: tell the operator to revoke this site")


def _say_changes(changes: RosterChanges) -> None:
    if not changes:
        _say("nothing has changed since it was confirmed")
        return
    for names, what in (
        (changes.added, "new, not confirmed yet"),
        (changes.other_keys, "has other keys than were confirmed"),
        (changes.removed, "is no member any more"),
    ):
        for name in names:
            _say(f"  {name}: {what}")


def _warn(site: SiteFolder, now: datetime) -> None:
    """Name on the error stream what ends within `WARN_DAYS`."""
    for end in expiring(site.ends(), now, WARN_DAYS):
        sys.stderr.write(f"soon: {end.text(now)}\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
