"""What a site keeps from the process that trains: its identity key, its replay records, its ledger, heads.

The worker parses models and adapters, so it asks for these and never holds them; in a deployment the
supervisor answers, in another process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wardround.client.charges import Charges, LedgerCharges, Made
from wardround.client.ledger_place import LedgerPlace
from wardround.client.membership.site_folder import SiteFolder
from wardround.client.peer_heads import PeerHeads
from wardround.client.sealed_files import Owner
from wardround.client.secure_record import FileDrawRecord, FileRecord
from wardround.core.errors import PolicyError
from wardround.privacy.secagg.admission import Heads, Record
from wardround.privacy.secagg.draw import DrawRecord
from wardround.privacy.secagg.identity import KeySigner, Signer
from wardround.privacy.secagg.secret import Secret


class Keeper(Protocol):
    """Keys and records of one site."""

    @property
    def signer(self) -> Signer:
        """Signs with the site's identity key."""

    def record(self, owner: Owner, sum: str) -> Record:
        """What a run's sum must not forget."""

    def draw_record(self, owner: Owner) -> DrawRecord:
        """What a run's draw of groups must not forget."""

    def charges(self) -> Charges:
        """The site's privacy ledger.

        Raises:
            PolicyError: The site has none, and never had one.
            StorageError: The one that it has is not there.
        """

    def heads(self, sum: str) -> Heads:
        """Heads of ledgers, this site's and its peers', as they go with a sum."""


@dataclass(frozen=True)
class OwnKeeper:
    """Keys and records in this process.

    Attributes:
        signer: The site's identity key.
        folder: Of the site.
        storage: Its storage key, which seals the records.
        ledger: Where its privacy ledger lies, as of now.
        consortium: Fingerprint of its consortium's key.
    """

    signer: KeySigner
    folder: Path
    storage: Secret
    ledger: Callable[[], LedgerPlace]
    consortium: str = ""
    _heads: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _made: Made = field(default_factory=Made, repr=False)

    def record(self, owner: Owner, sum: str) -> Record:
        """As `Keeper`: a sealed file in the run's folder."""
        return FileRecord(self._records(owner), owner, sum, self.storage)

    def draw_record(self, owner: Owner) -> DrawRecord:
        """As `Keeper`: a sealed file in the run's folder."""
        return FileDrawRecord(self._records(owner), owner, self.storage)

    def charges(self) -> Charges:
        """As `Keeper`: the ledger that the site's settings name."""
        place = self.ledger()
        if not place.require():
            raise PolicyError(
                "this site has no privacy ledger, and the plan trains privately",
                expected=f"{place.folder.name}/",
                remedy="wardround ledger create makes one, with the ε that this site grants its patients",
            )
        return LedgerCharges(place.opened, place.owner, self._made)

    def heads(self, sum: str) -> Heads:
        """As `Keeper`: its ledger's, and a file in its folder."""
        return PeerHeads(self.folder, self.consortium, sum, self.ledger, self._heads)

    def _records(self, owner: Owner) -> Path:
        return self.folder / "records" / owner.run_id


def own_keeper(site: SiteFolder) -> OwnKeeper:
    """Keys and records of a site, from its folder; raises StorageError or ConfigError."""
    return OwnKeeper(
        site.signer(), site.path, site.storage_key(), lambda: LedgerPlace.of(site), site.fingerprint
    )
