"""What a site has accepted: durable before it says so, so that a restarted site serves the same run.

runs/RUN_ID/plan.signed.json   the plan as the consortium signed it, from the first offer on
runs/RUN_ID/approved.json      a person's approval
runs/RUN_ID/declined.json      or their no
runs/RUN_ID/accepted.json      what was accepted, and under which roster and server key
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pydantic import Field, ValidationError

from wardround.core.checked import Frozen
from wardround.core.errors import ConfigError, PeerError, StorageError
from wardround.runtime.files import private_folder, storing, write_atomic

RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RUNS: Final = "runs"
"""Folder of the runs in a site's folder."""
PLAN, APPROVED, ACCEPTED = "plan.signed.json", "approved.json", "accepted.json"
DECLINED: Final = "declined.json"
Hex = Field(pattern="^[0-9a-f]{64}$")
F = TypeVar("F", bound=Frozen)


class Accepted(Frozen):
    """One acceptance.

    Attributes:
        run_id: Of the run.
        plan: Digest of the signed plan.
        roster: Digest of the members' keys that the run goes by.
        server: The server's public key, as the consortium certified it.
        when: Seconds since 1970.
    """

    run_id: str
    plan: str = Hex
    roster: str = Hex
    server: str = Hex
    when: float = Field(ge=0)


class Approval(Frozen):
    """A person's word whether the site may take part.

    Attributes:
        plan: Digest of the signed plan that was approved or declined, and no other.
        who: The person, as they signed.
        when: Seconds since 1970.
    """

    plan: str = Hex
    who: str = Field(min_length=1, max_length=200)
    when: float = Field(ge=0)


@dataclass(frozen=True)
class RunFolders:
    """The site's folders of runs.

    Attributes:
        folder: `runs/` of the site's folder.
        now: Seconds since 1970.
    """

    folder: Path
    now: Callable[[], float] = time.time

    def of(self, run_id: str) -> Path:
        """The folder of one run, whether or not it is there.

        Raises:
            PeerError: The run's name is not one that may name a folder.
        """
        if not RUN_ID.fullmatch(run_id):
            raise PeerError(
                "the run has a name that is not allowed", expected="letters, digits, '.', '_', '-'"
            )
        return self.folder / run_id

    def offered(self, run_id: str, plan: bytes) -> None:
        """Keep the plan of an offer, for people to look at; before an acceptance a later one replaces it.

        Raises:
            PeerError: Another plan was accepted in this run.
            StorageError: It cannot be written.
        """
        folder, known = self.of(run_id), self.plan(run_id)
        if known == plan:
            return
        if known is not None and self.accepted(run_id) is not None:
            raise PeerError(
                "this site accepted another plan in this run",
                remedy="the plan has to be offered as a new run",
            )
        private_folder(folder)
        write_atomic(folder / PLAN, plan, private=True)

    def plan(self, run_id: str) -> bytes | None:
        """The signed plan that was last offered, as its bytes; None before any offer.

        Raises:
            StorageError: It cannot be read.
        """
        path = self.of(run_id) / PLAN
        if not path.exists():
            return None
        with storing(path):
            return path.read_bytes()

    def required(self, run_id: str) -> bytes:
        """The signed plan that was last offered, as its bytes.

        Raises:
            ConfigError: None was.
            StorageError: It cannot be read.
        """
        data = self.plan(run_id)
        if data is None:
            raise ConfigError(
                "no plan was offered in this run", found=run_id,
                expected=", ".join(self.runs()) or "an offer first",
                remedy="wardround site status lists the offers",
            )  # fmt: skip
        return data

    def approve(self, run_id: str, plan: str, who: str) -> None:
        """Note a person's approval of the plan of this digest.

        Raises:
            ConfigError: No plan was offered in this run.
            StorageError: It cannot be written.
        """
        self._decide(APPROVED, run_id, plan, who)

    def decline(self, run_id: str, plan: str, who: str) -> None:
        """Note a person's no to the plan of this digest; it holds against an approval as well.

        Raises:
            ConfigError: No plan was offered in this run.
            StorageError: It cannot be written.
        """
        self._decide(DECLINED, run_id, plan, who)

    def declined(self, run_id: str, plan: str) -> bool:
        """Whether a person has declined the plan of this digest.

        Raises:
            StorageError: The file is damaged.
        """
        declined = self._read(run_id, DECLINED, Approval)
        return declined is not None and declined.plan == plan

    def approved(self, run_id: str, plan: str) -> bool:
        """Whether a person has approved the plan of this digest.

        Raises:
            StorageError: The file is damaged.
        """
        approval = self._read(run_id, APPROVED, Approval)
        return approval is not None and approval.plan == plan

    def accept(self, run_id: str, *, plan: str, roster: bytes, server: bytes) -> Accepted:
        """Note the acceptance; durable when this returns. An earlier one under the same terms stands.

        Raises:
            PeerError: The run was accepted under other terms.
            StorageError: It cannot be written, or the file is damaged.
        """
        found = self.accepted(run_id)
        new = Accepted(run_id=run_id, plan=plan, roster=roster.hex(), server=server.hex(), when=self.now())
        if found is None:
            write_atomic(self.of(run_id) / ACCEPTED, new.model_dump_json().encode(), private=True)
            return new
        for what in ("plan", "roster", "server"):
            if getattr(found, what) != getattr(new, what):
                raise PeerError(
                    f"the run was accepted with another {what}", found=getattr(new, what)[:12],
                    expected=getattr(found, what)[:12], remedy="the plan has to be offered as a new run",
                )  # fmt: skip
        return found

    def accepted(self, run_id: str) -> Accepted | None:
        """What was accepted; None where nothing was.

        Raises:
            StorageError: The file is damaged.
        """
        return self._read(run_id, ACCEPTED, Accepted)

    def runs(self) -> list[str]:
        """Runs that were offered, sorted."""
        if not self.folder.exists():
            return []
        return sorted(path.parent.name for path in self.folder.glob(f"*/{PLAN}"))

    def _decide(self, name: str, run_id: str, plan: str, who: str) -> None:
        self.required(run_id)
        said = Approval(plan=plan, who=who, when=self.now())
        write_atomic(self.of(run_id) / name, said.model_dump_json().encode(), private=True)

    def _read(self, run_id: str, name: str, model: type[F]) -> F | None:
        path = self.of(run_id) / name
        if not path.exists():
            return None
        with storing(path):
            data = path.read_bytes()
        try:
            return model.model_validate_json(data)
        except ValidationError:
            raise StorageError(
                f"{path} does not hold what this site wrote", expected=f"an {model.__name__}",
                remedy="put the file back from a backup, or take no further part in this run",
            ) from None  # fmt: skip
