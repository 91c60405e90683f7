"""A site's checkpoints inside a local round: one sealed file a run, which never leaves the site.

Each one replaces the one before and destroys its key; the last one goes when the round's contribution is
kept. Who restarts with the same round, broadcast, rows and steps goes on from it; whatever else lies there is
left alone, and the round begins anew.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from wardround.client.child import CLOSED, CLOSING
from wardround.client.sealed_files import ForeignFileError, Label, Owner, SealedFile
from wardround.core.errors import PeerError, StorageError, WardroundError
from wardround.core.packed import Layout, Packed
from wardround.privacy.noise.correlated import NoiseState
from wardround.privacy.secagg.secret import Secret
from wardround.training.checkpoint import Checkpoint, Checkpoints

LOG = logging.getLogger(__name__)
KIND: Final = "checkpoint"
ADAPTER: Final = "adapter"
LOSSES: Final = "losses"
NOTES: Final = "notes"
OPTIMISER: Final = "optimiser/"
GENERATOR: Final = "generator/"
GRADIENT: Final = "gradient"
NOISE, NOISE_KEY = "noise/kept", "noise/key"
_REMEDY: Final = "nothing has to be done: the round begins anew"


@dataclass(frozen=True)
class RoundPlace:
    """Which local round a checkpoint is of.

    Attributes:
        round: Which.
        broadcast: Digest of what it started from, in hex.
        rows: What it trains on, as `Site.rows`: where that changed, the batches are others.
        layout: Of the adapter.
    """

    round: int
    broadcast: str
    rows: str
    layout: Layout


@dataclass
class CheckpointFile:
    """The checkpoint of one run.

    Attributes:
        folder: Of this site and run.
        owner: Whose it is.
        key: The site's storage key.
        every_s: Seconds between two checkpoints of a round.
        clock: Monotonic, in seconds.
        closing: Whether the round is to be left at its next step.
        leave: Leaves it: ends this process.
    """

    folder: Path
    owner: Owner
    key: Secret
    every_s: float
    clock: Callable[[], float] = field(default=time.monotonic)
    closing: Callable[[], bool] = CLOSING.is_set
    leave: Callable[[], object] = lambda: os._exit(CLOSED)

    def load(self, place: RoundPlace) -> Checkpoint | None:
        """Where an earlier process left this round; None where it did not, or what it left cannot be used."""
        try:
            found = self._file.read()
            if found is None:
                return None
            label, content = found
            if (label.round, label.broadcast.hex()) != (place.round, place.broadcast):
                return None
            checkpoint, rows = _checkpoint(content, place.layout)
        except WardroundError as error:
            LOG.warning("a checkpoint cannot be used, the round begins anew: %s", error)
            return None
        if rows != place.rows:
            LOG.warning("the rows have changed since the checkpoint: the round begins anew")
            return None
        LOG.info("round %d goes on after step %d of %d", place.round, checkpoint.done, checkpoint.of)
        return checkpoint

    def of(self, place: RoundPlace, left: Callable[[int], None] | None = None) -> Checkpoints:
        """Where the checkpoints of a round go.

        Args:
            place: Of the round.
            left: Is told after how many steps this process leaves it, once its checkpoint is kept and no
                other step will be made.
        """
        return _Writer(self, place, self.clock() + self.every_s, left)

    def write(self, checkpoint: Checkpoint, place: RoundPlace) -> None:
        """Keep one in place of the one before.

        Raises:
            StorageError: It cannot be written, or the one before is another run's; that stays.
        """
        self._file.write(
            _content(checkpoint, place.rows), erase=True, round=place.round,
            broadcast=bytes.fromhex(place.broadcast),
        )  # fmt: skip

    def forget(self, *, round: int) -> None:
        """Destroy what is of this round or an earlier one, or cannot be read; as `destroy`."""
        try:
            label = self._file.label_found()
        except ForeignFileError:
            return
        except StorageError:
            self.destroy()
            return
        if label is not None and label.round <= round:
            self.destroy()

    def destroy(self) -> None:
        """Destroy what there is; where that cannot be done it is said, and the next one replaces it."""
        try:
            self._file.destroy()
        except StorageError as error:
            LOG.warning("a checkpoint cannot be destroyed: %s", error)

    @property
    def _file(self) -> SealedFile:
        return SealedFile(
            self.folder / f"{KIND}.sealed", Label(owner=self.owner, kind=KIND), self.key, _REMEDY
        )


@dataclass
class _Writer:
    """The checkpoints of one round."""

    file: CheckpointFile
    place: RoundPlace
    next_s: float
    left: Callable[[int], None] | None = None

    def due(self) -> bool:
        return self.file.closing() or self.file.clock() >= self.next_s

    def keep(self, checkpoint: Checkpoint) -> None:
        try:
            self.file.write(checkpoint, self.place)
        except StorageError as error:
            LOG.warning("no checkpoint could be kept, training goes on: %s", error)
        else:
            if self.file.closing():
                LOG.warning(
                    "round %d is left after step %d of %d: the site's working hours are over",
                    self.place.round, checkpoint.done, checkpoint.of,
                )  # fmt: skip
                self._tell(checkpoint.done)
                self.file.leave()
        self.next_s = self.file.clock() + self.file.every_s  # from its end: a slow disk must not be all we do

    def _tell(self, done: int) -> None:
        if self.left is None:
            return
        try:
            self.left(done)
        except WardroundError as error:
            LOG.warning("the round that is left stays charged in full: %s", error)


def _content(checkpoint: Checkpoint, rows: str) -> bytes:
    notes = {
        "done": checkpoint.done,
        "of": checkpoint.of,
        "rows": rows,
        "targets": checkpoint.targets,
        "clip_norm": checkpoint.clip_norm,
        "layout": checkpoint.adapter.layout.digest,
        "noised": None if checkpoint.noise is None else checkpoint.noise.done,
    }
    arrays: dict[str, NDArray[Any]] = {
        ADAPTER: checkpoint.adapter.vector,
        LOSSES: checkpoint.losses,
        NOTES: np.frombuffer(json.dumps(notes).encode(), dtype=np.uint8),
    }
    arrays |= {OPTIMISER + name: array for name, array in checkpoint.optimiser_state.items()}
    arrays |= {GENERATOR + name: array for name, array in checkpoint.generators.items()}
    if checkpoint.gradient is not None:
        arrays[GRADIENT] = checkpoint.gradient.vector
    if checkpoint.noise is not None:
        arrays[NOISE] = checkpoint.noise.kept
        arrays[NOISE_KEY] = np.frombuffer(checkpoint.noise.key, dtype=np.uint8)
    return safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _checkpoint(content: bytes, layout: Layout) -> tuple[Checkpoint, str]:
    """What `_content` made, and the rows that it was made over.

    Raises:
        StorageError: It is not of this version, or of another adapter.
    """
    try:
        arrays = safetensors.numpy.load(content)
        notes = json.loads(arrays[NOTES].tobytes())
        if notes["layout"] != layout.digest:
            raise StorageError("the checkpoint is of another adapter", remedy=_REMEDY)
        checkpoint = Checkpoint(
            done=int(notes["done"]),
            of=int(notes["of"]),
            adapter=Packed(layout, arrays[ADAPTER]),
            optimiser_state=_under(OPTIMISER, arrays),
            losses=arrays[LOSSES],
            targets=int(notes["targets"]),
            generators=_under(GENERATOR, arrays),
            clip_norm=notes["clip_norm"],
            gradient=Packed(layout, arrays[GRADIENT]) if GRADIENT in arrays else None,
            noise=NoiseState(arrays[NOISE_KEY].tobytes(), int(notes["noised"]), arrays[NOISE])
            if NOISE in arrays
            else None,
        )
    except (SafetensorError, KeyError, ValueError, TypeError, PeerError) as error:
        raise StorageError(
            "the checkpoint is not of this version", found=type(error).__name__, remedy=_REMEDY
        ) from error
    return checkpoint, str(notes["rows"])


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
