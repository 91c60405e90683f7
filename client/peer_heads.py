"""Ledgers' heads in secure aggregation: a site shows its own, keeps its peers', and heeds what they kept.

A restored backup of a ledger is a whole ledger. Its peers can tell: each keeps the last head that this site
showed in a sum that was opened, and gives it back before the site's next vector leaves. Heads are encrypted
for the site alone (`ledger/heads.py`), so that peers learn nothing from them, and nobody can make one up.

    peer-heads.json     in the site's folder: sum → peer → the last head of that peer's ledger

One head of each member and sum, whatever run it was in; the folder is of one consortium.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from wardround.client.ledger.heads import BLINDED_BYTES, Head
from wardround.client.ledger.seen import note_strangers
from wardround.client.ledger_place import LedgerPlace
from wardround.core.errors import PeerError, RolledBackError
from wardround.privacy.secagg.messages import NO_HEAD
from wardround.privacy.secagg.offer import SiteName, Wire
from wardround.runtime.files import write_atomic
from wardround.runtime.roster import MOST_MEMBERS
from wardround.runtime.small_files import read_value, value_bytes

LOG = logging.getLogger(__name__)
FILE: Final = "peer-heads.json"
LARGEST_FILE: Final = 16 * 2**20
MANY: Final = 2
"""So many peers who know another ledger, when none knows this one or there is none, are no accident."""
_REMEDY: Final = (
    "remove it: what this site has kept for its peers is lost, which others keep as well, and is learnt anew"
)
OneHead = Annotated[bytes, Field(min_length=BLINDED_BYTES, max_length=BLINDED_BYTES)]
OfMembers = Annotated[dict[SiteName, OneHead], Field(max_length=MOST_MEMBERS)]


class KeptHeads(Wire):
    """The file."""

    version: Literal[1] = 1
    sums: dict[str, OfMembers] = Field(default_factory=dict)
    """Sum → peer → its head."""


@dataclass(frozen=True)
class PeerHeads:
    """Heads as `secagg.admission.Heads` has them, of one sum.

    Attributes:
        folder: Of the site.
        consortium: Fingerprint of the consortium's key, which this site's people pinned: heads are shown to
            one consortium each, and another one's are none.
        sum: Name of the sum.
        ledger: Where the site's privacy ledger lies, as of now.
        lock: Held while the file is read and written.
    """

    folder: Path
    consortium: str
    sum: str
    ledger: Callable[[], LedgerPlace]
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def own(self) -> bytes:
        """As `Heads`: as long without a ledger as with one."""
        place = self.ledger()
        if not place.require():
            return NO_HEAD
        with place.opened() as ledger:
            return ledger.blinded_head(self.consortium)

    def kept(self, sites: Collection[str]) -> Mapping[str, bytes]:
        """As `Heads`: one for each, so that nobody sees in the length of a box what is kept of whom."""
        with self.lock:
            known = self._read().sums.get(self.sum, {})
        return {site: known.get(site, NO_HEAD) for site in sites}

    def keep(self, heads: Mapping[str, bytes]) -> None:
        """As `Heads`: whoever shows none keeps the place that it has."""
        shown = {site: head for site, head in heads.items() if _is_head(head)}
        with self.lock:
            file = self._read()
            known = file.sums.get(self.sum, {})
            after = known | shown
            if after == known:
                return
            if len(after) > MOST_MEMBERS:  # the roster has no more: others have left it
                after = shown
            sums = {**file.sums, self.sum: after}
            write_atomic(self._path, value_bytes(KeptHeads(sums=sums)), private=True)

    def returned(self, heads: Mapping[str, bytes]) -> None:
        """As `Heads`: what nobody was shown by this ledger is passed over, and said."""
        given = {site: head for site, head in heads.items() if head.strip(b"\0")}
        if not given:
            return
        place = self.ledger()
        if not place.require():
            LOG.error(
                "%d peers have seen a privacy ledger of this site, and it has none any more: if it was lost, "
                "put it back from its backup", len(given),
            )  # fmt: skip
            if len(given) >= MANY:
                raise RolledBackError(
                    "peers have seen a privacy ledger of this site, and it has none any more",
                    found=f"{len(given)} peers", expected="the ledger that they have seen",
                    remedy="put it back from its backup; where it is lost, make it anew (wardround ledger "
                    "create) and write its cap off (wardround ledger write-off)",
                )  # fmt: skip
            return
        with place.opened() as ledger:
            found, strangers = list[Head](), list[str]()
            for site, head in sorted(given.items()):
                try:
                    found.append(ledger.seen_head(head, self.consortium))
                except PeerError:
                    strangers.append(site)
                    LOG.warning("what %s kept of this site's privacy ledger is no head of it", site)
            if len(strangers) >= MANY and not found:
                LOG.error(
                    "%d peers know another privacy ledger of this site, and none knows this one: if it was "
                    "made anew, what the other one had charged is not counted", len(strangers),
                )  # fmt: skip
                note_strangers(place.folder, len(strangers), int(time.time()))
            ledger.require_head(found)

    @property
    def _path(self) -> Path:
        return self.folder / FILE

    def _read(self) -> KeptHeads:
        if not self._path.exists():
            return KeptHeads()
        return read_value(self._path, KeptHeads, remedy=_REMEDY, largest=LARGEST_FILE)


def _is_head(head: bytes) -> bool:
    return len(head) == BLINDED_BYTES and head != NO_HEAD
