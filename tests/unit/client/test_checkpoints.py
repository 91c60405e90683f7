"""A site that is killed in the middle of a local round goes on there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from private_site import UNITS

from wardround.client import sealed_files, work
from wardround.client.charges import LedgerCharges
from wardround.client.checkpoints import CheckpointFile, RoundPlace
from wardround.client.ledger.ledger import Ledger
from wardround.client.round import answer
from wardround.client.sealed_files import Owner, storage_key
from wardround.core.errors import StorageError, TrainingError
from wardround.core.messages import SPENT, Request
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.training import local_round
from wardround.training.checkpoint import Checkpoint

Make = Callable[..., Any]


class Killed(BaseException):
    """The process has ended here."""


def file_in(folder: Path, *, every_s: float = 1e-9, run_id: str = "run") -> CheckpointFile:
    """As a new process makes it; a checkpoint after every step."""
    owner = Owner(run_id=run_id, plan=digest("plan"), site="ward")
    return CheckpointFile(folder / "kept", owner, storage_key(folder), every_s)


def keeping(server: Any, folder: Path, **options: Any) -> Any:
    """The same site, with checkpoints."""
    return replace(server, site=replace(server.site, checkpoints=file_in(folder, **options)))


def killed_after(monkeypatch: pytest.MonkeyPatch, step: int, server: Any, request: Request) -> None:
    """Let the site train so many steps, and end there."""
    real = CheckpointFile.write

    def write(self: CheckpointFile, checkpoint: Checkpoint, place: RoundPlace) -> None:
        real(self, checkpoint, place)
        if checkpoint.done == step:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFile, "write", write)
        with pytest.raises(Killed):
            answer(request, server.site)


def left_by(server: Any, request: Request, folder: Path) -> Checkpoint:
    """The checkpoint that a site has left of a request's round."""
    assert request.broadcast is not None
    place = RoundPlace(request.round, request.broadcast.digest, "6", server.site.bench.layout)
    found = file_in(folder).load(place)
    assert found is not None
    return found


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every step that is taken."""
    taken: list[int] = []
    real = local_round.set_rate

    def counting(optimiser: Any, rate: float) -> None:
        taken.append(len(taken))
        real(optimiser, rate)

    monkeypatch.setattr(local_round, "set_rate", counting)
    return taken


@pytest.mark.parametrize(
    ("state", "strategy"), [("reset", "fedavg"), ("keep", "fedavg"), ("reset", "scaffold")]
)
def test_a_killed_site_goes_on_and_contributes_what_it_would_have(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int], state: str, strategy: str
) -> None:
    """The same request in a new process: two of three steps are not taken again, and no bit differs."""
    make = partial(make, optimiser_state=state, steps=3, strategy=strategy)
    plain = make()
    request = plain.request(sums=(TRAINING,))
    expected = plain.read(request, answer(request, plain.site), TRAINING)[0]
    server = keeping(make(), tmp_path)
    killed_after(monkeypatch, 2, server, server.request(sums=(TRAINING,)))
    steps.clear()
    again = keeping(make(), tmp_path)
    request = again.request(sums=(TRAINING,))
    reply = answer(request, again.site)
    assert reply.status == "ok", reply.reason
    np.testing.assert_array_equal(again.read(request, reply, TRAINING)[0], expected)
    assert len(steps) == 1
    assert file_in(tmp_path)._file.read() is None  # what is sent is kept, and the checkpoint destroyed


def test_no_offer_is_answered_before_the_training_is_done(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same request would be none that a site answers twice: its scores were offered for."""
    server = keeping(make(steps=3, mode="real", least_cohort=3), tmp_path)
    request = server.request()
    assert set(request.sums) == {TRAINING, EVALUATION}
    killed_after(monkeypatch, 2, server, request)
    fresh = keeping(server, tmp_path)  # its records are in memory here, and have survived
    reply = answer(request, fresh.site)
    assert (reply.status, set(reply.sums)) == ("ok", {TRAINING, EVALUATION}), reply.reason


