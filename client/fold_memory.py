"""What a site knows of the server's state, on disk: a restarted site checks the next broadcast as before.

One sealed file (`sealed_files.py`) in the run's folder, written before the site answers to a broadcast. Each
write overwrites the key of the one before, so that of the states that were superseded nothing can be read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
from pydantic import Field, ValidationError

from wardround.client.sealed_files import Label, Owner, SealedFile
from wardround.core.checked import Frozen
from wardround.core.errors import PeerError, StorageError
from wardround.core.packed import Layout, Packed
from wardround.privacy.secagg.draw import Groups
from wardround.privacy.secagg.secret import Secret
from wardround.strategies.contract import ServerState

FILE: Final = "folds.sealed"
_SIZE: Final = struct.Struct("<I")
_REMEDY: Final = (
    "put the last copy back only if no round was answered since it was made; otherwise this site takes no "
    "further part in the run"
)


@dataclass(frozen=True)
class Known:
    """What a site must not forget of the server's state.

    Attributes:
        state: As it was last sent, with all that the server keeps; None where the site cannot know it.
        broken: Whether a broadcast of this run was refused.
        groups: Over which the run sums.
    """

    state: ServerState | None = None
    broken: bool = False
    groups: Groups = ()


class FoldMemory(Protocol):
    """Keeps a `Known`; `save` has to be durable when it returns."""

    def load(self) -> Known:
        """The last one that was saved; a fresh one where there is none."""

    def save(self, known: Known) -> None:
        """Keep it."""


_Dtype: TypeAlias = Literal["<f4", "<f8"]
_DTYPES: Final[Mapping[str, _Dtype]] = {"float32": "<f4", "float64": "<f8"}


class _Part(Frozen):
    name: str
    layout: Layout
    dtype: _Dtype


class _Head(Frozen):
    version: Literal[1] = 1
    round: int | None = Field(default=None, ge=0)
    broken: bool
    groups: tuple[tuple[str, ...], ...]
    parts: tuple[_Part, ...]


@dataclass(frozen=True)
class SealedFolds:
    """A sealed file, as `FoldMemory`.

    Attributes:
        folder: Of this site and run.
        owner: Whose it is.
        key: The site's storage key.
    """

    folder: Path
    owner: Owner
    key: Secret

    def load(self) -> Known:
        """As the contract says.

        Raises:
            StorageError: The file is not what this site wrote for this run.
        """
        found = self._file.read()
        try:
            return Known() if found is None else _read(found[1])
        except (ValidationError, ValueError, struct.error, PeerError) as error:
            raise StorageError(
                f"{self._file.path} holds a state that this version does not read",
                found=type(error).__name__,
                expected="version 1",
                remedy="finish the run with the version that wrote it",
            ) from None

    def save(self, known: Known) -> None:
        """As the contract says; what was there before cannot be read any more.

        Raises:
            StorageError: It cannot be written, or what is there is another run's or site's; that stays.
        """
        self._file.label_found()  # never over what is not this record
        self._file.write(_written(known), erase=True)

    @property
    def _file(self) -> SealedFile:
        return SealedFile(self.folder / FILE, Label(owner=self.owner, kind="folds"), self.key, _REMEDY)


def _written(known: Known) -> bytes:
    parts = list(_parts(known.state))
    head = _Head(
        round=None if known.state is None else known.state.round,
        broken=known.broken,
        groups=known.groups,
        parts=tuple(
            _Part(name=name, layout=one.layout, dtype=_DTYPES[one.vector.dtype.name]) for name, one in parts
        ),
    )
    text = head.model_dump_json().encode()
    arrays = (part.vector.astype(part.vector.dtype.newbyteorder("<"), copy=False) for _, part in parts)
    return b"".join((_SIZE.pack(len(text)), text, *(array.tobytes() for array in arrays)))


def _parts(state: ServerState | None) -> Iterator[tuple[str, Packed]]:
    """The adapter, under no name, and the slots."""
    if state is not None:
        yield "", state.adapter
        yield from state.slots.items()


def _read(content: bytes) -> Known:
    at = _SIZE.size + _SIZE.unpack_from(content)[0]
    head = _Head.model_validate_json(content[_SIZE.size : at])
    parts: dict[str, Packed] = {}
    for part in head.parts:
        array = np.frombuffer(content, dtype=part.dtype, count=part.layout.size, offset=at)
        parts[part.name] = Packed(part.layout, array.astype(array.dtype.newbyteorder("=")))
        at += array.nbytes
    state = None
    if head.round is not None:
        adapter = parts.pop("")
        state = ServerState(head.round, adapter, parts)
    return Known(state, head.broken, head.groups)
