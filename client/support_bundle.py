"""What a site can send to whoever helps it: versions, settings, runs, ledger, logs, without what is its own.

Nothing is copied into it: each file is made anew from figures, digests, codes and the words of our own
messages (`redaction.py`). What cannot be read is said and left out: a bundle is asked for where something is
broken.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any, Final

from wardround import __version__
from wardround.client.accepted import RUNS, RunFolders
from wardround.client.ledger.reading import look
from wardround.client.ledger.summary import summarise
from wardround.client.ledger_place import LEDGER, LedgerPlace
from wardround.client.log_reading import Wanted, entries
from wardround.client.membership.site_folder import SiteFolder
from wardround.client.redaction import Redactor
from wardround.client.site_commands import offered_runs, processes_of
from wardround.client.site_settings import FILE, SiteSettings, read_site_settings
from wardround.core.errors import ConfigError, WardroundError
from wardround.runtime.files import write_atomic
from wardround.runtime.log_file import LOGS
from wardround.runtime.signed_plan import read_signed_plan

LAST: Final = 2000
"""Log entries, the last ones."""
PACKAGES: Final = (
    "flwr", "torch", "transformers", "peft", "opacus", "safetensors", "tokenizers", "bitsandbytes",
    "cryptography", "grpcio", "numpy", "pydantic",
)  # fmt: skip
LEFT_OUT: Final = (
    "rows, their values and ids, names of columns, files, folders and labels",
    "keys, secrets, passphrases, environment variables, addresses and names of other members",
    "models, adapters, masks, what is kept between rounds, lists of units and how many there are",
    "words of a log or an error that are not of our own messages: […] stands for them",
    "tracebacks, but for places in our own code and the kind of error",
)
PLACES: Final = ("ledger", "ledger_mirror", "beside")
"""Settings that name folders."""
README: Final = "README.txt"
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """An archive before it is written.

    Attributes:
        files: Name → content.
        faults: What could not be read, redacted.
    """

    files: dict[str, bytes]
    faults: tuple[str, ...]


def collect(site: SiteFolder, now: datetime) -> Bundle:
    """Make every file of the bundle; nothing is raised for what is broken, it is noted."""
    runs = RunFolders(site.path / RUNS).runs()
    redactor = Redactor(frozenset({site.name, *runs}))
    faults: list[str] = []
    parts: dict[str, Callable[[], Any]] = {
        "versions.json": versions,
        "settings.json": lambda: settings_of(read_site_settings(site.path / FILE), site, redactor),
        "status.json": lambda: status_of(site, redactor),
        "plans.json": lambda: [plan_of(site, run) for run in runs],
        "ledger.json": lambda: ledger_of(site),
        "folder.json": lambda: folder_of(site),
        "logs.json": lambda: logs_of(site, redactor),
    }
    files = {}
    for name, make in parts.items():
        try:
            value = make()
        except WardroundError as error:
            told = redactor.text(f"{type(error).__name__}: {error}")
            faults.append(f"{name}: {told}")
            value = {"fault": told}
        except Exception as error:  # noqa: BLE001 - a bundle of a broken site is what it is for
            faults.append(f"{name}: {type(error).__name__}")
            value = {"fault": type(error).__name__}
        files[name] = (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
    files[README] = _readme(site, now, files).encode()
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    about = {
        "made": now.isoformat(timespec="seconds"),
        "files": listed,
        "left_out": LEFT_OUT,
        "faults": faults,
    }
    files[MANIFEST] = (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()
    return Bundle(files, tuple(faults))


def write_bundle(bundle: Bundle, path: Path) -> None:
    """Write the archive as a whole, for its owner alone to read.

    Raises:
        ConfigError: There is such a file already.
        StorageError: It cannot be written; nothing is left.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already", remedy="name a new file")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in bundle.files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    write_atomic(path, data.getvalue(), private=True)


