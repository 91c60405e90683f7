"""How often each round was asked for, durable before anybody is asked again.

Sites take no offer twice. A server that was killed in a round therefore goes on with the next attempt at it:
sites that have trained send what they kept, masked anew, and none of them trains twice. Where sites may have
helped to open the sum already, another attempt could show the difference of two: that round is burnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from wardround.core.checked import Frozen
from wardround.core.errors import StorageError
from wardround.runtime.files import storing, write_atomic


class _Tried(Frozen):
    """The last attempt.

    Attributes:
        round: Counts from 1.
        stage: Of the round.
        attempt: Counts from 0.
        opening: Whether sites may have helped to open a sum of it.
    """

    round: int = Field(default=0, ge=0)
    stage: int = Field(default=0, ge=0)
    attempt: int = Field(default=0, ge=0)
    opening: bool = False


@dataclass(frozen=True)
class Attempts:
    """The record of one run.

    Attributes:
        path: Its file.
    """

    path: Path

    def first(self, round: int, stage: int) -> int:
        """Number of the attempt that a stage begins with: 0, or after those of a server that was killed.

        Raises:
            StorageError: The record cannot be read.
        """
        tried = self._load()
        return tried.attempt + 1 if (tried.round, tried.stage) == (round, stage) else 0

    def burnt(self, round: int, stage: int = 0) -> bool:
        """Whether a server was killed when sites may have helped to open a sum of a stage, or of a later one.

        Args:
            round: Counts from 1.
            stage: That the round would go on with: of a later one nothing that went before is known any more.

        Raises:
            StorageError: The record cannot be read.
        """
        tried = self._load()
        if tried.round != round:
            return False
        return tried.stage > stage or (tried.stage == stage and tried.opening)

    def begin(self, round: int, stage: int, attempt: int) -> None:
        """Note an attempt, before anybody is asked.

        Raises:
            StorageError: It cannot be written.
        """
        before = self._load()
        opening = (before.round, before.stage) == (round, stage) and before.opening  # that stays so
        self._save(_Tried(round=round, stage=stage, attempt=attempt, opening=opening))

    def opening(self) -> None:
        """Note that sites are asked to help to open a sum, before they are.

        Raises:
            StorageError: It cannot be read or written.
        """
        self._save(self._load().model_copy(update={"opening": True}))

    def _load(self) -> _Tried:
        if not self.path.exists():
            return _Tried()
        with storing(self.path):
            data = self.path.read_bytes()
        try:
            return _Tried.model_validate_json(data)
        except ValidationError as error:
            raise StorageError(
                f"{self.path} does not hold what was written", found=f"{error.error_count()} faults",
                expected="the last attempt of a run", remedy="put it back from a backup, or begin a new run",
            ) from error  # fmt: skip

    def _save(self, tried: _Tried) -> None:
        write_atomic(self.path, tried.model_dump_json().encode())
