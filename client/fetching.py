"""A site asks its consortium's server for the signed roster, and for a run's result; all is checked."""

from __future__ import annotations

import hashlib
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from wardround.client.accepted import Accepted, RunFolders
from wardround.client.history.history import FOLDER, History
from wardround.client.history.rows import Left
from wardround.client.membership.site_folder import SiteFolder
from wardround.client.memory import MEMORY_FOLDER, SiteStore
from wardround.client.own_adapter import own_adapter
from wardround.client.sealed_files import Owner
from wardround.core.enrolment import SignedPlan
from wardround.core.errors import ConfigError, PeerError, StorageError, UnreachableError, WardroundError
from wardround.core.packed import Adapter, Layout, pack, require_finite
from wardround.runtime.files import load_tensors, private_folder, save_tensors, storing, write_atomic
from wardround.runtime.result_record import KIND, LARGEST, SHARED, ResultRecord
from wardround.runtime.roster import LARGEST_ROSTER
from wardround.runtime.signed import read_document
from wardround.runtime.signed_plan import read_signed_plan
from wardround.runtime.signed_requests import HEADER, ROUTES, sign_request
from wardround.runtime.small_files import read_bounded
from wardround.strategies.contract import PersonalStrategy, ServerState, SumStrategy
from wardround.training.plan_strategy import bind_strategy

RESULT: Final = "result"
RECORD, RELEASED, LAST = "result.signed.json", "released.safetensors", "last.safetensors"
OWN: Final = "own.safetensors"
"""This site's own adapter, where each site has one: the tensors as the plan lays them out."""
WAIT_S: Final = 60.0
KEPT: Final = "kept"
_BYTES_A_TENSOR: Final = 4096


@dataclass(frozen=True)
class Fetched:
    """A result that was checked.

    Attributes:
        folder: Where it lies.
        record: What the server signed.
        plan: What was trained.
        adapter: What this site uses of it: the released adapter, or its own, where each site has one.
        kept: The round after which this site kept its part of its own adapter; None: it has the plan's
            initial one, or the adapter is the released one.
    """

    folder: Path
    record: ResultRecord
    plan: SignedPlan
    adapter: Adapter
    kept: int | None = None

    @property
    def own(self) -> bool:
        """Whether each site ends with an adapter of its own, and none is released."""
        return self.record.released is None


def ask_server(
    site: SiteFolder, path: str, largest: int, *, run: str = "", now: Callable[[], float] = time.time
) -> bytes:
    """The body of one of the server's read-only routes; the site's history has the question before it leaves.

    Args:
        site: Who asks.
        path: Under `ROUTES`.
        largest: Bytes of a body, at the most; no more is read.
        run: What it is about.
        now: Seconds since 1970.

    Raises:
        StorageError: The question cannot be recorded.
        UnreachableError: The server cannot be reached, or not under the consortium's CA.
        ConfigError: There is no such thing.
        PeerError: The server refuses, or sends more than it may.
    """
    whole = ROUTES + path
    headers = {HEADER: sign_request(site.signer(), site.name, whole, now())}
    record_question(site, "GET", whole, headers, run=run)
    context = ssl.create_default_context(cafile=str(site.ca))
    try:
        with (
            httpx.Client(verify=context, timeout=WAIT_S) as client,  # by the proxy that the environment names
            client.stream("GET", f"https://{site.server_address}{whole}", headers=headers) as reply,
        ):
            body = bytearray()
            for chunk in reply.iter_raw():
                body += chunk
                if len(body) > largest:
                    raise PeerError("the server sends more than it may", expected=f"at most {largest} bytes")
    except httpx.HTTPError as error:
        raise UnreachableError(
            "the consortium's server cannot be reached",
            found=f"{site.server_address}: {type(error).__name__}",
            remedy="look whether it runs, and whether a firewall lets this machine out to it",
        ) from error
    if reply.status_code == httpx.codes.NOT_FOUND:
        raise ConfigError(
            "the server has no such result", remedy="it may still be training: ask the operator"
        )
    if reply.status_code != httpx.codes.OK:
        said = bytes(body[:200]).decode("utf-8", "replace").strip()
        raise PeerError("the server refuses the question", found=f"{reply.status_code} {said}")
    return bytes(body)


