"""A site leaves the consortium by its own will: what tied it to it is destroyed, its ledger is not.

    refuse while it runs → request for the operator, signed → mark, durable → destroy → done

The mark comes before the first byte is destroyed: a site that was killed in between has left, starts no more,
and the next call destroys what is still there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from wardround.client.accepted import ACCEPTED, APPROVED, PLAN, RunFolders
from wardround.client.membership.site_folder import KEEPER, KEYS, LEAVING_FILE, LEFT, Left, SiteFolder
from wardround.core.errors import ConfigError, StorageError
from wardround.runtime.control.sockets import UnixSocket, claim
from wardround.runtime.files import erase_file, storing, sync_folder, write_atomic
from wardround.runtime.membership import LeavingRequest, sign_leaving
from wardround.runtime.small_files import value_bytes

RUNS: Final = "runs"
RECORDS: Final = "records"
RESULT: Final = "result"
KEPT_OF_A_RUN: Final = frozenset({PLAN, APPROVED, ACCEPTED, RESULT})
"""What stays of a run: what this site was asked, what it said, and what came of it."""


@dataclass(frozen=True)
class Leave:
    """What came of leaving.

    Attributes:
        request: For the operator; None where the site no longer had the key that signs it.
        again: The site had left before; what was still there is destroyed now.
    """

    request: LeavingRequest | None
    again: bool


def unfinished(site: SiteFolder) -> list[str]:
    """Runs that the site accepted and whose result it has not fetched: they may still train.

    Raises:
        StorageError: What was accepted cannot be read.
    """
    runs = RunFolders(site.path / RUNS)
    return [
        run
        for run in runs.runs()
        if runs.accepted(run) is not None and not (runs.of(run) / RESULT / "result.signed.json").exists()
    ]


def leave(site: SiteFolder, now: datetime) -> Leave:
    """Leave: sign the request, mark the folder, destroy keys and what runs had kept. The ledger stays.

    Twice does no harm.

    Raises:
        ConfigError: The site runs.
        StorageError: Something cannot be written or destroyed; called again, it goes on.
    """
    with nobody_runs(site, "leave"):
        again = site.left() is not None
        request = None if again else _request(site, now)
        if not again:
            write_atomic(site.path / LEFT, value_bytes(Left(at=now.replace(microsecond=0))), private=True)
        _destroy(site)
    return Leave(request, again)


def _request(site: SiteFolder, now: datetime) -> LeavingRequest | None:
    try:
        signer = site.signer()
    except StorageError:  # its keys are lost: that is a reason to leave, and none to stay
        return None
    request = LeavingRequest(
        consortium=site.consortium_key.hex(), site=site.name, identity=signer.public.hex(),
        issued=now.replace(microsecond=0),
    )  # fmt: skip
    write_atomic(site.path / LEAVING_FILE, sign_leaving(request, signer.key), private=True)
    return request


@contextmanager
def nobody_runs(site: SiteFolder, what: str) -> Iterator[None]:
    """Hold the place of the site's supervisor, so that none starts meanwhile.

    Args:
        site: Its folder.
        what: What cannot be done while it runs, such as "leave".

    Raises:
        ConfigError: It runs.
    """
    try:
        held = claim(UnixSocket(site.path / KEEPER))
    except StorageError as error:
        raise ConfigError(
            f"{site.name} cannot {what} now", found="its processes run", expected="a site that is stopped",
            remedy=f"wardround site stop, then {what}",
        ) from error  # fmt: skip
    try:
        yield
    finally:
        os.close(held)


def _destroy(site: SiteFolder) -> None:
    """The keys first: with them goes what they seal, and what a kill leaves for the next call is closed."""
    _erase_all(site.path / KEYS)
    _erase_all(site.path / RECORDS)
    runs = site.path / RUNS
    for run in sorted(runs.iterdir()) if runs.is_dir() else ():
        for path in sorted(run.iterdir()) if run.is_dir() and not run.is_symlink() else ():
            if path.name not in KEPT_OF_A_RUN:
                _erase_all(path)


def _erase_all(path: Path) -> None:
    """Overwrite every file beneath, then remove it all.

    A disk that writes elsewhere than it is told to (flash, copy on write) may still hold the old bytes.

    Raises:
        StorageError: Something cannot be removed.
    """
    if not os.path.lexists(path):
        return
    with storing(path):
        if path.is_dir() and not path.is_symlink():
            for file in sorted(found for found in path.rglob("*") if found.is_file() or found.is_symlink()):
                erase_file(file)
            shutil.rmtree(path)
        else:
            erase_file(path)
        sync_folder(path.parent)
