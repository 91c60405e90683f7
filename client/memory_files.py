"""Files of what a site keeps between rounds: plain in a simulation, sealed at a site of a consortium.

Both hold named arrays and notes; a file has a round, and a stage where it is of one. At a real site each is
a sealed file (`sealed_files.py`) under the site's storage key, as its checkpoints are, and its own key is
overwritten when it goes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from wardround.client.sealed_files import Label, Owner, SealedFile
from wardround.core.errors import StorageError
from wardround.core.packed import Array
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.files import erase_file, load_tensors, save_tensors, storing

LOG = logging.getLogger(__name__)
KIND: Final = "memory"
PLAIN, SEALED = ".safetensors", ".sealed"
NOTES: Final = "notes"
ARRAY: Final = "array/"
_REMEDY: Final = (
    "put the last copy back only if no round was answered since it was made; otherwise this site takes no "
    "further part in the run"
)

Content: TypeAlias = tuple[dict[str, Array], dict[str, str]]
"""Arrays and notes."""


class Place(NamedTuple):
    """Which file: of a round, or of a stage within it."""

    round: int
    stage: int | None = None

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        if self.stage is None:
            return f"round-{self.round:05d}"
        return f"stage-{self.round:05d}-{self.stage}"

    @staticmethod
    def of(name: str) -> Place | None:
        """The place that a name stands for; None where it is no name of ours."""
        kind, *numbers = name.split("-")
        if len(numbers) != {"round": 1, "stage": 2}.get(kind) or not all(map(str.isdecimal, numbers)):
            return None
        place = Place(int(numbers[0]), int(numbers[1]) if kind == "stage" else None)
        return place if place.name == name else None


class MemoryFiles(Protocol):
    """Keeps what belongs to a place; `write` has to be durable when it returns."""

    def places(self) -> list[Place]:
        """Where there is something, the rounds in order."""

    def read(self, place: Place) -> Content:
        """What was written; raises StorageError."""

    def write(self, place: Place, tensors: Mapping[str, Array], notes: Mapping[str, str]) -> None:
        """Keep it in place of what was there; raises StorageError."""

    def remove(self, place: Place) -> None:
        """Drop it, if it is there; raises StorageError."""

    def path(self, place: Place) -> Path:
        """Its file."""


@dataclass(frozen=True)
class PlainFiles:
    """Checksummed safetensors: `round-00003.safetensors`."""

    folder: Path

    def path(self, place: Place) -> Path:
        """As the contract says."""
        return self.folder / f"{place.name}{PLAIN}"

    def places(self) -> list[Place]:
        """As the contract says."""
        return _places(self.folder, PLAIN)

    def read(self, place: Place) -> Content:
        """As the contract says."""
        return load_tensors(self.path(place))

    def write(self, place: Place, tensors: Mapping[str, Array], notes: Mapping[str, str]) -> None:
        """As the contract says."""
        save_tensors(self.path(place), tensors, notes)

    def remove(self, place: Place) -> None:
        """As the contract says."""
        with storing(self.folder):
            self.path(place).unlink(missing_ok=True)


@dataclass(frozen=True)
class SealedMemory:
    """Sealed files: `round-00003.sealed`.

    Attributes:
        folder: Of this site and run.
        owner: Whose they are.
        key: The site's storage key.
        kind: Of what they hold.
    """

    folder: Path
    owner: Owner
    key: Secret
    kind: str = KIND

    @staticmethod
    def open(folder: Path, owner: Owner, key: Secret) -> SealedMemory:
        """The files of a folder; what an earlier version left there unsealed is sealed, and overwritten.

        It is accepted, so that a run goes on at a site that is brought up to date in the middle of it. That
        opens no door: whoever can put a file here can read the storage key as well.

        Raises:
            StorageError: Such a file is damaged, or the sealed one cannot be written.
        """
        files, plain = SealedMemory(folder, owner, key), PlainFiles(folder)
        for place in plain.places():
            files.write(place, *plain.read(place))
            with storing(plain.path(place)):
                erase_file(plain.path(place))
            LOG.info("%s of an earlier version is sealed now", plain.path(place).name)
        return files

    def path(self, place: Place) -> Path:
        """As the contract says."""
        return self._file(place).path

    def places(self) -> list[Place]:
        """As the contract says."""
        return _places(self.folder, SEALED)

    def read(self, place: Place) -> Content:
        """As the contract says."""
        file = self._file(place)
        found = file.read()
        if found is None:
            raise StorageError(f"cannot read {file.path}", found="no such file", remedy=_REMEDY)
        label, content = found
        if (label.round, label.stage) != _marks(place):
            raise StorageError(
                f"{file.path} is of another round or stage", found=(label.round, label.stage),
                expected=_marks(place), remedy=_REMEDY,
            )  # fmt: skip
        return _opened(content, file.path)

    def write(self, place: Place, tensors: Mapping[str, Array], notes: Mapping[str, str]) -> None:
        """As the contract says."""
        round, stage = _marks(place)
        self._file(place).write(_content(tensors, notes), erase=True, round=round, stage=stage)

    def remove(self, place: Place) -> None:
        """As the contract says."""
        self._file(place).destroy()

    def _file(self, place: Place) -> SealedFile:
        path = self.folder / f"{place.name}{SEALED}"
        return SealedFile(path, Label(owner=self.owner, kind=self.kind), self.key, _REMEDY)


def _marks(place: Place) -> tuple[int, int]:
    """Round and stage as they stand in a label; −1 of a whole round."""
    return place.round, -1 if place.stage is None else place.stage


def _places(folder: Path, ending: str) -> list[Place]:
    found = (Place.of(path.name.removesuffix(ending)) for path in folder.glob(f"*{ending}"))
    return sorted((place for place in found if place), key=_marks)


def _content(tensors: Mapping[str, Array], notes: Mapping[str, str]) -> bytes:
    arrays: dict[str, NDArray[Any]] = {ARRAY + name: array for name, array in tensors.items()}
    arrays[NOTES] = np.frombuffer(json.dumps(dict(notes)).encode(), dtype=np.uint8)
    return safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _opened(content: bytes, path: Path) -> Content:
    try:
        arrays = safetensors.numpy.load(content)
        notes = json.loads(arrays.pop(NOTES).tobytes())
        return {name.removeprefix(ARRAY): array for name, array in arrays.items()}, dict(notes)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StorageError(
            f"{path} holds a state that this version does not read", found=type(error).__name__,
            remedy="finish the run with the version that wrote it",
        ) from error  # fmt: skip