def record_question(
    site: SiteFolder,
    method: str,
    path: str,
    headers: Mapping[str, str],
    content: bytes = b"",
    *,
    run: str = "",
) -> None:
    """Put a question of this site's into its history, before it leaves.

    Args:
        site: Who asks.
        method: Of HTTP.
        path: Whole.
        headers: With the signature.
        content: That goes with it.
        run: What it is about.

    Raises:
        StorageError: It cannot be recorded, and must not leave.
    """
    asked = f"{method} {path}\n{HEADER}: {headers[HEADER]}\n".encode() + content
    History.open(site.path / FOLDER, site.name).record(
        Left(
            kind="question",
            run=run,
            note=path[-256:],
            bytes=len(asked),
            digest=hashlib.sha256(asked).hexdigest(),
        )
    )


def fetch_roster(site: SiteFolder) -> bytes:
    """The signed roster as the server has it, for `roster_pin.update_roster`; raises as `ask_server`."""
    return ask_server(site, "/roster", LARGEST_ROSTER)


def fetch_result(site: SiteFolder, runs: RunFolders, run_id: str) -> Fetched:
    """Fetch, check and keep what came of a run that this site accepted.

    Where each site ends with an adapter of its own, this site's is made here, of what the server signed and
    what this site kept; it goes nowhere.

    Raises:
        ConfigError: The site accepted no such run, or there is no result yet.
        PeerError: The record is not the server's, is of another run or plan, or an adapter is not the one
            that it names.
        UnreachableError: The server cannot be reached.
        StorageError: It cannot be kept.
    """
    accepted, plan = _accepted(site, runs, run_id)
    signed = ask_server(site, f"/results/{run_id}/{RECORD}", LARGEST, run=run_id)
    record = _record(signed, accepted)
    strategy, folder = _strategy(record, plan), runs.of(run_id) / RESULT
    if isinstance(strategy, PersonalStrategy):
        shared = _fetched(site, run_id, folder, plan, SHARED, record.last)
        own = _own(site, runs, record, plan, strategy, shared)
        write_atomic(folder / RECORD, signed, private=True)
        return own
    assert record.released is not None  # noqa: S101 - as the strategy, by then
    released = _fetched(site, run_id, folder, plan, RELEASED, record.released)
    _fetched(site, run_id, folder, plan, LAST, record.last)
    write_atomic(folder / RECORD, signed, private=True)
    return Fetched(folder, record, plan, released)


def _fetched(
    site: SiteFolder, run_id: str, folder: Path, plan: SignedPlan, name: str, digest: str
) -> Adapter:
    """One file of a result, fetched, checked and kept."""
    layout, path = plan.plan.adapter.layout, folder / name
    largest = 4 * layout.size + _BYTES_A_TENSOR * (len(layout.tensors) + 1)
    private_folder(folder)
    coming = path.with_name(f".{name}.part")
    body = ask_server(site, f"/results/{run_id}/{name}", largest, run=run_id)
    write_atomic(coming, body, private=True)
    try:
        adapter = _checked(coming, layout, name, digest)
    except WardroundError:
        coming.unlink()
        raise
    with storing(path):
        coming.replace(path)
    return adapter


def kept_result(site: SiteFolder, runs: RunFolders, run_id: str) -> Fetched:
    """What `fetch_result` kept of a run, checked as it was then; nobody is asked.

    A site's own adapter nobody signed: its file is held against its checksum, and against the signed record.

    Raises:
        ConfigError: The site accepted no such run, or nothing was fetched.
        PeerError: What lies there is not what the server signed.
        StorageError: It cannot be read.
    """
    accepted, plan = _accepted(site, runs, run_id)
    folder = runs.of(run_id) / RESULT
    if not (folder / RECORD).exists():
        raise ConfigError(
            "the result of this run is not here", found=str(folder), expected=RECORD,
            remedy=f"wardround site fetch {run_id}",
        )  # fmt: skip
    record = _record(read_bounded(folder / RECORD, LARGEST), accepted)
    _strategy(record, plan)
    if record.released is None:
        return _kept_own(folder, record, plan)
    released = _checked(folder / RELEASED, plan.plan.adapter.layout, RELEASED, record.released)
    return Fetched(folder, record, plan, released)


