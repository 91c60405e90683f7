"""What the server keeps of a run in `runs/RUN_ID/`, durable before anybody is told."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from wardround.core.checked import Frozen, invalid
from wardround.core.errors import ConfigError, StorageError
from wardround.privacy.secagg.offer import SiteName
from wardround.runtime.files import atomic_folder, storing, write_atomic
from wardround.server.run_states import RunStatus, Wish, moved

RECORD = "record.json"
PLAN = "plan.signed.json"
INITIAL = "initial.safetensors"
EVENTS = "events.jsonl"
LOG = "log.jsonl"
JOURNAL = "journal"
LARGEST_RECORD_BYTES = 1 << 20
LARGEST_PLAN_BYTES = 4 << 20
"""Of a signed plan."""
LARGEST_INITIAL_BYTES = 4 << 30
"""Of an initial adapter."""
SOON_S: Final = 60.0
"""A server that dies so soon after it took a run up may have died of it."""
NO_SPACE: Final = "waits for space on the server's disk"
"""Begins the reason of a run whose turn has come and cannot begin."""
RUN_ID: Final = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
SITE: Final = TypeAdapter(SiteName)


class RunRecord(Frozen):
    """One run in the registry; times are seconds since 1970 by the server's clock."""

    format: Literal["wardround run 1"] = "wardround run 1"
    run_id: str = Field(pattern=RUN_ID.pattern)
    name: str = Field(max_length=200)
    plan_digest: str = Field(max_length=64)
    """SHA-256 of the signed plan's bytes."""
    submission: str = Field(max_length=64)
    """Chosen by who submitted it: asked twice, one run is made."""
    place: int = Field(ge=1)
    """In the order of the queue; a resumed run gets a new one, at the end."""
    status: RunStatus = RunStatus.QUEUED
    wish: Wish = Wish.NONE
    reason: str = Field(default="", max_length=4000)
    """Why it ended, or is where it is."""
    excluded: tuple[str, ...] = ()
    submitted: float
    changed: float
    """When its status last changed."""
    alive: float = 0.0
    """When an executor was last known to be at it."""
    worked_s: float = Field(default=0.0, ge=0.0)
    """Seconds that executors were at it."""
    down_s: float = Field(default=0.0, ge=0.0)
    """Seconds since its first start in which nobody was at it."""
    deaths: int = Field(default=0, ge=0)
    """How often in a row the server died soon after it had taken the run up."""
    taken: float = 0.0
    """When an executor last took it up."""
    closed: bool = False
    """Whether the server went down in good order while it was at the run."""

    def to(self, status: RunStatus, reason: str, now: float) -> RunRecord:
        """The record under another status; what was asked for is done with it.

        Raises:
            InternalError: There is no such way.
        """
        wish = Wish.NONE if status.ended or status is RunStatus.QUEUED else self.wish
        changes = {"status": moved(self.run_id, self.status, status), "reason": reason[:4000], "wish": wish}
        return self.model_copy(update={**changes, "changed": now})

    def at_work(self, now: float) -> RunRecord:
        """The record while an executor is at the run."""
        passed = max(0.0, now - self.alive) if self.alive else 0.0
        return self.model_copy(update={"alive": now, "worked_s": self.worked_s + passed})

    def taken_up(self, now: float) -> RunRecord:
        """The record as an executor takes the run up, again or for the first time."""
        passed = max(0.0, now - self.alive) if self.alive else 0.0
        changes: dict[str, float | str] = {
            "alive": now,
            "taken": now,
            "closed": False,
            "down_s": self.down_s + passed,
        }
        changes |= {"reason": ""} if self.reason.startswith(NO_SPACE) else {}
        return self.model_copy(update=changes)

    def found_again(self) -> RunRecord:
        """The record of a run that was at work when the server ended; counts how often it died at it."""
        soon = not self.closed and self.alive - self.taken < SOON_S
        return self.model_copy(update={"deaths": self.deaths + 1 if soon else 0})


