"""What a site's own folder, machine, models and rows come to: values in, findings out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from wardround.client.doctor.findings import Finding, fails, passes, unseen, warns, worst
from wardround.client.doctor.judge_plan import FoundModel
from wardround.core.errors import WardroundError
from wardround.core.plan import TrainingPlan
from wardround.runtime.roster import Expiring
from wardround.runtime.sizes import size_text

WARN_DAYS: Final = 30
FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
LEAST_DISK: Final = 100 * 2**20
"""Bytes: records, logs and ledger of a site that trains nothing large."""
LITTLE_DISK: Final = 2**30
LITTLE_MEMORY: Final = 2**30
BYTES_A_COORDINATE: Final[Mapping[str, int]] = {
    "contributions kept (two, of 8 bytes)": 16,
    "checkpoints (two, of adapter and two moments)": 24,
    "memory between rounds, and its next": 16,
    "a fetched result (two adapters)": 8,
}
"""What a run keeps at a site at once, at the most, in bytes for each coordinate of the adapter."""


@dataclass(frozen=True)
class Guarded:
    """A file or folder that nobody else may read.

    Attributes:
        name: In the site's folder.
        folder: Whether it is one.
        mode: Permission bits; None: it is not there.
        own: Whether it is this user's.
        needed: Whether a site cannot do without.
    """

    name: str
    folder: bool
    mode: int | None
    own: bool = True
    needed: bool = True


@dataclass(frozen=True)
class LedgerSeen:
    """A ledger that verifies.

    Attributes:
        rows: How many it has.
        cap: ε that no patient's account exceeds; None: there is none.
        spent: ε of the worst-off patient.
        delta: δ of both.
        allows_release: Whether its policy lets patients into runs without privacy.
    """

    rows: int
    cap: float | None
    spent: float
    delta: float
    allows_release: bool = False


@dataclass(frozen=True)
class RowsSeen:
    """What a source holds, in counts.

    Attributes:
        rows: Read.
        readable: Of them.
        twice: Equal to an earlier row.
        faults: Code → rows.
    """

    rows: int
    readable: int
    twice: int = 0
    faults: Mapping[str, int] | None = None


@dataclass(frozen=True)
class RowsOfPlan:
    """What a plan finds in the source.

    Attributes:
        training: Rows that it trains on.
        units: Whose they are, counted.
        enough: Whether they fill a batch.
        notices: For the site's own people.
    """

    training: int
    units: int
    enough: bool
    notices: tuple[str, ...] = ()


def judge_keys(
    guarded: Sequence[Guarded],
    faults: Sequence[WardroundError],
    ends: Sequence[Expiring],
    now: datetime,
    locked: tuple[int, int] = (0, 0),
) -> Finding:
    """Of keys and their folder.

    Args:
        guarded: Each file and folder.
        faults: What is wrong with keys and membership beside that.
        ends: When what the site stands on expires.
        now: The present moment.
        locked: How many keys a passphrase locks, of how many.
    """
    found = [_guarded(one) for one in guarded]
    under, there = locked
    if 0 < under < there:
        lies = "lies" if there - under == 1 else "lie"
        what = f"{there - under} of {there} keys {lies} open, the others under a passphrase"
        found.append(warns("keys", what, "lock them as well: wardround site passphrase"))
    found += [
        fails("keys", _told(fault), fault.remedy or "join again with a new invitation") for fault in faults
    ]
    for end in ends:
        if end.when <= now:
            found.append(fails("keys", end.text(now), "ask the operator for a new one"))
        elif (end.when - now).days < WARN_DAYS:
            found.append(warns("keys", end.text(now), "ask the operator for a new one before"))
    bad = [finding for finding in found if finding.status != "passes"]
    if bad:
        return worst("keys", bad)
    until = "" if not ends else f"; {min(ends, key=lambda end: end.when).text(now)}"
    return passes("keys", f"{len(guarded)} files and folders closed to others, keys of the roster{until}")


def _guarded(one: Guarded) -> Finding:
    wanted = FOLDER_MODE if one.folder else FILE_MODE
    if one.mode is None:
        return (
            fails("keys", f"{one.name} is not there", "put the folder back from its last copy, or join again")
            if one.needed else passes("keys", "")
        )  # fmt: skip
    if not one.own:
        return fails("keys", f"{one.name} is another user's", "run the site as the user who joined")
    if one.mode & 0o077:
        return fails(
            "keys", f"{one.name} has mode {one.mode:04o}: others can use it",
            f"chmod {wanted:o} {one.name}; where others may have read a key: wardround site rotate",
        )  # fmt: skip
    if one.mode & wanted != wanted:
        return warns("keys", f"{one.name} has mode {one.mode:04o}", f"chmod {wanted:o} {one.name}")
    return passes("keys", "")


def judge_settings(models: int, policy: str) -> Finding:
    """Of a `site.yaml` that was read: its number of models, and the policy in a few words."""
    return passes("settings", f"read; {models} base model{'s' * (models != 1)}; policy: {policy}")


def judge_ledger(ledger: LedgerSeen | None, plan: TrainingPlan | None) -> Finding:
    """Of the ledger; None: there is none."""
    private = plan is not None and plan.privacy is not None and plan.privacy.trains_privately
    held_back = plan is not None and plan.data.validation_fraction > 0
    if ledger is None:
        remedy = "wardround ledger create makes one, with the ε that this site grants its patients"
        if private:
            return fails("ledger", "there is none, and the plan trains privately", remedy)
        return passes("ledger", "there is none: no private plan is accepted")
    spent = "∞" if math.isinf(ledger.spent) else f"{ledger.spent:.3g}"
    told = f"{ledger.rows} rows, each signed; highest ε {spent} at δ {ledger.delta:g}"
    if plan is not None and not plan.bounds_patients and ledger.cap is not None and not ledger.allows_release:
        what = "the plan bounds no patient's rows" if private else "the plan has no privacy"
        return fails(
            "ledger", f"{told}, of {ledger.cap:g}; {what}, and such runs are not allowed",
            "ask for a private plan, or wardround ledger amend --allow-release, in somebody's name",
        )  # fmt: skip
    if private and held_back and ledger.cap is not None and not ledger.allows_release:
        return fails(
            "ledger", f"{told}, of {ledger.cap:g}; the plan holds patients back whom nothing would bound",
            "ask for the plan with data.validation_fraction=0, or wardround ledger amend --allow-release, in "
            "somebody's name",
        )  # fmt: skip
    if ledger.cap is None:
        return warns(
            "ledger", f"{told}, and no cap: nothing is refused", "wardround ledger amend --epsilon sets one"
        )
    if math.isinf(ledger.spent):
        return warns(
            "ledger", f"{told}, of {ledger.cap:g}: nothing bounds some of its patients",
            "private plans that train on them are refused; wardround ledger show tells who they may be",
        )  # fmt: skip
    if ledger.spent >= ledger.cap:
        return warns(
            "ledger", f"{told}, of {ledger.cap:g}: nothing is left", "private plans are refused from now on"
        )
    return passes("ledger", f"{told}, of {ledger.cap:g}")


def disk_needed(coordinates: int) -> int:
    """Bytes that a run of an adapter of so many coordinates keeps at a site, at the most."""
    return LEAST_DISK + coordinates * sum(BYTES_A_COORDINATE.values())


def judge_disk(free: int, coordinates: int | None, *, writable: bool = True) -> Finding:
    """Of free bytes in the site's folder, against what a run keeps; without a plan against little."""
    if not writable:
        what = "the site's folder cannot be written: what a site must not forget would be lost"
        return fails("disk", what, "mount it for writing, as the user who joined")
    told, remedy = f"{size_text(free)} free", "make room on the disk of the site's folder, or move the folder"
    if coordinates is None:
        if free < LEAST_DISK:
            return fails("disk", told, remedy)
        return warns("disk", told, remedy) if free < LITTLE_DISK else passes("disk", told)
    needed = disk_needed(coordinates)
    told += f"; a run of this plan keeps {size_text(needed)} at the most"
    if free < needed:
        return fails("disk", told, remedy)
    return warns("disk", told, remedy) if free < 2 * needed else passes("disk", told)


