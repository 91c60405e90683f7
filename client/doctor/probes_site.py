"""Looks at a site's folder, disk, device, models, rows and plan, one a function. None writes, or decides."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np

from wardround.client.accepted import RUNS, RunFolders
from wardround.client.doctor.judge_plan import FoundModel
from wardround.client.doctor.judge_site import Guarded, LedgerSeen, RowsOfPlan, RowsSeen
from wardround.client.ledger.keys import KEY_FILE as LEDGER_KEY
from wardround.client.ledger.reading import look, verify
from wardround.client.ledger.summary import summarise
from wardround.client.ledger_place import LEDGER, LedgerPlace
from wardround.client.membership.locking import key_files, locked_files
from wardround.client.membership.site_folder import (
    ABOUT,
    IDENTITY_KEY,
    KEYS,
    TRANSPORT_KEY,
    AboutSite,
    SiteFolder,
)
from wardround.client.sealed_files import KEY_FILE
from wardround.client.site_settings import ModelPlace, SiteSettings
from wardround.core.enrolment import SignedPlan
from wardround.core.errors import PolicyError, WardroundError
from wardround.core.plan import TrainingPlan
from wardround.privacy.accounting.of_plan import round_cost
from wardround.runtime.plan_folder import SIGNED, read_bytes, read_plan
from wardround.runtime.roster import Expiring
from wardround.runtime.signed_plan import read_signed_plan
from wardround.runtime.small_files import read_value, transport_point
from wardround.training.batches import plan_batches
from wardround.training.data_check import check_source
from wardround.training.examples import parts_of
from wardround.training.settings import BaseModelConfig, resolve


def look_into(path: Path) -> SiteFolder:
    """The site's folder, also where others may enter it, which `guarded_files` tells.

    Raises:
        StorageError: It is no site's.
    """
    about = read_value(
        Path(path) / ABOUT,
        AboutSite,
        remedy="name the site's folder with --folder, or put it back from a copy",
    )
    return SiteFolder(Path(path), about.site, about.consortium, bytes.fromhex(about.key), about.address)


def guarded_files(site: SiteFolder) -> tuple[Guarded, ...]:
    """Every folder and file that nobody else may read: the site's folder, its keys, its ledger's."""
    known = {
        KEYS: True, f"{KEYS}/{IDENTITY_KEY}": True, f"{KEYS}/{TRANSPORT_KEY}": True,
        f"{KEYS}/{KEY_FILE}": False,  # made when the site starts first
    }  # fmt: skip
    found = sorted((site.path / KEYS).rglob("*.key"))
    names = dict.fromkeys(found_path.relative_to(site.path).as_posix() for found_path in found)
    ledger = _ledger_key(site)
    return (
        _guarded(site.path, "the site's folder", needed=True),
        *(_guarded(site.path / name, name, needed=needed) for name, needed in known.items()),
        *(_guarded(site.path / name, name, needed=True) for name in names if name not in known),
        *(_guarded(path, f"{path.parent.name}/{path.name}", needed=True) for path in ledger),
    )


def _ledger_key(site: SiteFolder) -> tuple[Path, ...]:
    path = _ledger(site) / LEDGER_KEY
    return (path,) if path.exists() else ()


def _ledger(site: SiteFolder) -> Path:
    """Where the settings have it; what is wrong with them stands in a line of its own."""
    return _place(site).folder


def _place(site: SiteFolder) -> LedgerPlace:
    with suppress(WardroundError):
        return LedgerPlace.of(site)
    return LedgerPlace(site.path / LEDGER)


def keys_locked(site: SiteFolder) -> tuple[int, int]:
    """How many of the site's keys a passphrase locks, and how many there are; raises StorageError."""
    files = key_files(site, *(path.parent for path in _ledger_key(site)))
    return len(locked_files(files)), len(files)


def _guarded(path: Path, name: str, *, needed: bool) -> Guarded:
    try:
        state = path.lstat()
    except OSError:
        return Guarded(name, folder=False, mode=None, needed=needed)
    return Guarded(
        name, stat.S_ISDIR(state.st_mode), stat.S_IMODE(state.st_mode), state.st_uid == os.geteuid(), needed
    )


def key_faults(site: SiteFolder, now: datetime) -> tuple[WardroundError, ...]:
    """What is wrong with keys and membership: not the roster's, no member, left, expired, not confirmed."""

    def unknown() -> None:
        if site.member() is None:
            raise PolicyError(
                f"{site.name} is no member of the roster that it has pinned",
                remedy="when the operator has admitted it: wardround site roster update, then confirm",
            )

    def unconfirmed() -> None:
        confirmed = site.confirmed()
        if confirmed is None or confirmed.digest != site.roster().digest:
            raise PolicyError("the pinned roster is not confirmed", remedy="wardround site roster confirm")

    found = []
    for asked in (
        site.require_present, site.signer, site.transport_key, unknown, unconfirmed,
        lambda: site.certificate().check(now),
    ):  # fmt: skip
        try:
            asked()
        except WardroundError as error:
            found.append(error)
    return tuple({error.what: error for error in found}.values())


def ends_of(site: SiteFolder) -> tuple[Expiring, ...]:
    """When certificates and membership expire; nothing where they cannot be read, as `key_faults` tells."""
    with suppress(WardroundError):
        return site.ends()
    return ()


def transport_of(site: SiteFolder) -> str:
    """This site's transport key, as rosters write it; raises StorageError."""
    return transport_point(site.transport_key().public_key())