@dataclass(frozen=True)
class RunFolder:
    """What an executor finds of its run.

    Attributes:
        path: The run's folder.
        run_id: Names it in every message.
    """

    path: Path
    run_id: str

    @property
    def signed_plan(self) -> bytes:
        """The signed plan, as it was submitted; whether its signature holds is for the executor to say.

        Raises:
            StorageError: It cannot be read.
        """
        with storing(self.path / PLAN):
            return (self.path / PLAN).read_bytes()

    @property
    def initial(self) -> Path:
        """File of the initial adapter, as it was submitted."""
        return self.path / INITIAL

    @property
    def journal(self) -> Path:
        """Folder for the journal of the rounds."""
        return self.path / JOURNAL

    @property
    def events(self) -> Path:
        """The run's events, a line each."""
        return self.path / EVENTS

    @property
    def log(self) -> Path:
        """What happened to the run, in sentences, a line each."""
        return self.path / LOG

    def load(self) -> RunRecord:
        """The run's record.

        Raises:
            StorageError: It cannot be read, or is none.
        """
        path = self.path / RECORD
        try:
            if path.stat().st_size > LARGEST_RECORD_BYTES:
                raise StorageError(f"{path} is too large to be a run's record")
            record = RunRecord.model_validate_json(path.read_bytes())
        except OSError as error:
            raise StorageError(f"cannot read {path}", found=error.strerror) from error
        except ValidationError as error:
            raise StorageError(f"{path} is no run's record", found=invalid("record", error).found) from error
        if record.run_id != self.run_id:
            raise StorageError(f"{path} is of another run", found=record.run_id, expected=self.run_id)
        return record

    def save(self, record: RunRecord) -> None:
        """Make the record durable.

        Raises:
            StorageError: It could not be written; the old one stands.
        """
        write_atomic(self.path / RECORD, record.model_dump_json(indent=1).encode(), private=True)


def make_run(
    runs: Path, plan: bytes, initial: Iterable[bytes], record: Callable[[str], RunRecord], now: float
) -> RunFolder:
    """A new run's folder, whole or not at all.

    Args:
        runs: Folder of all runs.
        plan: The signed plan.
        initial: The initial adapter, in parts; they are written as they come.
        record: Run id → the record to begin with.
        now: Seconds since 1970, for the run's id.

    Raises:
        ConfigError: Plan or adapter are empty, or larger than what is taken.
        StorageError: The folder could not be written.
    """
    if not 0 < len(plan) <= LARGEST_PLAN_BYTES:
        raise ConfigError(
            "this is no signed plan", found=f"{len(plan)} bytes", expected=f"1 to {LARGEST_PLAN_BYTES} bytes"
        )
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(4)}"
    with atomic_folder(runs / run_id) as temporary:
        temporary.chmod(0o700)
        size = 0
        with (temporary / INITIAL).open("xb") as file:
            for part in initial:
                size += len(part)
                if size > LARGEST_INITIAL_BYTES:
                    break
                file.write(part)
        if not 0 < size <= LARGEST_INITIAL_BYTES:
            raise ConfigError(
                "this is no initial adapter", found="nothing" if not size else "more than is taken",
                expected=f"1 to {LARGEST_INITIAL_BYTES} bytes",
            )  # fmt: skip
        (temporary / PLAN).write_bytes(plan)
        RunFolder(temporary, run_id).save(record(run_id))
    return RunFolder(runs / run_id, run_id)


def found_runs(runs: Path) -> list[RunFolder]:
    """Folders of runs, by name; what a killed process left half made is removed."""
    if not runs.is_dir():
        return []
    for path in runs.glob(".*.part"):
        if RUN_ID.fullmatch(path.name.split(".")[1]):
            shutil.rmtree(path, ignore_errors=True)
    return [RunFolder(path, path.name) for path in sorted(runs.iterdir()) if RUN_ID.fullmatch(path.name)]
