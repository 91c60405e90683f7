"""The server's durable record: each round's state is on disk before the next begins.

`rounds.jsonl` names the state file of every folded round and the scores so far; a state file is
complete before the line that names it is written, so a server killed anywhere resumes from the last line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from wardround.core.checked import Frozen
from wardround.core.errors import StorageError
from wardround.core.packed import Adapter, Array, Layout, Packed
from wardround.core.plan import TrainingPlan
from wardround.core.selection import Selection
from wardround.runtime.files import append_line, load_tensors, save_tensors, storing, write_atomic
from wardround.strategies.contract import ServerState

LINES = "rounds.jsonl"
OPENED = "opened/"
DRAWN = "groups.bin"


class _Line(Frozen):
    """What a line says of a folded round."""

    round: int = Field(ge=0)
    plan_digest: str
    adapter_digest: str
    scores: tuple[tuple[int, float], ...]
    missing: tuple[tuple[str, ...], ...] = ()
    left_out: tuple[str, ...] = ()
    wall_s: float = 0.0


def _read_line(line: bytes) -> _Line | None:
    try:
        return _Line.model_validate_json(line)
    except ValidationError:
        return None


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        state: After the last folded round.
        selection: Scores so far.
        opened: The last round's sums, for the sites to check the next broadcast by; one a stage.
        left_out: Sites that were caught lying: they are not asked again.
        wall_s: Seconds that the run took to get here, over all its processes. What a killed process did after
            its last journalled round is lost, and not in it.
    """

    state: ServerState
    selection: Selection
    wall_s: float = 0.0
    opened: tuple[bytes, ...] = ()
    left_out: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Journal:
    """Journal of one arm of a run, in one folder."""

    folder: Path
    plan: TrainingPlan

    def resume(self) -> Position | None:
        """Where the run stands after the last journalled round, or None for a new run.

        Raises:
            StorageError: The journal belongs to another plan, or a file does not hold what it should.
        """
        line = self._last_line()
        if line is None:
            return None
        if line.plan_digest != self.plan.digest:
            raise StorageError(
                "the journal belongs to another plan",
                found=line.plan_digest[:12],
                expected=self.plan.digest[:12],
                remedy="resume with the configuration that the run began with, or choose another folder",
            )
        state = self._load(self._path(line.round))
        if state.adapter.digest != line.adapter_digest:
            raise StorageError(f"the state of round {line.round} is not the one that was journalled")
        selection = Selection(self.plan.release, line.scores, line.missing)
        return Position(state, selection, line.wall_s, self._opened(state.round), frozenset(line.left_out))

    def commit(self, at: Position) -> None:
        """Make a folded round durable; states that can no longer be released go afterwards.

        The state's file is written anew: one that a killed server left without its line may hold another
        state, because other sites answered then.
        """
        state, selection = at.state, at.selection
        self._write(state, at.opened)
        append_line(
            self.folder / LINES,
            {
                "round": state.round,
                "plan_digest": self.plan.digest,
                "adapter_digest": state.adapter.digest,
                "scores": [list(score) for score in selection.scores],
                "missing": [list(sites) for sites in selection.missing],
                "left_out": sorted(at.left_out),
                "wall_s": round(at.wall_s, 3),
            },
        )
        wanted = {state.round, *selection.contenders}
        for path in self.folder.glob("state-*.safetensors"):
            if int(path.stem.removeprefix("state-")) not in wanted:
                path.unlink(missing_ok=True)

    def keep_drawn(self, drawn: bytes) -> None:
        """Keep the draw of the run's groups."""
        write_atomic(self.folder / DRAWN, drawn)

    def drawn(self) -> bytes | None:
        """The draw of the run's groups, if there was one.

        Raises:
            StorageError: It cannot be read.
        """
        path = self.folder / DRAWN
        if not path.exists():
            return None
        with storing(path):
            return path.read_bytes()

    def _write(self, state: ServerState, opened: tuple[bytes, ...]) -> None:
        tensors, notes = state_tensors(state, opened)
        save_tensors(self._path(state.round), tensors, {**notes, "plan_digest": self.plan.digest})

    def _opened(self, round: int) -> tuple[bytes, ...]:
        return opened_in(load_tensors(self._path(round))[0])

    def released(self, last: ServerState, selection: Selection) -> tuple[int, Adapter]:
        """Round and adapter of the best scored state; the last one where nothing was scored."""
        if selection.best is None or selection.best[0] == last.round:
            return last.round, last.adapter
        best = self._load(self._path(selection.best[0]))
        return best.round, best.adapter

    def _path(self, round: int) -> Path:
        return self.folder / f"state-{round:05d}.safetensors"

    def _last_line(self) -> _Line | None:
        """The last line that was written whole.

        A kill may have left a torn one behind it, and a later start closes a torn one before it goes on: such
        lines count as never written. One that was whole and cannot be read is damage: the round that it names
        was folded, and is not to be trained again.
        """
        path = self.folder / LINES
        if not path.exists():
            return None
        with storing(path):
            *whole, last = path.read_bytes().split(b"\n")
        if (found := _read_line(last)) is not None:
            return found
        for line in reversed(whole):
            if (found := _read_line(line)) is not None:
                return found
            if not last:
                raise StorageError(
                    f"{path} is damaged", found="a last line that cannot be read",
                    expected="what the server wrote",
                    remedy="put the folder of the journal back from a copy, or begin a new run",
                )  # fmt: skip
        return None

    def _load(self, path: Path) -> ServerState:
        tensors, metadata = load_tensors(path)
        if metadata.get("plan_digest") != self.plan.digest:
            raise StorageError(f"{path.name} belongs to another plan")
        return state_in(tensors, metadata, self.plan.adapter.layout)


def state_tensors(state: ServerState, opened: tuple[bytes, ...]) -> tuple[dict[str, Array], dict[str, str]]:
    """A state and the sums that led to it, as arrays and notes of a file."""
    notes = {f"layout/{name}": slot.layout.model_dump_json() for name, slot in state.slots.items()}
    tensors: dict[str, Array] = {"adapter": state.adapter.vector}
    tensors |= {f"slot/{name}": slot.vector for name, slot in state.slots.items()}
    tensors |= {f"{OPENED}{place:05}": np.frombuffer(total, np.uint8) for place, total in enumerate(opened)}
    return tensors, {"round": str(state.round), **notes}


def opened_in(tensors: Mapping[str, Array]) -> tuple[bytes, ...]:
    """The sums of such a file, in their order."""
    return tuple(tensors[name].tobytes() for name in sorted(tensors) if name.startswith(OPENED))


def state_in(tensors: Mapping[str, Array], notes: Mapping[str, str], layout: Layout) -> ServerState:
    """The state of such a file.

    Args:
        tensors: Of the file.
        notes: Likewise.
        layout: Of the adapter.
    """
    slots = {
        key.removeprefix("layout/"): Packed(
            Layout.model_validate_json(text), tensors["slot/" + key.removeprefix("layout/")]
        )
        for key, text in notes.items()
        if key.startswith("layout/")
    }
    return ServerState(int(notes["round"]), Packed(layout, tensors["adapter"]), slots)
