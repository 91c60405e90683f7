"""What a site keeps between rounds: a strategy's private state, the optimiser's, what it has not sent yet.

One file a round, so that a round that is asked again (a killed server, a resumed simulation) starts from
what the site knew before it. Where a round has several stages, one more file a stage: what the site trained
in the first one, from which it contributes in the others. A real site seals them (`memory_files.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from wardround.client.memory_files import MemoryFiles, Place, PlainFiles, SealedMemory
from wardround.client.sealed_files import Owner
from wardround.core.errors import StorageError
from wardround.core.packed import Adapter, Array, Layout, Packed
from wardround.privacy.secagg.secret import Secret
from wardround.strategies.contract import SiteMemory

KEPT_FILES = 2
MEMORY_FOLDER: Final = "memory"
"""Of a run, in the folder of the run at a real site."""
LAYOUT, MEMORY, OPTIMISER, ADAPTER = "layout/", "memory/", "optimiser/", "adapter"
CLIP_NORM = "privacy/clip_norm"
REST = "compression/rest"
GRADIENT = f"{ADAPTER}/gradient"
FRAME = "frame"


@dataclass(frozen=True)
class Kept:
    """State of one site after a round, or after a stage of one."""

    memory: SiteMemory = field(default_factory=SiteMemory)
    optimiser_state: dict[str, Array] | None = None
    clip_norm: float | None = None
    """Of the next private step, where it adapts: a function of what was released."""
    frame: Adapter | None = None
    """The adapter that `optimiser_state` is of: as the last step left it here, with the trained directions
    first. None where there is no state, or where no fold turns the factors."""
    rest: Array | None = None
    """Of the contributions so far what was not sent, float32, where the plan's compression keeps that."""


@dataclass(frozen=True)
class Figures:
    """What is counted of a local round.

    Attributes:
        weight: The site's weight in the mean.
        examples: Distinct rows that it trained on.
        targets: Loss terms processed.
        steps: Optimiser steps.
        loss_sum: Summed loss, in nats.
    """

    weight: int
    examples: int
    targets: int
    steps: int
    loss_sum: float


@dataclass(frozen=True)
class Trained:
    """What a site trained in the first stage of a round.

    Attributes:
        broadcast: Digest of the broadcast that it started from.
        before: Adapter that it loaded, float32.
        after: Adapter after the last step, float32.
        figures: Weight, rows, steps and loss.
        optimiser_state: To keep for the next round, or None where the plan resets it.
        update: Instead of `after`, where noise is added to the contribution itself (`LocalResult`). It never
            lies on disk.
        clip_norm: To keep for the next round, where it adapts.
        gradient: As of `LocalUpdate`.
    """

    broadcast: str
    before: Adapter
    after: Adapter
    figures: Figures
    optimiser_state: dict[str, Array] | None = None
    update: Packed | None = None
    clip_norm: float | None = None
    gradient: Packed | None = None

    def kept(self, memory: SiteMemory, rest: Array | None = None, *, turns: bool = False) -> Kept:
        """What the site keeps of it after the stage that left this memory, and this rest unsent.

        Args:
            memory: The strategy's.
            rest: What was not sent.
            turns: Whether the strategy's folds turn the factors, and kept moments have to turn with them.
        """
        frame = self.after if turns and self.optimiser_state is not None else None
        return Kept(memory, self.optimiser_state, self.clip_norm, frame, rest)


