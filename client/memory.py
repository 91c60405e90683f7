"""What a site keeps between rounds: a strategy's private state and the optimiser's; it never leaves.

One file a round, so that a round that is asked again (a killed server, a resumed simulation) starts from
what the site knew before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wardround.core.packed import Array, Layout, Packed
from wardround.runtime.files import load_tensors, save_tensors
from wardround.strategies.contract import SiteMemory

KEPT_FILES = 2


@dataclass(frozen=True)
class Kept:
    """State of one site after a round."""

    memory: SiteMemory = field(default_factory=SiteMemory)
    optimiser_state: dict[str, Array] | None = None


@dataclass(frozen=True)
class SiteStore:
    """Files in one folder, `round-00003.safetensors`; nothing is written where there is nothing to keep."""

    folder: Path

    def load(self, *, before_round: int) -> Kept:
        """What was kept after the last round before this one.

        Raises:
            StorageError: The file does not hold what was written.
        """
        rounds = [number for number in self._rounds() if number < before_round]
        if not rounds:
            return Kept()
        tensors, metadata = load_tensors(self._path(max(rounds)))
        slots = {
            name: Packed(Layout.model_validate_json(layout), tensors[f"memory/{name}"])
            for name, layout in (
                (key.removeprefix("layout/"), text)
                for key, text in metadata.items()
                if key.startswith("layout/")
            )
        }
        optimiser = {
            key.removeprefix("optimiser/"): array
            for key, array in tensors.items()
            if key.startswith("optimiser/")
        }
        return Kept(SiteMemory(slots), optimiser or None)

    def save(self, kept: Kept, *, round: int) -> None:
        """Keep the state after a round, and the one before it: this round may be asked again."""
        tensors: dict[str, Array] = {
            f"memory/{name}": slot.vector for name, slot in kept.memory.slots.items()
        }
        tensors |= {f"optimiser/{name}": array for name, array in (kept.optimiser_state or {}).items()}
        if not tensors:
            return
        layouts = {
            f"layout/{name}": slot.layout.model_dump_json() for name, slot in kept.memory.slots.items()
        }
        save_tensors(self._path(round), tensors, layouts)
        # Counted in files and not in round numbers: a site does not take part in every round.
        for old in [number for number in self._rounds() if number <= round][:-KEPT_FILES]:
            self._path(old).unlink(missing_ok=True)

    def _path(self, round: int) -> Path:
        return self.folder / f"round-{round:05d}.safetensors"

    def _rounds(self) -> list[int]:
        return sorted(
            int(path.stem.removeprefix("round-")) for path in self.folder.glob("round-*.safetensors")
        )
