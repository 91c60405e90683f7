"""A site's disk is full: it says so by one code, keeps no half of anything, and is in the next round."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from full_disk import full_disk

from wardround.client.checkpoints import CheckpointFile
from wardround.client.fold_memory import SealedFolds
from wardround.client.round import answer
from wardround.client.sealed_files import Owner, storage_key
from wardround.client.secure_record import FileRecord, KeptContributions
from wardround.core.errors import StorageError
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.runtime.log_file import LogFile

Make = Callable[..., Any]


def over_files(server: Any, folder: Path) -> Any:
    """The same site, with all that a real one keeps in files of `folder`."""
    site = server.site
    owner = Owner(run_id="run", plan=bytes.fromhex(site.plan.digest), site="ward")
    key = storage_key(folder)
    parties = replace(site.parties, kept=KeptContributions(folder, owner, key))
    folds = replace(site.folds, memory=SealedFolds(folder, owner, key))
    checkpoints = CheckpointFile(folder, owner, key, 1e-9)
    return replace(server, site=replace(site, parties=parties, folds=folds, checkpoints=checkpoints))


def named(*names: str) -> Callable[[Path], bool]:
    """A file of one of these names, or what it is written as first."""
    return lambda path: any(path.name == name or path.name.startswith(f".{name}.") for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "contribution-training.sealed",
        "contribution-evaluation.sealed",
        "round-00002.safetensors",
        "folds.sealed",
        "*",
    ],
)
def test_a_round_that_cannot_be_kept_is_named_and_the_next_one_is_answered(
    make: Make, tmp_path: Path, trained: Counter[int], name: str
) -> None:
    """Of the failed round nothing is left but what may be asked for again."""
    server = over_files(make(optimiser_state="keep"), tmp_path)
    site = server.site
    assert answer(server.request(1), site).status == "ok"
    with full_disk(tmp_path, named(name) if name != "*" else lambda _: True) as disk:
        reply = answer(server.request(2), site)
        assert disk.refused
    assert (reply.status, reply.code) == ("failed", "storage")
    assert str(tmp_path) not in reply.reason
    assert not list(tmp_path.rglob("*.part"))
    assert (TRAINING in reply.sums) == (name == "contribution-evaluation.sealed")
    kept = site.parties.kept[TRAINING][0][0] if TRAINING in site.parties.kept else 0
    assert (kept == 2) == (TRAINING in reply.sums), "nothing leaves that is not kept"
    left = site.store.load(before_round=3).optimiser_state, site.store.load(before_round=2).optimiser_state
    assert left[0] is not None
    assert left[1] is not None
    same = all((left[0][part] == left[1][part]).all() for part in left[1])
    assert same == (TRAINING not in reply.sums), "the next round goes on from a contribution that never left"
    assert answer(server.request(3), site).status == "ok"
    assert trained[3] == 1


def test_what_could_not_be_kept_is_trained_in_the_next_attempt(
    make: Make, tmp_path: Path, trained: Counter[int]
) -> None:
    """A server that asks for the round again gets it."""
    server = over_files(make(), tmp_path)
    first = server.request()
    with full_disk(tmp_path, named("contribution-training.sealed")):
        assert answer(first, server.site).code == "storage"
    again = replace(server.request(attempt=1), broadcast=first.broadcast)
    reply = answer(again, server.site)
    assert (reply.status, set(reply.sums)) == ("ok", {TRAINING, EVALUATION})
    assert trained == {1: 2}


def test_a_checkpoint_that_cannot_be_kept_costs_nothing_else(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The round is answered; of the checkpoint no half is left."""
    server = over_files(make(), tmp_path)
    with full_disk(tmp_path, named("checkpoint.sealed")) as disk:
        assert answer(server.request(), server.site).status == "ok"
        assert disk.refused
    assert "training goes on" in caplog.text
    assert not list(tmp_path.rglob("*.part"))


def test_a_round_that_the_ledger_cannot_charge_is_not_trained(
    private: Make, tmp_path: Path, trained: Counter[int]
) -> None:
    """No row is touched; with space it is charged once and answered."""
    server = private()
    assert answer(server.request(sums=(EVALUATION,)), server.site).status == "ok"
    first = server.request(2, sums=(TRAINING,))
    with server.site.privacy.charges.ledger() as ledger:  # it is made here, while there is space
        assert ledger.sealed(run="run", round=2, stage=0) is None
    with full_disk(tmp_path / "ledger") as disk:
        reply = answer(first, server.site)
        assert disk.refused
    assert (reply.status, reply.code, dict(reply.sums)) == ("failed", "storage", {})
    assert trained == {}
    again = replace(server.request(2, sums=(TRAINING,), attempt=1), broadcast=first.broadcast)
    assert answer(again, server.site).status == "ok"
    assert trained == {2: 1}


def test_what_cannot_be_sealed_does_not_leave(
    private: Make, tmp_path: Path, trained: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept, and the next attempt seals and sends the same, without training."""
    server = private()
    parties, first = server.site.parties, server.request(sums=(TRAINING,))
    seal = server.site.privacy.charges.seal

    def full(*arguments: Any) -> None:
        with full_disk(tmp_path / "ledger"):
            seal(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(server.site.privacy.charges), "seal", lambda _, *arguments: full(*arguments))
        reply = answer(first, server.site)
    assert (reply.status, reply.code, dict(reply.sums)) == ("failed", "storage", {})
    assert TRAINING in parties.kept
    with server.site.privacy.charges.ledger() as ledger:
        assert ledger.sealed(run="run", round=1, stage=0) is None
    again = replace(server.request(sums=(TRAINING,), attempt=1), broadcast=first.broadcast)
    assert answer(again, server.site).status == "ok"
    with server.site.privacy.charges.ledger() as ledger:
        assert ledger.sealed(run="run", round=1, stage=0) is not None
    assert trained == {1: 1}


def test_a_record_of_offers_that_cannot_be_kept_answers_nothing(tmp_path: Path) -> None:
    """As it was; a half of it is nowhere."""
    owner = Owner(run_id="run", plan=bytes(32), site="ward")
    record = FileRecord(tmp_path, owner, TRAINING, storage_key(tmp_path))
    state = record.load()
    record.save(state)
    with full_disk(tmp_path), pytest.raises(StorageError, match="free space"):
        record.save(state)
    assert record.load() == state
    assert not list(tmp_path.glob(".*.part"))


def test_a_full_disk_for_logs_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said once, and how much was lost is in the log when it can be written again."""
    handler = LogFile(tmp_path / "logs" / "supervisor.jsonl")
    with full_disk(tmp_path):
        for number in range(3):
            handler.emit(logging.LogRecord("x", logging.INFO, "", 1, f"line {number}", None, None))
    assert handler.lost == 3
    assert capsys.readouterr().err.count("nothing else stops") == 1
    handler.emit(logging.LogRecord("x", logging.INFO, "", 1, "again", None, None))
    assert "3 records could not be written" in (tmp_path / "logs" / "supervisor.jsonl").read_text()