def ledger_seen(site: SiteFolder) -> LedgerSeen | None:
    """The site's ledger, verified; None where there is none. No lock is taken.

    Raises:
        StorageError: Something is not as it was written, or it is not there any more.
    """
    place = _place(site)
    path = place.folder
    if not place.is_there():
        return None
    rows = verify(path, mirror=place.mirror).rows
    book = look(path)[0]
    summary = summarise(book)
    return LedgerSeen(rows, summary.cap, summary.highest.value, summary.delta, book.policy.allow_release)


def is_writable(path: Path) -> bool:
    """Whether this user can write in a folder; on a disk that is mounted read-only nobody can."""
    return os.access(path, os.W_OK | os.X_OK)


def free_disk(path: Path) -> int:
    """Bytes that this user can still write there."""
    return shutil.disk_usage(path).free


def device_of(settings: SiteSettings) -> tuple[str, int | None]:
    """The device of these settings and its free memory in bytes, None where that is not known.

    Raises:
        ConfigError: It is not there.
    """
    import torch

    from wardround.training.workbench import pick_device

    device = pick_device(settings.machine.device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return f"{device.type} ({torch.cuda.get_device_name(device)})", int(free)
    return device.type, free_memory()


def free_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of the machine's memory that a process could still get, a container's limit observed."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = meminfo.read_text(encoding="ascii", errors="replace").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())  # "max" is no number: there is none
        found.append(max(0, limit - int((cgroup / "memory.current").read_text())))
    return min(found) if found else None


def models_there(settings: SiteSettings) -> tuple[FoundModel, ...]:
    """Whether there is something to load at each entry of `models`; nothing is loaded."""
    return tuple(_there(place) for place in settings.models)


def _there(place: ModelPlace) -> FoundModel:
    try:
        found, _ = resolve(BaseModelConfig(path=place.path, revision=place.revision))
    except WardroundError as error:
        return FoundModel(
            path=place.path, state="absent", found=error.found or error.what, remedy=error.remedy or ""
        )
    folder = Path(found)
    if not folder.is_dir():
        return FoundModel(
            path=place.path, state="plans", found="a hub name; whether it is in the cache a plan shows"
        )
    lacks = [
        name for name, there in (
            ("config.json", (folder / "config.json").is_file()),
            ("*.safetensors", any(folder.glob("*.safetensors"))),
        ) if not there
    ]  # fmt: skip
    if lacks:
        return FoundModel(
            path=place.path, state="absent", found=f"no {' and no '.join(lacks)}",
            remedy="name a folder with config.json, *.safetensors and a tokenizer",
        )  # fmt: skip
    digest = "no digest" if place.digest is None else "its digest is compared with a plan"
    return FoundModel(path=place.path, state="plans", found=digest)


def rows_seen(settings: SiteSettings) -> RowsSeen:
    """The site's source in counts, as `wardround data check` counts.

    Raises:
        DataError: Nothing readable there.
    """
    report = check_source(settings.source)
    return RowsSeen(
        report.rows, report.readable, report.duplicate_rows,
        {code: fault.rows for code, fault in report.faults.items()},
    )  # fmt: skip


def rows_of_plan(settings: SiteSettings, plan: TrainingPlan, site: str) -> RowsOfPlan:
    """What the plan finds among the site's rows.

    Raises:
        UnreadyError: As `read_rows`.
    """
    from wardround.client.local_data import read_rows

    found = read_rows(settings, plan, site)
    training, _ = parts_of(plan, site, found.examples)
    units = {found.examples[index].unit for index in training}
    return RowsOfPlan(len(training), len(units), found.estimate == "enough", found.notices)


def steps_a_round(plan: TrainingPlan, rows: RowsOfPlan) -> int:
    """Steps of one local round here.

    Raises:
        ConfigError: A private batch larger than the site.
        PolicyError: δ is too large for so few units.
    """
    by_rows = plan.privacy is not None and plan.privacy.unit == "example"
    cost = round_cost(plan, rows.training if by_rows else rows.units)
    if cost is not None:
        return cost.steps
    return len(plan_batches(rows.training, plan.local, np.random.default_rng(0)))


def named_plan(site: SiteFolder, plan: Path | None, run: str | None) -> tuple[SignedPlan, bool] | None:
    """The plan that was asked about, and whether the consortium signed it; None: none was.

    Args:
        site: The site.
        plan: A plan's folder, a signed plan, or a plan that nobody has signed.
        run: A run that was offered to this site.

    Raises:
        WardroundError: There is none, it cannot be read, or somebody else signed it.
    """
    if run is not None:
        data = RunFolders(site.path / RUNS).required(run)
        return read_signed_plan(data, site.consortium_key), True
    if plan is None:
        return None
    if plan.is_dir():
        if not (plan / SIGNED).exists():
            return read_plan(plan), False
        plan = plan / SIGNED
    data = read_bytes(plan)
    if "enrolment" in _keys(data):
        return SignedPlan.parse(data), False
    return read_signed_plan(data, site.consortium_key), True


def _keys(data: bytes) -> Iterator[str]:
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        if isinstance(found, dict):
            yield from found


def faults_of(document: SignedPlan, settings: SiteSettings | None) -> tuple[WardroundError, ...]:
    """Everything for which this site refuses the plan, before a row is read."""
    from wardround.client.local_data import check_policy
    from wardround.training.plan_check import plan_faults

    found = list(plan_faults(document))
    if settings is not None and not found:
        try:
            check_policy(settings, document.plan)
        except WardroundError as error:
            found.append(error)
    return tuple(found)
