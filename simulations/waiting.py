"""What simulated sites contributed last, on disk: of many sites those that wait take no memory.

A site keeps its contribution until its round is verified or burnt, and under secure aggregation it holds it
over several exchanges, while all other sites train. So each lies in a file that is mapped into memory: the
operating system has of it what is being read, and drops it when it needs the room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from wardround.client.parties import Contributions, ContributionsInMemory, Kept
from wardround.core.errors import StorageError
from wardround.core.packed import Array
from wardround.core.plan import Encoding
from wardround.privacy.packing import word_of
from wardround.privacy.sums.contract import Lanes
from wardround.strategies.contract import SumStrategy

IN_MEMORY: Final = 256 << 20
"""Bytes that the contributions of all sites of an arm may take together; beyond it they lie on disk."""


def contributions_of(
    strategy: SumStrategy, encoding: Encoding, sites: int, folder: Path, most: int = IN_MEMORY
) -> Contributions:
    """Where a site keeps what it contributed last: in memory as long as there is room for all sites.

    Args:
        strategy: Says how many coordinates a contribution has.
        encoding: Of a coordinate.
        sites: Of the arm.
        folder: Of the site.
        most: Bytes that all sites may take together.
    """
    coordinates = max(strategy.statistics_layout(stage).size for stage in range(strategy.stages))
    if sites * coordinates * word_of(encoding.bits).itemsize <= most:
        return ContributionsInMemory()
    return ContributionsOnDisk(folder)


@dataclass
class ContributionsOnDisk(Contributions):
    """Name of a sum → the last contribution to it, its coordinates in a file of their own.

    They are gone when the process ends, as those in memory: what a resumed simulation finds it writes anew.

    Attributes:
        folder: Of the site; made when there is something to keep.
    """

    folder: Path
    _kept: dict[str, Kept] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Kept:
        """Place and contribution; raises KeyError where nothing is kept."""
        return self._kept[name]

    def __setitem__(self, name: str, kept: Kept) -> None:
        """Keep it in place of the one before.

        Raises:
            StorageError: It cannot be written; what was there is gone.
        """
        place, lanes = kept
        self._kept.pop(name, None)
        coordinates = self._mapped(name, lanes.coordinates) if lanes.coordinates.size else lanes.coordinates
        self._kept[name] = place, Lanes(coordinates, lanes.counters)

    def __delitem__(self, name: str) -> None:
        """Forget it; raises KeyError where nothing is kept."""
        del self._kept[name]
        self._file(name).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        """Names of the sums to which something is kept."""
        return iter(list(self._kept))

    def __len__(self) -> int:
        """How many."""
        return len(self._kept)

    def light(self, name: str, lanes: Lanes) -> Lanes:  # noqa: ARG002 - the base class's
        """What lies on disk."""
        return self._kept[name][1]

    def forget(self, *, round: int) -> None:
        """As the base class says; never raises."""
        for name in [name for name, (place, _) in self._kept.items() if place[0] <= round]:
            del self[name]

    def _mapped(self, name: str, coordinates: Array) -> Array:
        path = self._file(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # who still reads the one before reads that one
            coordinates.tofile(path)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written", found=error.strerror or type(error).__name__,
                expected=f"room for {coordinates.nbytes} bytes",
                remedy="make room, then resume the run from its folder",
            ) from error  # fmt: skip
        mapped: Array = np.memmap(path, dtype=coordinates.dtype, mode="r")
        return mapped

    def _file(self, name: str) -> Path:
        return self.folder / f"waiting-{name}.bin"