def judge_device(device: str, free: int | None) -> Finding:
    """Of the device that is there, and its free memory (None: not known)."""
    if free is None:
        return passes("device", f"{device}; its free memory is not known")
    told = f"{device}, {size_text(free)} of memory free"
    if free < LITTLE_MEMORY:
        return warns("device", told, "end what else runs there, or take a larger machine")
    return passes("device", told)


def judge_plan(name: str, faults: Sequence[WardroundError], *, signed: bool) -> Finding:
    """Of a plan that was read: everything that it is refused for."""
    if faults:
        remedies = dict.fromkeys(fault.remedy for fault in faults if fault.remedy)
        return fails(
            "plan", "; ".join(map(_told, faults)), "; ".join(remedies) or "ask the operator for another plan"
        )
    if not signed:
        return warns(
            "plan",
            f"{name}: sound and allowed, and nobody has signed it",
            "a site trains a signed plan alone",
        )
    return passes("plan", f"{name}: signed by the consortium, sound, allowed by site.yaml")


def judge_models(found: Sequence[FoundModel], *, of_plan: bool, why: str = "", remedy: str = "") -> Finding:
    """Of each entry of `models`.

    Args:
        found: As many as were looked at.
        of_plan: Whether they were held against a plan; else only whether something to load is there.
        why: What ended the look before its time.
        remedy: What to do about that.
    """
    lines, bad = [], []
    for model in found:
        name = model.path.rpartition("/")[2] or model.path
        match model.state:
            case "plans":
                lines.append(f"{name} is the plan's" if of_plan else f"{name} is there ({model.found})")
            case "other":
                lines.append(f"{name} is another plan's ({model.found})")
            case "wrong":
                bad.append(fails(
                    "models", f"{name} has other weights than its digest in site.yaml says: {model.found}",
                    "get the weights again, or correct the digest",
                ))  # fmt: skip
            case "differs":
                lines.append(f"{name} is not the plan's")
            case "absent":
                bad.append(
                    fails("models", f"{name}: {model.found}", model.remedy or "correct its path in site.yaml")
                )
            case "unfit":
                bad.append(
                    fails("models", f"{name}: {model.found}", model.remedy or "see docs/site-check.md")
                )
    if of_plan and not any(model.state == "plans" for model in found):
        said = "; ".join([why] if why else ["none is the plan's", *lines])
        bad.append(
            fails(
                "models",
                said,
                remedy or "get the plan's base model, and name its folder under models in site.yaml",
            )
        )
    return worst("models", bad) if bad else passes("models", "; ".join(lines))