def test_what_a_checkpoint_holds_cannot_be_read_without_the_key(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No run of the adapter's bytes is in the file; under another key the round begins anew."""
    server = keeping(make(steps=3), tmp_path)
    request = server.request(sums=(TRAINING,))
    killed_after(monkeypatch, 2, server, request)
    found = left_by(server, request, tmp_path)
    assert (found.done, found.of) == (2, 3)
    content = (tmp_path / "kept" / "checkpoint.sealed").read_bytes()
    vector = found.adapter.vector
    moved = np.flatnonzero(vector != server.initial.vector)
    assert len(moved) > 100
    assert not any(vector[at : at + 4].tobytes() in content for at in moved[:100])
    other = replace(file_in(tmp_path), key=storage_key(tmp_path / "other"))
    place = RoundPlace(1, request.broadcast.digest, "6", server.site.bench.layout)
    with caplog.at_level(logging.WARNING):
        assert other.load(place) is None
    assert "begins anew" in caplog.text


def test_only_the_same_round_over_the_same_rows_goes_on(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another round, broadcast, number of rows or run, and damage: there is nothing to go on from."""
    server = keeping(make(steps=3), tmp_path)
    request = server.request(sums=(TRAINING,))
    killed_after(monkeypatch, 2, server, request)
    place = RoundPlace(1, request.broadcast.digest, "6", server.site.bench.layout)
    file = file_in(tmp_path)
    assert file.load(place) is not None
    others: list[dict[str, Any]] = [
        {"round": 2},
        {"broadcast": "00" * 32},
        {"rows": "5"},
        {"rows": "6 otherwise"},
    ]
    for changed in others:
        assert file.load(replace(place, **changed)) is None
    assert file_in(tmp_path, run_id="another").load(place) is None
    path = tmp_path / "kept" / "checkpoint.sealed"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert file.load(place) is None
    assert answer(request, server.site).status == "ok"


def test_a_checkpoint_goes_with_its_round(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the round went on without the site, the next one destroys it; another run's is left alone."""
    server = keeping(make(steps=3), tmp_path)
    killed_after(monkeypatch, 1, server, server.request(sums=(TRAINING,)))
    path = tmp_path / "kept" / "checkpoint.sealed"
    file_in(tmp_path, run_id="another").forget(round=9)
    file_in(tmp_path).forget(round=0)
    assert path.exists()
    monkeypatch.setattr(CheckpointFile, "write", lambda *_: None)
    again = keeping(server.restarted(), tmp_path)
    assert answer(again.request(2, sums=(EVALUATION,)), again.site).status == "ok"
    assert not path.exists()


def test_a_full_disk_costs_the_checkpoint_and_not_the_round(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and training goes on."""

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("cannot write", found="No space left on device")

    server = keeping(make(steps=3), tmp_path)
    monkeypatch.setattr(sealed_files.SealedFile, "write", full)
    with caplog.at_level(logging.WARNING):
        assert answer(server.request(sums=(TRAINING,)), server.site).status == "ok"
    assert "training goes on" in caplog.text


def test_none_is_written_before_it_is_time(make: Make, tmp_path: Path) -> None:
    """Short rounds write none at all."""
    server = keeping(make(steps=3), tmp_path, every_s=1000.0)
    assert answer(server.request(sums=(TRAINING,)), server.site).status == "ok"
    assert not (tmp_path / "kept").exists()


def charged(server: Any) -> list[int]:
    """Steps of every reservation of round 1."""
    with server.site.privacy.charges.ledger() as ledger:
        found: list[int] = [charge.terms.mechanism.steps for charge in ledger.book.draws.of(("run", 1, 0))]
        return found


def test_a_private_round_that_goes_on_draws_afresh_and_pays_for_it(
    private: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    """The first reservation stays whole, the second one is for the rest; one contribution is sealed."""
    server = keeping(private(cap=20.0), tmp_path)
    killed_after(monkeypatch, 2, server, server.request(sums=(TRAINING,)))
    assert charged(server) == [3]
    steps.clear()
    again = keeping(private(cap=20.0), tmp_path)
    reply = answer(again.request(sums=(TRAINING,)), again.site)
    assert reply.status == "ok", reply.reason
    assert (len(steps), charged(again)) == (1, [3, 1])
    with again.site.privacy.charges.ledger() as ledger:
        source = ledger.source("again", sorted(set(UNITS)))
        assert reply.local[SPENT] == ledger.epsilon(source, run="run").value
        assert ledger.sealed(run="run", round=1, stage=0) is not None


def test_a_private_site_that_cannot_pay_twice_drops_out_of_the_round(
    private: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    """Its cap covers the plan once: the rest of the round would be a second time."""
    server = keeping(private(cap=4.1), tmp_path)
    with server.site.privacy.charges.ledger() as ledger:
        source = ledger.source("p", sorted(set(UNITS)))
        for round in (2, 3):  # what an earlier process has reserved of this plan
            ledger.reserve(
                source, run="run", plan=server.site.plan.digest, round=round, stage=0, draw="earlier",
                mechanism=server.site.privacy.cost.mechanism,
            )  # fmt: skip
    killed_after(monkeypatch, 1, server, server.request(sums=(TRAINING,)))
    steps.clear()
    again = keeping(private(cap=4.1), tmp_path)
    reply = answer(again.request(sums=(TRAINING,)), again.site)
    assert (reply.status, reply.code, reply.sums) == ("refused", "budget", {})
    assert not steps
    assert charged(again) == [3]


def test_a_private_checkpoint_holds_nothing_exact(
    private: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss, no number of targets, no generator from which dropout could be drawn again."""
    server = keeping(private(cap=20.0), tmp_path)
    request = server.request(sums=(TRAINING,))
    killed_after(monkeypatch, 2, server, request)
    found = left_by(server, request, tmp_path)
    assert not found.targets
    assert not found.losses.any()
    assert not found.generators


def test_a_site_that_ends_between_keeping_and_sealing_seals_what_it_kept(
    private: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same first attempt again, over what was kept: nothing is drawn, nothing more is charged."""
    server = private(cap=20.0)

    def ends(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "seal", ends)
        with pytest.raises(Killed):
            answer(server.request(sums=(TRAINING,)), server.site)
    _, lanes = server.site.parties.kept[TRAINING]
    again = private(cap=20.0)
    again.site.parties.kept = server.site.parties.kept
    monkeypatch.setattr(work, "train_locally", None)
    assert answer(again.request(sums=(TRAINING,)), again.site).status == "ok"
    assert charged(again) == [3]
    with again.site.privacy.charges.ledger() as ledger:
        assert ledger.sealed(run="run", round=1, stage=0) == work.digest_of(lanes)


def closing_after(server: Any, folder: Path, steps: list[int], step: int) -> Any:
    """The site, whose hours are over once so many steps are taken; it then ends."""

    def ends() -> None:
        raise Killed

    file = replace(file_in(folder, every_s=1e9), closing=lambda: len(steps) >= step, leave=ends)
    return replace(server, site=replace(server.site, checkpoints=file))


@pytest.mark.parametrize("step", [1, 2])
def test_a_private_round_that_the_hours_end_costs_what_it_would_have_cost(
    private: Make, tmp_path: Path, steps: list[int], step: int
) -> None:
    """The steps that ran are charged then, the others when it goes on: together they are the plan's."""
    server = closing_after(private(cap=20.0), tmp_path, steps, step)
    with pytest.raises(Killed):
        answer(server.request(sums=(TRAINING,)), server.site)
    assert len(steps) == step
    assert left(server) == [step]
    again = keeping(private(cap=20.0), tmp_path)
    reply = answer(again.request(sums=(TRAINING,)), again.site)
    assert reply.status == "ok"
    assert left(again) == [step, 3 - step]
    (tmp_path / "ledger").rename(tmp_path / "before")
    whole = private(cap=20.0)
    undisturbed = answer(whole.request(sums=(TRAINING,)), whole.site)
    assert reply.local[SPENT] == undisturbed.local[SPENT], "ε says nothing of the hours"


def left(server: Any) -> list[int]:
    """Steps for which each reservation of round 1 counts."""
    with server.site.privacy.charges.ledger() as ledger:
        stage = ("run", 1, 0)
        return [ledger.book.steps_left((*stage, charge.draw)) for charge in ledger.book.draws.of(stage)]


def test_twice_ended_by_the_hours_it_counts_each_part_once(
    private: Make, tmp_path: Path, steps: list[int]
) -> None:
    """A part begins where the one before ended."""
    for step in (1, 2):
        server = closing_after(private(cap=20.0), tmp_path, steps, step)
        with pytest.raises(Killed):
            answer(server.request(sums=(TRAINING,)), server.site)
    assert left(server) == [1, 1]


def test_a_private_round_that_fails_stays_charged_in_full(
    private: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    """At which step it failed may hang on one patient's rows, and ε would tell it."""

    def fails(self: Any, checkpoint: Checkpoint, place: RoundPlace) -> None:
        raise TrainingError("non_finite_loss", "a loss is not finite")

    monkeypatch.setattr(CheckpointFile, "write", fails)
    server = keeping(private(cap=20.0), tmp_path)
    reply = answer(server.request(sums=(TRAINING,)), server.site)
    assert (reply.status, reply.code) == ("failed", "non_finite_loss")
    assert len(steps) == 1
    assert left(server) == [3]


def test_what_cannot_be_settled_stays_charged_and_the_site_ends_all_the_same(
    private: Make, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A full disk."""

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("no room")

    server = closing_after(private(cap=20.0), tmp_path, steps, 1)
    monkeypatch.setattr(Ledger, "settle", full)
    with pytest.raises(Killed):
        answer(server.request(sums=(TRAINING,)), server.site)
    assert left(server) == [3]
    assert "stays charged in full" in caplog.text


def test_a_round_whose_checkpoint_cannot_be_kept_is_not_left_nor_settled(
    private: Make, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on, and is charged for all of it."""

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(CheckpointFile, "write", full)
    server = closing_after(private(cap=20.0), tmp_path, steps, 1)
    assert answer(server.request(sums=(TRAINING,)), server.site).status == "ok"
    assert left(server) == [3]


def test_only_who_reserved_it_settles_it(private: Make) -> None:
    """Not another process, nor who asked twice; and not once it is sealed."""
    privacy, plan = private(cap=20.0).site.privacy, private(cap=20.0).site.plan
    asked = {"cohort": 1, "coordinates": 1}
    privacy.reserve(plan, "run", 1, draw="mine", **asked)
    other = replace(privacy, charges=LedgerCharges(privacy.charges.ledger))
    other.settle("run", 1, "mine", 1)
    privacy.reserve(plan, "run", 1, draw="twice", **asked)
    privacy.reserve(plan, "run", 1, draw="twice", **asked)
    privacy.settle("run", 1, "twice", 1)
    privacy.reserve(plan, "run", 2, draw="sealed", **asked)
    privacy.seal("run", 2, "11" * 32)
    privacy.settle("run", 2, "sealed", 1)
    with privacy.charges.ledger() as ledger:
        reserved = [("run", 1, 0, "mine"), ("run", 1, 0, "twice"), ("run", 2, 0, "sealed")]
        assert [ledger.book.steps_left(draw) for draw in reserved] == [3, 3, 3]
    privacy.settle("run", 1, "mine", 2)
    privacy.settle("run", 1, "mine", 1)
    with privacy.charges.ledger() as ledger:
        assert ledger.book.steps_left(reserved[0]) == 2, "once"
