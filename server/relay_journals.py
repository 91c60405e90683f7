"""The journals of a round's sums: a server that is killed while sites help to open one goes on with it.

One file a sum, of the last attempt at it, until the round is journalled. Before sites are asked to unmask
another attempt is safe, and the old one is dropped; from then on the old one is finished.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wardround.core.errors import PeerError, StorageError
from wardround.core.plan import TrainingPlan
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.phases import UNMASK
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.sums.contract import plain_name
from wardround.privacy.sums.offers import run_of
from wardround.privacy.sums.phased import PhasedCollector
from wardround.server import relay_journal

LOG = logging.getLogger(__name__)
ENDING: Final = ".relay"


@dataclass(frozen=True)
class RelayJournals:
    """Journals of one run, in a folder of their own.

    Attributes:
        folder: Where they lie.
        run_id: Of the run.
        plan: What is trained.
        roster: The members' keys.
    """

    folder: Path
    run_id: str
    plan: TrainingPlan
    roster: Roster

    def begin(self, name: str, signed: SignedOffer, quorum: int) -> PhasedCollector:
        """The collector of a new attempt at a sum, journalled from its offer on.

        Raises:
            StorageError: The journal cannot be written.
        """
        path = self._path(name)
        relay_journal.discard(path)
        walk = relay_journal.begin(path, signed, Relay(signed.offer, self.roster))
        return PhasedCollector(signed, walk, quorum)

    def opening(self, name: str, *, round: int, stage: int) -> PhasedCollector | None:
        """The collector of an attempt that sites were helping to open; None where there is none.

        Raises:
            StorageError: The journal is damaged: the run stops here, and a person decides.
        """
        path = self._path(name)
        signed = relay_journal.offered(path)
        if signed is None:
            return None
        offer = signed.offer
        own = (run_of(self.run_id, plain_name(name)), bytes.fromhex(self.plan.digest), self.roster.digest)
        if (offer.run_id, offer.plan, offer.roster) != own or offer.place[:2] != (round, stage):
            return None
        try:
            walk = relay_journal.restore(path, Relay(offer, self.roster))
        except StorageError:
            raise
        except PeerError as error:
            LOG.info("%s of round %d is tried again: %s", name, round, error.what)
            return None
        if walk.phase != UNMASK:
            return None
        return PhasedCollector.opening(signed, walk, walk.outgoing)

    def discard(self, names: Iterable[str] = ()) -> None:
        """Destroy the journals of these sums; of all where none is named.

        Raises:
            StorageError: One cannot be removed.
        """
        paths = [self._path(name) for name in names] or sorted(self.folder.glob(f"*{ENDING}"))
        for path in paths:
            relay_journal.discard(path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{ENDING}"
