"""What a site keeps between rounds: a strategy's private state, the optimiser's, what it has not sent yet.

One file a round, so that a round that is asked again (a killed server, a resumed simulation) starts from
what the site knew before it. Where a round has several stages, one more file a stage: what the site trained
in the first one, from which it contributes in the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from wardround.core.errors import StorageError
from wardround.core.packed import Adapter, Array, Layout, Packed
from wardround.runtime.files import load_tensors, save_tensors, storing
from wardround.strategies.contract import SiteMemory

KEPT_FILES = 2
LAYOUT, MEMORY, OPTIMISER, ADAPTER = "layout/", "memory/", "optimiser/", "adapter"
CLIP_NORM = "privacy/clip_norm"
REST = "compression/rest"
GRADIENT = f"{ADAPTER}/gradient"


@dataclass(frozen=True)
class Kept:
    """State of one site after a round, or after a stage of one."""

    memory: SiteMemory = field(default_factory=SiteMemory)
    optimiser_state: dict[str, Array] | None = None
    clip_norm: float | None = None
    """Of the next private step, where it adapts: a function of what was released."""
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

    def kept(self, memory: SiteMemory, rest: Array | None = None) -> Kept:
        """What the site keeps of it after the stage that left this memory, and this rest unsent."""
        return Kept(memory, self.optimiser_state, self.clip_norm, rest)


@dataclass(frozen=True)
class SiteStore:
    """Files in one folder: `round-00003.safetensors`, and `stage-00003-0.safetensors` where stages follow.

    Nothing is written where there is nothing to keep.
    """

    folder: Path

    def load(self, *, before_round: int) -> Kept:
        """What was kept after the last round before this one.

        Raises:
            StorageError: The file does not hold what was written.
        """
        rounds = [number for number in self._rounds() if number < before_round]
        if not rounds:
            return Kept()
        tensors, notes = load_tensors(self._path(max(rounds)))
        return _kept(tensors, notes)

    def save(self, kept: Kept, *, round: int) -> None:
        """Keep the state after a round, and the one before it: this round may be asked again.

        Raises:
            StorageError: It cannot be written.
        """
        tensors, notes = _as_tensors(kept)
        if not tensors:
            return
        save_tensors(self._path(round), tensors, notes)
        # Counted in files and not in round numbers: a site does not take part in every round.
        for old in [number for number in self._rounds() if number <= round][:-KEPT_FILES]:
            self._path(old).unlink(missing_ok=True)

    def forget(self, *, round: int) -> None:
        """Drop what a burnt round left: the next one goes on from what the site knew before it.

        Raises:
            StorageError: It cannot be removed.
        """
        with storing(self.folder):
            self._path(round).unlink(missing_ok=True)

    def load_stage(self, *, round: int, stage: int) -> tuple[Trained, Kept] | None:
        """What was trained in a round, and the state after that stage of it; None where there is nothing.

        Raises:
            StorageError: The file does not hold what was written.
        """
        path = self._stage_path(round, stage)
        if not path.exists():
            return None
        tensors, notes = load_tensors(path)
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
        path = self._stage_path(round, stage)
        save_tensors(path, tensors, notes)
        for other in self.folder.glob("stage-*.safetensors"):
            if not other.name.startswith(f"stage-{round:05d}-"):
                other.unlink(missing_ok=True)

    def _path(self, round: int) -> Path:
        return self.folder / f"round-{round:05d}.safetensors"

    def _stage_path(self, round: int, stage: int) -> Path:
        return self.folder / f"stage-{round:05d}-{stage}.safetensors"

    def _rounds(self) -> list[int]:
        return sorted(
            int(path.stem.removeprefix("round-")) for path in self.folder.glob("round-*.safetensors")
        )


def _as_tensors(kept: Kept) -> tuple[dict[str, Array], dict[str, str]]:
    slots = kept.memory.slots
    tensors: dict[str, Array] = {MEMORY + name: slot.vector for name, slot in slots.items()}
    tensors |= {OPTIMISER + name: array for name, array in (kept.optimiser_state or {}).items()}
    if kept.clip_norm is not None:
        tensors[CLIP_NORM] = np.array(kept.clip_norm)
    if kept.rest is not None:
        tensors[REST] = kept.rest
    return tensors, {LAYOUT + name: slot.layout.model_dump_json() for name, slot in slots.items()}


def _kept(tensors: Mapping[str, Array], notes: Mapping[str, str]) -> Kept:
    slots = {
        name: Packed(Layout.model_validate_json(notes[LAYOUT + name]), tensors[MEMORY + name])
        for name in _under(LAYOUT, notes)
    }
    optimiser = {name: tensors[OPTIMISER + name] for name in _under(OPTIMISER, tensors)}
    clip_norm = float(tensors[CLIP_NORM]) if CLIP_NORM in tensors else None
    return Kept(SiteMemory(slots), optimiser or None, clip_norm, tensors.get(REST))


def _under(prefix: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