def _accepted(site: SiteFolder, runs: RunFolders, run_id: str) -> tuple[Accepted, SignedPlan]:
    accepted, data = runs.accepted(run_id), runs.plan(run_id)
    if accepted is None or data is None:
        raise ConfigError(
            "this site took no part in such a run", found=run_id, expected=", ".join(runs.runs()) or "a run",
            remedy="wardround site status lists them",
        )  # fmt: skip
    return accepted, read_signed_plan(data, site.consortium_key)


def _record(signed: bytes, accepted: Accepted) -> ResultRecord:
    """The record, if it is the server's and of what this site accepted."""
    record = read_document(signed, KIND, ResultRecord, signer=bytes.fromhex(accepted.server), largest=LARGEST)
    for what, found, expected in (
        ("run", record.run_id, accepted.run_id), ("plan", record.plan, accepted.plan),
        ("roster", record.roster, accepted.roster),
    ):  # fmt: skip
        if found != expected:
            raise PeerError(f"the result is of another {what}", found=found[:12], expected=expected[:12])
    return record


def _checked(path: Path, layout: Layout, name: str, digest: str) -> Adapter:
    adapter = pack(layout, load_tensors(path)[0])
    require_finite(adapter, "the adapter of the result")
    if adapter.digest != digest:
        raise PeerError(
            f"{name} is not the adapter that the result names", found=adapter.digest[:12],
            expected=digest[:12], remedy="the server's copy is damaged: tell the operator",
        )  # fmt: skip
    return adapter


def _strategy(record: ResultRecord, plan: SignedPlan) -> SumStrategy:
    """The plan's strategy, if it ends as the record says.

    Raises:
        PeerError: The server releases an adapter where each site has its own, or none where there is one.
    """
    strategy = bind_strategy(plan.plan)
    own = isinstance(strategy, PersonalStrategy)
    if own != (record.released is None):
        raise PeerError(
            "the result does not end as the plan's strategy does",
            found="no released adapter" if record.released is None else "a released adapter",
            expected="none: each site has its own" if own else "one for everybody",
            remedy="the server does not follow the plan: tell the consortium",
        )  # fmt: skip
    return strategy


def _own(
    site: SiteFolder,
    runs: RunFolders,
    record: ResultRecord,
    plan: SignedPlan,
    strategy: PersonalStrategy,
    shared: Adapter,
) -> Fetched:
    """Make and keep this site's own adapter of what federates and of what it kept.

    One that was made of a later part stays: what the site kept may have been lost since.
    """
    folder, run_id = runs.of(record.run_id), record.run_id
    owner = Owner(run_id=run_id, plan=bytes.fromhex(plan.plan.digest), site=site.name)
    store = SiteStore.sealed(folder / MEMORY_FOLDER, owner, site.storage_key())
    state, went_in = ServerState(record.last_round, shared), record.went_in(site.name, record.last_round)
    own = own_adapter(strategy, state, store, went_in=went_in)
    require_finite(own.adapter, "the adapter that this site made")
    earlier = _earlier(folder / RESULT, record, plan)
    if earlier is not None and (earlier.kept or 0) > (own.kept or 0):
        return earlier
    notes = {"digest": own.adapter.digest, SHARED: record.last, KEPT: json.dumps(own.kept)}
    save_tensors(folder / RESULT / OWN, own.adapter.tensors(), notes)
    return Fetched(folder / RESULT, record, plan, own.adapter, own.kept)


def _earlier(folder: Path, record: ResultRecord, plan: SignedPlan) -> Fetched | None:
    """The own adapter that was made of the same shared part before; None where there is none."""
    try:
        return _kept_own(folder, record, plan)
    except (StorageError, PeerError):
        return None


def _kept_own(folder: Path, record: ResultRecord, plan: SignedPlan) -> Fetched:
    """This site's own adapter, as `_own` kept it."""
    tensors, notes = load_tensors(folder / OWN)
    adapter = pack(plan.plan.adapter.layout, tensors)
    if (notes.get("digest"), notes.get(SHARED)) != (adapter.digest, record.last):
        raise PeerError(
            "this site's own adapter is not of the result that lies beside it",
            found=notes.get(SHARED, "")[:12], expected=record.last[:12],
            remedy=f"wardround site fetch {record.run_id} makes it anew",
        )  # fmt: skip
    return Fetched(folder, record, plan, adapter, json.loads(notes[KEPT]))
