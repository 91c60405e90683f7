"""Where a run's correlated noise stands at a site: kept after each round, and secret for as long as it is.

Where each step's noise takes a part of the earlier ones' back, a site has to know those. What it keeps
(under its storage key, at a real site) is written after a round's steps, before their contribution may leave:

    begin, once, before the run is reserved
    each round: train from the last state → keep the next → keep the contribution, seal it → it leaves

- Killed anywhere before the seal, a site trains the round again from the same state, with fresh noise of the
  new steps: nothing of the first try ever left, so that it is as if there had been none.
- After the seal the contribution that is kept leaves again, and the ledger refuses any other.
- A round that the site is not in moves nothing: its next steps follow on the last ones that it did. Nor does
  a round that is burnt move anything back, since its contribution may have been seen.
- A state that is older than a sealed round (a folder that was restored) would noise steps of the run a second
  time: the ledger refuses it (`Charge.after`). One that is gone is begun anew, under another name, and the
  ledger refuses that as well, once anything of the run was sealed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from wardround.client.memory_files import MemoryFiles, Place, PlainFiles, SealedMemory
from wardround.client.sealed_files import LARGEST, Owner
from wardround.core.errors import ConfigError, StorageError
from wardround.privacy.noise.correlated import NoiseState
from wardround.privacy.noise.source import RandomSource
from wardround.privacy.secagg.secret import Secret

NOISE_FOLDER: Final = "noise"
KIND: Final = "noise"
_KEPT: Final = 2
"""Files: the last round's, and the one before it, from which that round is done again."""
_KEY, _ROWS, _DONE = "key", "kept", "done"
_WIDTH: Final = 8
_ROOM: Final = 2**20
"""Bytes of a file beside the noise itself."""
_NAME_DIGITS: Final = 32


@dataclass(frozen=True)
class Stand:
    """A state, and when it was.

    Attributes:
        state: Where the noise stands.
        round: After which round of the plan; 0 before the site's first.
    """

    state: NoiseState
    round: int

    @property
    def name(self) -> str:
        """Of the run's noise, in the ledger; says nothing of its key."""
        return f"banded-{hashlib.sha256(self.state.key).hexdigest()[:_NAME_DIGITS]}"


@dataclass(frozen=True)
class NoiseFile:
    """The states of one run at one site.

    Attributes:
        files: Where they lie.
    """

    files: MemoryFiles

    @staticmethod
    def plain(folder: Path) -> NoiseFile:
        """Of a simulated site, whose noise protects nobody.

        Args:
            folder: What the site keeps.
        """
        return NoiseFile(PlainFiles(folder / NOISE_FOLDER))

    @staticmethod
    def sealed(folder: Path, owner: Owner, key: Secret) -> NoiseFile:
        """Of a real site.

        Args:
            folder: Of the run.
            owner: Whose it is.
            key: The site's storage key.
        """
        return NoiseFile(SealedMemory(folder / NOISE_FOLDER, owner, key, KIND))

    def before(self, round: int, fresh: Callable[[], RandomSource]) -> Stand:
        """Where the noise stands before a round; begun, durably, where there is none.

        Args:
            round: Which.
            fresh: Words for a key.

        Raises:
            StorageError: What was kept cannot be read, or a first state cannot be written.
        """
        last = max((place.round for place in self.files.places() if place.round < round), default=None)
        if last is None:
            stand = Stand(NoiseState.begin(fresh()), 0)
            self._write(stand)
            return stand
        tensors, notes = self.files.read(Place(last))
        try:
            state = NoiseState(tensors[_KEY].tobytes(), int(notes[_DONE]), tensors[_ROWS])
        except (KeyError, ValueError) as error:
            raise StorageError(
                f"{self.files.path(Place(last))} holds no state of noise", found=type(error).__name__,
                remedy="finish the run with the version that wrote it; otherwise this site takes no further "
                "part in it",
            ) from error  # fmt: skip
        return Stand(state, last)

    def keep(self, state: NoiseState, *, round: int) -> None:
        """Keep the state after a round, and the one before it; durable when this returns.

        Raises:
            StorageError: It cannot be written: nothing of the round may leave.
        """
        self._write(Stand(state, round))
        for old in [place for place in self.files.places() if place.round <= round][:-_KEPT]:
            self.files.remove(old)

    def _write(self, stand: Stand) -> None:
        state = stand.state
        key = np.frombuffer(state.key, dtype=np.uint8)
        self.files.write(
            Place(stand.round), {_KEY: key, _ROWS: state.kept}, {_DONE: str(state.done)}
        )  # fmt: skip


def require_room(bands: int, coordinates: int) -> None:
    """Refuse a run whose noise no file can hold: of the last b − 1 steps, 8 bytes a coordinate.

    Raises:
        ConfigError: It is too large.
    """
    needed = (bands - 1) * coordinates * _WIDTH
    if needed > LARGEST - _ROOM:
        raise ConfigError(
            "the noise of this run is more than a site can keep",
            found=f"{bands - 1} steps of {coordinates:,} coordinates, {needed / 2**30:.1f} GiB",
            expected=f"at most {LARGEST / 2**30:.0f} GiB",
            remedy="set privacy.bands to less, train fewer parameters, or set privacy.mechanism to poisson",
        )  # fmt: skip