@dataclass(frozen=True)
class SiteStore:
    """Files in one folder: `round-00003`, and `stage-00003-0` where stages follow.

    Nothing is written where there is nothing to keep.

    Attributes:
        folder: Where they lie.
        files: How they lie there; None: plain, as a simulation has them.
    """

    folder: Path
    files: MemoryFiles | None = None

    @staticmethod
    def sealed(folder: Path, owner: Owner, key: Secret) -> SiteStore:
        """Of a real site; raises as `SealedMemory.open`."""
        return SiteStore(folder, SealedMemory.open(folder, owner, key))

    def load(self, *, before_round: int) -> Kept:
        """What was kept after the last round before this one.

        Raises:
            StorageError: The file does not hold what was written.
        """
        last = self.last(before_round=before_round)
        return Kept() if last is None else _kept(*self._files.read(Place(last)))

    def last(self, *, before_round: int) -> int | None:
        """The round whose state `load` gives; None where nothing was kept before."""
        return max((number for number in self._rounds() if number < before_round), default=None)

    def save(self, kept: Kept, *, round: int) -> None:
        """Keep the state after a round, and the one before it: this round may be asked again.

        Raises:
            StorageError: It cannot be written.
        """
        tensors, notes = _as_tensors(kept)
        if not tensors:
            return
        self._files.write(Place(round), tensors, notes)
        # Counted in files and not in round numbers: a site does not take part in every round.
        for old in [number for number in self._rounds() if number <= round][:-KEPT_FILES]:
            self._files.remove(Place(old))

    def forget(self, *, round: int) -> None:
        """Drop what a burnt round left: the next one goes on from what the site knew before it.

        Raises:
            StorageError: It cannot be removed.
        """
        self._files.remove(Place(round))

    def forget_stages(self, *, round: int) -> None:
        """Drop what the stages of this round or an earlier one left: nobody asks for a later one any more.

        Raises:
            StorageError: It cannot be removed.
        """
        for place in self._files.places():
            if place.stage is not None and place.round <= round:
                self._files.remove(place)

    def load_stage(self, *, round: int, stage: int) -> tuple[Trained, Kept] | None:
        """What was trained in a round, and the state after that stage of it; None where there is nothing.

        Raises:
            StorageError: The file does not hold what was written.
        """
        path = self._files.path(Place(round, stage))
        if not path.exists():
            return None
        tensors, notes = self._files.read(Place(round, stage))
        try:
            layout = Layout.model_validate_json(notes[ADAPTER])
            before, after = (Packed(layout, tensors[f"{ADAPTER}/{when}"]) for when in ("before", "after"))
            figures = Figures(**json.loads(notes["figures"]))
            broadcast = notes["broadcast"]
        except (KeyError, ValueError, TypeError) as error:
            raise StorageError(f"{path} holds no trained stage", found=type(error).__name__) from error
        kept = _kept(tensors, notes)
        gradient = Packed(layout, tensors[GRADIENT]) if GRADIENT in tensors else None
        return Trained(
            broadcast, before, after, figures, kept.optimiser_state, clip_norm=kept.clip_norm,
            gradient=gradient,
        ), kept  # fmt: skip

    def save_stage(self, trained: Trained, memory: SiteMemory, *, round: int, stage: int) -> None:
        """Keep what a stage leaves to the next one; what other rounds left goes.

        Raises:
            StorageError: It cannot be written.
        """
        tensors, notes = _as_tensors(trained.kept(memory))
        tensors |= {f"{ADAPTER}/before": trained.before.vector, f"{ADAPTER}/after": trained.after.vector}
        if trained.gradient is not None:
            tensors[GRADIENT] = trained.gradient.vector
        notes |= {
            ADAPTER: trained.before.layout.model_dump_json(),
            "figures": json.dumps(asdict(trained.figures)),
            "broadcast": trained.broadcast,
        }
        self._files.write(Place(round, stage), tensors, notes)
        for place in self._files.places():
            if place.stage is not None and place.round != round:
                self._files.remove(place)

    @property
    def _files(self) -> MemoryFiles:
        return self.files or PlainFiles(self.folder)

    def _rounds(self) -> list[int]:
        return [place.round for place in self._files.places() if place.stage is None]


def _as_tensors(kept: Kept) -> tuple[dict[str, Array], dict[str, str]]:
    slots = kept.memory.slots
    tensors: dict[str, Array] = {MEMORY + name: slot.vector for name, slot in slots.items()}
    tensors |= {OPTIMISER + name: array for name, array in (kept.optimiser_state or {}).items()}
    if kept.clip_norm is not None:
        tensors[CLIP_NORM] = np.array(kept.clip_norm)
    if kept.rest is not None:
        tensors[REST] = kept.rest
    notes = {LAYOUT + name: slot.layout.model_dump_json() for name, slot in slots.items()}
    if kept.frame is not None:
        tensors[FRAME], notes[FRAME] = kept.frame.vector, kept.frame.layout.model_dump_json()
    return tensors, notes


def _kept(tensors: Mapping[str, Array], notes: Mapping[str, str]) -> Kept:
    slots = {
        name: Packed(Layout.model_validate_json(notes[LAYOUT + name]), tensors[MEMORY + name])
        for name in _under(LAYOUT, notes)
    }
    optimiser = {name: tensors[OPTIMISER + name] for name in _under(OPTIMISER, tensors)}
    clip_norm = float(tensors[CLIP_NORM]) if CLIP_NORM in tensors else None
    frame = Packed(Layout.model_validate_json(notes[FRAME]), tensors[FRAME]) if FRAME in tensors else None
    return Kept(SiteMemory(slots), optimiser or None, clip_norm, frame, tensors.get(REST))


def _under(prefix: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
