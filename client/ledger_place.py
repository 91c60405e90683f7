"""Where a site's privacy ledger lies: in its own folder, or one for all memberships of a hospital."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.row_file import BusyError
from wardround.client.membership.site_folder import SiteFolder
from wardround.client.settings_edit import change_settings
from wardround.client.site_settings import FILE, read_site_settings

LEDGER: Final = "ledger"
"""Its folder in the site's own, where the settings name no other."""
PATIENCE_S: Final = 300.0
"""For the ledger, while another site of the hospital writes to it: seconds at a time, for each round."""
LOOK_S: Final = 0.1
OWNER_DIGITS: Final = 16


@dataclass(frozen=True)
class LedgerPlace:
    """A site's ledger.

    Attributes:
        folder: Of the ledger.
        mirror: Its second place, if there is one.
        owner: Goes before the id of a run, where several consortia's runs stand in one ledger: another
            consortium could call its run the same.
    """

    folder: Path
    mirror: Path | None = None
    owner: str = ""

    @staticmethod
    def of(site: SiteFolder) -> LedgerPlace:
        """As the site's settings say; raises ConfigError or StorageError."""
        settings = read_site_settings(site.path / FILE)
        folder, mirror = Path(settings.ledger), settings.ledger_mirror
        shared = folder.parent != site.path.resolve()
        return LedgerPlace(
            folder,
            None if mirror is None else Path(mirror),
            f"{site.fingerprint[:OWNER_DIGITS]}/" if shared else "",
        )

    def opened(self) -> Ledger:
        """The ledger, once no other site of the hospital writes to it.

        Raises:
            StorageError: It is busy for too long, or as `Ledger.open`.
        """
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return Ledger.open(self.folder, mirror=self.mirror)
            except BusyError:
                if time.monotonic() > end:
                    raise
                time.sleep(LOOK_S)


def share_ledger(new: Path, other: Path) -> Path:
    """Give a new site the ledger of another one of the same hospital, and let each count the other's runs.

    Args:
        new: Folder of the new site.
        other: Of the other one; its settings get a line more.

    Returns:
        The folder of the ledger, whether or not there is one yet.

    Raises:
        ConfigError: Settings cannot be read, or changed safely; what to write by hand is said.
        StorageError: Likewise.
    """
    own, settings = new.resolve(), read_site_settings(other / FILE)
    others = [*settings.beside, str(other.resolve())]
    shared = {"ledger": settings.ledger, "ledger_mirror": settings.ledger_mirror, "beside": others}
    change_settings(own / FILE, shared, ask=None, show=_quietly)
    for folder in others:
        known = read_site_settings(Path(folder) / FILE).beside
        if str(own) not in known:
            change_settings(Path(folder) / FILE, {"beside": [*known, str(own)]}, ask=None, show=_quietly)
    return Path(settings.ledger)


def _quietly(_: str) -> None:
    """The command says what was changed."""
