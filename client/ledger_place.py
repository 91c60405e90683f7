"""Where a site's privacy ledger lies: in its own folder, or one for all memberships of a hospital."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.row_file import FILE as ROWS
from wardround.client.ledger.row_file import BusyError
from wardround.client.membership.site_folder import SiteFolder
from wardround.client.settings_edit import change_settings
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import StorageError
from wardround.runtime.files import write_atomic

LEDGER: Final = "ledger"
"""Its folder in the site's own, where the settings name no other."""
PATIENCE_S: Final = 300.0
"""For the ledger, while another site of the hospital writes to it: seconds at a time, for each round."""
LOOK_S: Final = 0.1
MARK: Final = "has-ledger"
"""In a site's folder, once a ledger was seen or made there: without one it accepts nothing from then on."""
_SAYS: Final = (
    b"This site has a privacy ledger. While it cannot be found the site takes no part in any run.\n"
)
OWNER_DIGITS: Final = 16


@dataclass(frozen=True)
class LedgerPlace:
    """A site's ledger.

    Attributes:
        folder: Of the ledger.
        mirror: Its second place, if there is one.
        owner: Goes before the id of a run, where several consortia's runs stand in one ledger: another
            consortium could call its run the same.
        named: The site's settings name it, by a mirror or a place of its own.
        sites: Folders of the site and of those beside it, where it is noted that there is one.
    """

    folder: Path
    mirror: Path | None = None
    owner: str = ""
    named: bool = False
    sites: tuple[Path, ...] = field(default=(), compare=False)

    @staticmethod
    def of(site: SiteFolder) -> LedgerPlace:
        """As the site's settings say; raises ConfigError or StorageError."""
        settings = read_site_settings(site.path / FILE)
        folder, mirror = Path(settings.ledger), settings.ledger_mirror
        sites = (site.path.resolve(), *map(Path, settings.beside))
        return LedgerPlace(
            folder, None if mirror is None else Path(mirror), owner_in(folder, site),
            named=mirror is not None or folder not in {one / LEDGER for one in sites}, sites=sites,
        )  # fmt: skip

    def is_there(self) -> bool:
        """Whether there is a ledger; False where there never was one.

        Raises:
            StorageError: There is none any more, or not yet where the settings name it: a disk that is not
                mounted, a folder with another name. That is no site without a ledger.
        """
        if self.folder.exists():
            return True
        if self.named or self.mirror is not None or any((site / MARK).exists() for site in self.sites):
            raise StorageError(
                "this site's privacy ledger is not where its settings have it", found="nothing",
                expected=f"{self.folder}",
                remedy="mount its disk, or put the folder back from its backup; where it is lost, or there "
                "never was one, wardround ledger create makes it and enters what the site accepted before",
            )  # fmt: skip
        return False

    def require(self) -> bool:
        """As `is_there`; what is there is noted in the site's folder, so that it is missed later."""
        if not self.is_there():
            return False
        if (self.folder / ROWS).exists() and self.sites:
            note_ledger(self.sites[0])
        return True

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


def owner_in(ledger: Path, site: SiteFolder) -> str:
    """What goes before the id of a site's run in a ledger; nothing in a ledger in the site's own folder."""
    return "" if ledger.parent == site.path.resolve() else f"{site.fingerprint[:OWNER_DIGITS]}/"


def note_ledger(site: Path) -> None:
    """Note in a site's folder that it has a ledger; durable when this returns.

    Raises:
        StorageError: It cannot be written.
    """
    if not (site / MARK).exists():
        write_atomic(site / MARK, _SAYS, private=True)


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
