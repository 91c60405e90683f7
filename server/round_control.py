"""What people may ask of a run while it trains: to stop, to stop after this round, to leave a site out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from wardround.core.errors import WardroundError


class RoundControl(Protocol):
    """What the round loop looks at; each may change at any moment, from another thread."""

    @property
    def stop_requested(self) -> bool:
        """The run is to stop at once: looked at while replies are waited for, and between rounds."""

    @property
    def drain_requested(self) -> bool:
        """The run is to stop once the round that trains is journalled."""

    @property
    def excluded(self) -> frozenset[str]:
        """Sites that no later round asks; the round that trains goes on with them."""

    def waiting_for(self, text: str, sites: Iterable[str] = ()) -> None:
        """Hear what the run waits for, and for whom; an empty text: for nothing."""


class Unasked:
    """Nobody asks for anything: a simulation, a run that nobody watches."""

    stop_requested = False
    drain_requested = False
    excluded: frozenset[str] = frozenset()

    def waiting_for(self, text: str, sites: Iterable[str] = ()) -> None:
        """Nobody hears it."""


class RunStoppedError(WardroundError):
    """Somebody asked the run to stop, and it did. Its journal stands: it can be resumed."""


def stopped() -> RunStoppedError:
    """The error by which a run stops."""
    return RunStoppedError(
        "the run was stopped", remedy="resume it: it goes on after the last round of its journal"
    )