def versions() -> dict[str, Any]:
    """Of Wardround, Python, the system, and the packages that matter."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {
        "wardround": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "interpreter": sys.implementation.name,
        "packages": found,
    }


def settings_of(settings: SiteSettings, site: SiteFolder, redactor: Redactor) -> dict[str, Any]:
    """What `site.yaml` says, its paths, columns and filters as counts and kinds."""
    rest = settings.model_dump(mode="json", exclude={"models", "source", "columns", *PLACES})
    return {
        **redactor.value(rest),
        "models": [
            {**place_of(model.path, site), "digest": model.digest, "attention": model.attention}
            for model in settings.models
        ],
        "source": {
            **place_of(settings.source.path, site),
            "kind": None if settings.source.kind is None else redactor.text(settings.source.kind),
            "options": redactor.value(sorted(settings.source.options)),
            "filtered_columns": len(settings.source.where),
        },
        "renamed_columns": len(settings.columns),
        "ledger": place_of(settings.ledger, site),
        "ledger_mirror": None if settings.ledger_mirror is None else place_of(settings.ledger_mirror, site),
        "beside": len(settings.beside),
    }


def place_of(path: str, site: SiteFolder) -> dict[str, Any]:
    """Where something lies, without its name."""
    if "://" in path:
        return {"where": "package or data folder", "there": None}
    inside = PurePath(path).is_relative_to(site.path.resolve())
    about = Path(path)
    kind = "folder" if about.is_dir() else "file" if about.is_file() else None
    return {"where": "in the site's folder" if inside else "elsewhere", "there": kind}


def status_of(site: SiteFolder, redactor: Redactor) -> dict[str, Any]:
    """As `wardround site status` has it, and what the roster says of this site."""
    left, roster, confirmed = site.left(), site.roster(), site.confirmed()
    processes = processes_of(site.path)
    return {
        "site": site.name,
        "left": None if left is None else left.at.isoformat(timespec="seconds"),
        "processes": None if processes is None else redactor.value(processes),
        "runs": [{key: run[key] for key in ("run", "plan", "state")} for run in offered_runs(site)],
        "roster": {
            "version": roster.version,
            "digest": roster.digest,
            "members": len(roster.members),
            "this_site_is_one": site.member() is not None,
            "confirmed_version": None if confirmed is None else confirmed.version,
        },
        "expires": [
            {"what": redactor.text(end.what), "when": end.when.isoformat(timespec="seconds")}
            for end in site.ends()
        ],
    }


def plan_of(site: SiteFolder, run: str) -> dict[str, Any]:
    """An offered plan by its digests and figures, without the data contract's names and words."""
    data = RunFolders(site.path / RUNS).plan(run) or b""
    signed = read_signed_plan(data, site.consortium_key)
    plan, redactor = signed.plan, Redactor()
    return {
        "run": run,
        "plan": signed.digest,
        "base": {
            "digest": plan.base.digest,
            "dtype": plan.base.dtype,
            "quantisation": plan.base.quantisation,
        },
        "task": redactor.text(plan.task.name),
        "strategy": redactor.text(plan.strategy.name),
        "adapter": {"layout": plan.adapter.layout.digest, "coordinates": plan.adapter.layout.size},
        "labels": len(plan.data.labels),
        "max_length": plan.data.max_length,
        "local": redactor.value(plan.local.model_dump(mode="json")),
        "rounds": plan.rounds.model_dump(mode="json"),
        "secure": {"mode": plan.secure.mode, "attempts": plan.secure.attempts},
        "privacy": None if plan.privacy is None else redactor.value(plan.privacy.model_dump(mode="json")),
    }


def ledger_of(site: SiteFolder) -> dict[str, Any] | None:
    """What the ledger comes to by run: no unit, no source, and not how many there are."""
    folder = LedgerPlace.of(site).folder
    if not folder.is_dir():
        return None
    book, torn = look(folder)
    found = summarise(book)
    runs = [
        {key: value for key, value in asdict(line).items() if key not in {"epsilon", "reported"}}
        | {"epsilon": _finite(line.epsilon.value)}
        for line in found.runs
    ]
    return {
        "rows": found.rows, "torn": bool(torn), "cap": found.cap, "delta": found.delta,
        "left": _finite(found.left), "highest": _finite(found.highest.value), "refusals": found.refusals,
        "write_offs": found.write_offs, "runs": runs,
    }  # fmt: skip


def folder_of(site: SiteFolder) -> dict[str, Any]:
    """Sizes of the site's own folders, whether others may enter, and the room on the disk."""
    names = ("keys", "keeper", "control", RUNS, LOGS, LEDGER, "models")
    sizes = {}
    for name in names:
        files = [path for path in (site.path / name).rglob("*") if path.is_file() and not path.is_symlink()]
        sizes[name] = {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    return {
        "mode": f"{site.path.stat().st_mode & 0o777:o}",
        "free_bytes": shutil.disk_usage(site.path).free,
        "folders": sizes,
    }


def logs_of(site: SiteFolder, redactor: Redactor) -> list[dict[str, Any]]:
    """The last log entries in words of our own."""
    return [
        {
            "time": datetime.fromtimestamp(entry.when, UTC).isoformat(timespec="milliseconds"),
            "level": redactor.text(entry.level),
            "source": entry.source,
            "text": redactor.text(entry.text),
            **({"fault_at": redactor.traceback(entry.traceback)} if entry.traceback else {}),
        }
        for entry in entries(site.path / LOGS, Wanted())[-LAST:]
    ]


def _finite(value: float | None) -> float | None:
    return None if value is None or value in (float("inf"), float("-inf")) else value


def _readme(site: SiteFolder, now: datetime, files: dict[str, bytes]) -> str:
    lines = [
        f"Support bundle of the site {site.name}, Wardround {__version__}, {now:%Y-%m-%d %H:%M} UTC", "",
        "Every file is text. Read them before you send this archive to anybody.", "", "Inside:",
        *(f"  {name}  {len(data)} bytes" for name, data in files.items()), f"  {MANIFEST}", "",
        "Left out:", *(f"  {what}" for what in LEFT_OUT), "",
    ]  # fmt: skip
    return "\n".join(lines)
