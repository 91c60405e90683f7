"""What a private round costs that is killed, fails, or is ended by the site's hours in its middle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpointed_site import Killed, file_in, keeping, killed_after, left_by
from private_site import UNITS

from wardround.client import work
from wardround.client.charges import LedgerCharges
from wardround.client.checkpoints import CheckpointFile, RoundPlace
from wardround.client.ledger.ledger import Ledger
from wardround.client.round import answer
from wardround.core.errors import StorageError, TrainingError
from wardround.core.messages import SPENT
from wardround.privacy.sums.contract import TRAINING
from wardround.training.checkpoint import Checkpoint

Make = Callable[..., Any]


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
