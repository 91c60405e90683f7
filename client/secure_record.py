"""What a real site must not forget about secure aggregation, and what it has to be able to forget.

    FileRecord          which offers it accepted, what it helped to open, its last unmask answer
    FileDrawRecord      its part in the draw of the groups
    KeptContributions   what it last contributed to each sum, until its round is verified or burnt

All are sealed under the site's storage key (`sealed_files.py`), one file each in a folder that is this site's
and this run's. A missing file is a site that has not begun; a damaged one is refused, for ever: to begin
afresh would let a server replay what the site refused. A file that went backwards cannot be noticed here.
Run one client over a folder: two would not see what the other accepted.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from pydantic import ValidationError

from wardround.client.parties import Contributions, Kept
from wardround.client.sealed_files import ForeignFileError, Label, Owner, SealedFile
from wardround.core.errors import InternalError, StorageError
from wardround.core.packed import Array
from wardround.privacy.secagg.admission import SiteState
from wardround.privacy.secagg.draw import DrawState
from wardround.privacy.secagg.offer import Wire
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.contract import SUMS, Lanes

LOG = logging.getLogger(__name__)
_CONTRIBUTION: Final = "contribution"
_ENDING: Final = ".sealed"
_SIZES: Final = struct.Struct("<BQQ")
"""Bytes of a coordinate, number of coordinates, number of counters; of a compressed lane 1, and its bytes."""
_REMEDY: Final = (
    "put the last copy back only if nothing was answered since it was made; otherwise this site takes no "
    "further part in the run"
)
_LOST: Final = "the attempt goes on without this site; the next round trains afresh"
W = TypeVar("W", bound=Wire)


@dataclass(frozen=True)
class FileRecord:
    """The record of one sum of a run, as `admission.Record`.

    Attributes:
        folder: Of this site and run.
        owner: Whose it is.
        sum: Name of the sum.
        key: The site's storage key.
    """

    folder: Path
    owner: Owner
    sum: str
    key: Secret

    def load(self) -> SiteState:
        """The last state that was saved; a fresh one where there is no file.

        Raises:
            StorageError: The file is not what this site wrote for this run and sum.
        """
        return _loaded(self._file, SiteState)

    def save(self, state: SiteState) -> None:
        """Keep it; durable when this returns.

        Raises:
            StorageError: It cannot be written, or what is there is not this record; that stays as it is.
        """
        _saved(self._file, state)

    @property
    def _file(self) -> SealedFile:
        return _file(self.folder, self.owner, "state", self.sum, self.key)


@dataclass(frozen=True)
class FileDrawRecord:
    """The record of a run's draw, as `draw.DrawRecord`; its random bytes are a secret until they are shown.

    Attributes:
        folder: Of this site and run.
        owner: Whose it is.
        key: The site's storage key.
    """

    folder: Path
    owner: Owner
    key: Secret

    def load(self) -> DrawState:
        """The last state that was saved; a fresh one where there is no file.

        Raises:
            StorageError: The file is not what this site wrote for this run.
        """
        return _loaded(self._file, DrawState)

    def save(self, state: DrawState) -> None:
        """Keep it; durable when this returns.

        Raises:
            StorageError: It cannot be written, or what is there is not this record; that stays as it is.
        """
        _saved(self._file, state)

    @property
    def _file(self) -> SealedFile:
        return _file(self.folder, self.owner, "draw", "", self.key)


@dataclass(frozen=True)
class KeptContributions(Contributions):
    """Name of a sum → the last contribution to it, sealed under a key of its own.

    Replaced, deleted or forgotten, its key is overwritten and its file removed. A contribution that cannot
    be read is refused where it is asked for, and gives way to the next one: nothing is replayed by that.

    Attributes:
        folder: Of this site and run.
        owner: Whose they are.
        key: The site's storage key.
    """

    folder: Path
    owner: Owner
    key: Secret

    def __getitem__(self, name: str) -> Kept:
        """Place and contribution.

        Raises:
            KeyError: Nothing is kept for this sum.
            StorageError: What is kept is not what this site wrote.
        """
        file = self._file(name)
        found = file.read()
        if found is None:
            raise KeyError(name)
        label, content = found
        return (label.round, label.stage, label.broadcast), _lanes(content, file)

    def __setitem__(self, name: str, kept: Kept) -> None:
        """Keep it in place of the one before; durable when this returns.

        Raises:
            StorageError: It cannot be written, or the file is another run's or site's; what was there stays.
        """
        (round, stage, broadcast), lanes = kept
        file = self._file(name)
        _readable(file)
        file.write(_content(lanes), erase=True, round=round, stage=stage, broadcast=broadcast)

    def __delitem__(self, name: str) -> None:
        """Destroy it.

        Raises:
            KeyError: Nothing is kept for this sum.
            StorageError: It cannot be destroyed, or it is another run's or site's.
        """
        file = self._file(name)
        if not file.path.exists():
            raise KeyError(name)
        _readable(file)
        file.destroy()

    def __iter__(self) -> Iterator[str]:
        """Names of the sums to which something is kept, read or not."""
        return iter([name for name in SUMS if self._file(name).path.exists()])

    def __len__(self) -> int:
        """How many."""
        return sum(1 for _ in self)

    def forget(self, *, round: int) -> None:
        """As the base class says; what cannot be read goes as well, and so does what a kill left.

        Raises:
            StorageError: It cannot be destroyed, or it is another run's or site's.
        """
        for name in SUMS:
            file = self._file(name)
            label = _readable(file)
            if label is None or label.round <= round:
                file.destroy()

    def _file(self, name: str) -> SealedFile:
        return _file(self.folder, self.owner, _CONTRIBUTION, name, self.key)


def _file(folder: Path, owner: Owner, kind: str, sum: str, key: Secret) -> SealedFile:
    if sum and sum not in SUMS:
        raise InternalError("there is no sum of this name", found=sum, expected=" or ".join(SUMS))
    path = folder / f"{kind}{'-' if sum else ''}{sum}{_ENDING}"
    remedy = _LOST if kind == _CONTRIBUTION else _REMEDY
    return SealedFile(path, Label(owner=owner, kind=kind, sum=sum), key, remedy)


def _loaded(file: SealedFile, kind: type[W]) -> W:
    found = file.read()
    if found is None:
        return kind()
    try:
        return kind.model_validate_json(found[1])
    except ValidationError:
        # Without its cause: pydantic quotes what it could not read, and that may be a secret.
        raise StorageError(
            f"{file.path} holds a state that this version does not read", found="other fields",
            expected=f"a {kind.__name__}", remedy="finish the run with the version that wrote it",
        ) from None  # fmt: skip


def _saved(file: SealedFile, state: Wire) -> None:
    file.read()  # never over what is not this record: that would be to begin afresh
    file.write(state.model_dump_json().encode())


def _readable(file: SealedFile) -> Label | None:
    """The label; None where there is none, or what is there cannot be read. Refuses another site's file."""
    try:
        return file.label_found()
    except ForeignFileError:
        raise
    except StorageError as error:
        LOG.warning("a kept contribution is lost: %s", error)
        return None


def _content(lanes: Lanes) -> bytes:
    sizes = lanes.coordinates.itemsize, lanes.coordinates.size, lanes.counters.size
    return _SIZES.pack(*sizes) + lanes.coordinates.tobytes() + lanes.counters.tobytes()


def _lanes(content: bytes, file: SealedFile) -> Lanes:
    width, coordinates, counters = _SIZES.unpack_from(content)
    cut = _SIZES.size + width * coordinates
    if width not in (1, 2, 4, 8) or len(content) != cut + 8 * counters:
        raise StorageError(
            f"{file.path} holds no contribution", found=f"{len(content)} bytes", expected="two lanes",
            remedy=_LOST,
        )  # fmt: skip
    lane: Array = np.frombuffer(content, dtype=f"<u{width}", count=coordinates, offset=_SIZES.size)
    return Lanes(lane, np.frombuffer(content, dtype="<u8", count=counters, offset=cut))
