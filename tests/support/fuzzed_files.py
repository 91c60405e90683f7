"""Kinds of files, and of requests within a site, for tests/unit/test_fuzzed_inputs.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fuzz import Made, Read, kind
from fuzzed_messages import ADAPTER, CA, KEY, NEW, PLANNED, TRANSPORT

from wardround.client.accepted import RunFolders
from wardround.client.charges import Charge
from wardround.client.keeper import OwnKeeper
from wardround.client.keeper_service import KeeperService
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.store import read_rows
from wardround.client.ledger_place import LedgerPlace
from wardround.client.membership.site_folder import AboutSite
from wardround.client.sealed_files import Label, Owner, SealedFile
from wardround.client.site_settings import STARTER, read_site_settings
from wardround.core.errors import ConfigError
from wardround.core.plan_offers import PlanAnswer
from wardround.core.selection import Selection
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.privacy.secagg.admission import NO_HEADS, SiteState
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import KeySigner, statement
from wardround.privacy.secagg.messages import Confirmation
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.certificates import (
    read_authorities,
)
from wardround.runtime.control.protos import keeper_pb2 as pb
from wardround.runtime.event_log import read_events
from wardround.runtime.files import load_tensors, save_tensors
from wardround.runtime.plan_folder import INITIAL, PLAN, read_initial, read_plan, write_plan_folder
from wardround.runtime.small_files import read_identity, read_transport, read_value
from wardround.server.attempts import Attempts
from wardround.server.enrolment import Enrolment, EnrolmentBook
from wardround.server.journal import Journal, Position
from wardround.server.run_live import read_lines, viewed
from wardround.server.run_record import RunRecord, make_run
from wardround.simulations.virtual.availability import presence_of, read_trace
from wardround.simulations.virtual.settings import Trace
from wardround.strategies.contract import ServerState

# ---- files


def of_file(path: Path, read: Callable[[], Any]) -> Read:
    """Writes the bytes, then reads."""

    def written(data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        read()

    return written


@kind("plan of a folder")
def _plan_file(folder: Path, _: Any) -> Made:
    write_plan_folder(folder / "plan", PLANNED, ADAPTER)
    path = folder / "plan" / PLAN
    return [path.read_bytes()], of_file(path, lambda: read_plan(folder / "plan"))


@kind("initial adapter")
def _initial(folder: Path, _: Any) -> Made:
    write_plan_folder(folder / "plan", PLANNED, ADAPTER)
    path = folder / "plan" / INITIAL
    return [path.read_bytes()], of_file(path, lambda: read_initial(folder / "plan", PLANNED.plan))


@kind("file of tensors")
def _tensors(folder: Path, _: Any) -> Made:
    path = folder / "x.safetensors"
    save_tensors(path, {"a": np.arange(5.0), "b": np.ones((2, 3), np.uint8)}, {"round": "3"})
    return [path.read_bytes()], of_file(path, lambda: load_tensors(path))


def _journal(folder: Path) -> Journal:
    journal = Journal(folder, PLANNED.plan)
    selection = Selection(PLANNED.plan.release).add(1, 0.5, ("ward",))
    journal.commit(Position(ServerState(1, ADAPTER, {}), Selection(PLANNED.plan.release), 1.5, (b"sum",)))
    journal.commit(Position(ServerState(2, ADAPTER, {}), selection, 2.5, (), frozenset({"liar"})))
    return journal


@kind("lines of a run's journal")
def _lines(folder: Path, _: Any) -> Made:
    journal, path = _journal(folder), folder / "rounds.jsonl"
    return [path.read_bytes()], of_file(path, journal.resume)


@kind("state of a run's journal")
def _state(folder: Path, _: Any) -> Made:
    journal, path = _journal(folder), folder / "state-00002.safetensors"
    return [path.read_bytes()], of_file(path, journal.resume)


@kind("attempts of a run")
def _attempts(folder: Path, _: Any) -> Made:
    path = folder / "attempts.json"
    attempts = Attempts(path)
    attempts.begin(3, 0, 2)
    return [path.read_bytes()], of_file(path, lambda: attempts.first(3, 0))


@kind("enrolment of a run")
def _book(folder: Path, _: Any) -> Made:
    book = EnrolmentBook(folder / "enrolment.json", "run1")
    answer = PlanAnswer("run1", "ward", "accepted", (), "enough", 60.0)
    book.save(Enrolment(("ward", "west"), {"ward": answer}, 3.0))
    return [book.path.read_bytes()], of_file(book.path, lambda: book.load(("ward", "west")))


@kind("record of a run")
def _record(folder: Path, _: Any) -> Made:
    def record(run_id: str) -> RunRecord:
        return RunRecord(
            run_id=run_id, name="a", plan_digest="b" * 64, submission="c", place=1, submitted=1.0, changed=1.0
        )

    made = make_run(folder, b"plan", [b"initial"], record, 1e9)
    path = next(made.path.glob("*.json"))
    return [path.read_bytes()], of_file(path, made.load)


@kind("events of a run")
def _events(folder: Path, _: Any) -> Made:
    path = folder / "events.jsonl"
    lines = [
        {"event": "RunStarted", "run_id": "r", "arm": "f", "name": "n", "plan_digest": "d", "rounds": 2,
         "sites": ["a", "b"], "resumed_from": 0, "time_s": 1.0},
        {"event": "RoundStarted", "arm": "f", "round": 1, "cohort": ["a"], "bytes_down": 3, "stage": 0},
        {"event": "SiteReplied", "arm": "f", "round": 1, "site": "a", "status": "ok", "code": "",
         "reason": "", "bytes_up": 3, "local": {}, "stage": 0, "attempt": 0, "exchange": 0},
        {"event": "RoundFolded", "arm": "f", "round": 1, "survivors": ["a"], "missing": ["b"],
         "train_loss": 0.5, "norm": 0.1, "bytes_up": 3, "wall_s": 1.0, "adapter_digest": "d",
         "rounding": 0.0},
    ]  # fmt: skip

    def read() -> None:
        viewed(read_lines(path))
        read_events(path)

    return ["\n".join(map(json.dumps, lines)).encode() + b"\n"], of_file(path, read)


OWNER = Owner(run_id="run1", plan=digest("plan"), site="ward")


@kind("sealed file of a site")
def _sealed(folder: Path, _: Any) -> Made:
    file = SealedFile(
        folder / "x.sealed", Label(owner=OWNER, kind="state", sum="training"), Secret(bytes(32)), "no"
    )
    file.write(b"content of the file", round=3, broadcast=bytes(32))
    return [file.path.read_bytes()], of_file(file.path, file.read)


@kind("acceptance of a plan at a site")
def _accepted(folder: Path, _: Any) -> Made:
    folders = RunFolders(folder)
    folders.accept("run1", plan="a" * 64, roster=bytes(32), server=bytes(32))
    path = next(folder.rglob("*.json"))
    return [path.read_bytes()], of_file(path, lambda: folders.accepted("run1"))


@kind("rows of a ledger")
def _ledger(folder: Path, _: Any) -> Made:
    keeper = OwnKeeper(KeySigner(NEW), folder, Secret(bytes(32)), lambda: LedgerPlace(folder / "ledger"))
    Ledger.create(folder / "ledger", BudgetPolicy(epsilon=3.0, delta=1e-3), units=2).close()
    mechanism = SampledGaussian(sample_rate=0.5, sigma=2.0, steps=3)
    for round in (1, 2):
        keeper.charges().reserve(
            Charge(
                source="rows", units=("ann", "bob"), run="run1", plan="a" * 64, round=round, draw="d",
                mechanism=mechanism, unit="patient", delta=1e-3,
            )
        )  # fmt: skip
    whole = max(
        (path for path in (folder / "ledger").iterdir() if path.is_file()), key=lambda p: p.stat().st_size
    )
    return [whole.read_bytes()], lambda data: read_rows(data, folder / "ledger")


@kind("settings of a site")
def _settings(folder: Path, _: Any) -> Made:
    path = folder / "site.yaml"
    text = (
        "models: [{path: base}]\nsource: {path: rows.jsonl}\napproval: automatic\n"
        "machine: {device: cpu, threads: 1}\npolicy: {modes: [real, 'off'], least_cohort: 3}\n"
    )
    return [STARTER.encode(), text.encode()], of_file(path, lambda: read_site_settings(path))


@kind("description of a site")
def _about(folder: Path, _: Any) -> Made:
    about = AboutSite(site="ward", consortium="north", key="a" * 64, address="127.0.0.1:9443")
    path = folder / "site.json"
    return [about.model_dump_json().encode()], of_file(path, lambda: read_value(path, AboutSite, remedy="no"))


@kind("private keys")
def _keys(folder: Path, _: Any) -> Made:
    path = folder / "a.key"
    examples = [
        b"\0" + KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        b"\1" + TRANSPORT.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
    ]
    readers: tuple[Any, ...] = (read_identity, read_transport)
    written = of_file(path, lambda: None)

    def read(data: bytes) -> None:
        written(data[1:])
        readers[bool(data[:1] and data[0] % 2)](path)

    return examples, read


@kind("authorities")
def _authorities(_: Path, __: Any) -> Made:
    return [CA, CA + CA], read_authorities


# ---- between a site's own processes


@dataclass
class _Keeper:
    """Keeps nothing."""

    signer: KeySigner

    def record(self, *_: Any) -> Any:
        return self

    draw_record = record

    def load(self) -> SiteState:
        return SiteState()

    def save(self, _: Any) -> None:
        """Nothing."""

    def charges(self) -> Any:
        return self

    def reserve(self, _: Any) -> float:
        return 0.1

    def settle(self, *_: Any) -> None:
        """Nothing."""

    def heads(self, _: str) -> Any:
        return NO_HEADS


@kind("request of a worker to its supervisor")
def _worker(_: Path, __: Any) -> Made:
    signer, context = KeySigner(NEW), b"c" * 32
    run = SimpleNamespace(
        member=SimpleNamespace(signer=signer), check=lambda *_: None, check_draw=lambda _: None
    )
    service = KeeperService("ward", _Keeper(signer), lambda *_: run)  # type: ignore[arg-type,return-value]  # accepts all
    begun = SimpleNamespace(run_id="run1", context=context, cohort=("clinic", "ward"))
    service._spoken.begin(begun)  # type: ignore[arg-type]  # as far as it is looked at
    place = pb.Place(run_id="run1", plan=b"p" * 32, sum="training")
    charge = Charge(
        source="rows", units=("ann",), run="run1", plan="a" * 64, round=1, draw="d",
        mechanism=SampledGaussian(sample_rate=0.5, sigma=2.0, steps=3), unit="patient", delta=1e-3,
    )  # fmt: skip
    requests: list[tuple[Any, Callable[[Any, Any], Any]]] = [
        (pb.SignRequest(statement=statement(Confirmation.KIND, context, "ward", b"x" * 32)), service._sign),
        (pb.SaveRecordRequest(place=place, record=SiteState().model_dump_json().encode()), service._save),
        (pb.ReserveRequest(charge=charge.model_dump_json().encode()), service._reserve),
        (pb.SettleRequest(run_id="run1", round=1, draw="d", steps=2), service._settle),
        (pb.KeptHeadsRequest(sum="training", sites=["clinic"]), service._kept_heads),
        (pb.KeepHeadsRequest(sum="training", heads={"clinic": b"h" * 64}), service._keep_heads),
        (pb.JudgeHeadsRequest(sum="training", heads={"clinic": b"h" * 64}), service._judge_heads),
    ]

    def read(data: bytes) -> None:
        request, behave = requests[data[0] % len(requests)] if data else requests[0]
        asked = type(request)()
        try:
            asked.ParseFromString(data[1:])
        except Exception:  # noqa: BLE001 - gRPC's side, tested where requests are parsed
            return
        behave(asked, None)

    return [bytes([at]) + one.SerializeToString() for at, (one, _) in enumerate(requests)], read


@kind("availability trace")
def _trace(folder: Path, _: Any) -> Made:
    path = folder / "trace"

    def read() -> None:
        """As a run does, in hours and by round, and when its sites are there."""
        wrong: list[ConfigError] = []
        for unit in ("h", "round"):
            settings = Trace.model_validate({"kind": "trace", "path": str(path), "unit": unit, "repeat": 24})
            try:
                sites = list(read_trace(settings).spans)
            except ConfigError as error:
                wrong.append(error)
                continue
            presence = presence_of(settings, sites, 0)
            for site in sites:
                presence.after(site, presence.next(site, 5000.0, 3), 1e6, 3)
        if wrong:
            raise wrong[0]

    return [
        b"site,from,to\nward_a,1,8\nward_a,20,32\nward_b,3,\n",
        b'{"site": "ward_a", "from": 1, "to": 8}\n{"site": "ward_b", "from": 3, "to": null}\n',
    ], of_file(path, read)