def judge_data(seen: RowsSeen, of_plan: RowsOfPlan | None) -> Finding:
    """Of rows in counts, and of what a plan finds among them."""
    told = f"{seen.readable} of {seen.rows} rows can be read"
    remedy = "wardround data check SOURCE names the lines"
    if seen.readable == 0:
        return fails("data", told, f"correct the source in site.yaml; {remedy}")
    found = [passes("data", told)]
    if seen.faults:
        faults = ", ".join(f"{rows} × {code}" for code, rows in sorted(seen.faults.items()))
        found.append(warns("data", f"broken: {faults}", remedy))
    if seen.twice:
        found.append(
            warns("data", f"{seen.twice} equal an earlier row", f"look whether they should; {remedy}")
        )
    if of_plan is not None:
        found.append(passes("data", f"the plan trains on {of_plan.training} rows of {of_plan.units} units"))
        found += [warns("data", notice, remedy) for notice in of_plan.notices]
        if not of_plan.enough:
            found.append(
                warns("data", "they do not fill a batch of the plan", "wait for a smaller local.batch_size")
            )
    return worst("data", found)


def without_settings() -> tuple[Finding, ...]:
    """What cannot be looked at where site.yaml cannot be read."""
    return tuple(unseen(check, "settings") for check in ("device", "models", "data"))


def _told(fault: WardroundError) -> str:
    return fault.what if fault.found is None else f"{fault.what}: {fault.found}"
