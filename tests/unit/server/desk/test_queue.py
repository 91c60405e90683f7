"""The queue: first come first served, one at a time, and every end of a run frees its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from desk_runs import QUICK, Trainer, desk_at, submitted, until

from wardround.core.errors import (
    BudgetError,
    ConfigError,
    InternalError,
    PeerError,
    QuorumError,
    StorageError,
)
from wardround.server.desk import Desk, Limits
from wardround.server.run_record import RunFolder
from wardround.server.run_states import ALLOWED, RunStatus, Wish, moved, wished

Opened = Callable[..., Desk]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Starts desks in one folder; closes them."""
    desks: list[Desk] = []

    def start(execute: Any, **changes: Any) -> Desk:
        desks.append(desk_at(tmp_path, execute, **changes))
        return desks[-1]

    yield start
    for desk in desks:
        desk.close(5)


def ended(desk: Desk, run_id: str) -> Any:
    """Its record, once it has ended."""
    record = desk.wait(run_id, 10)
    assert record.status.ended, record
    return record


def test_runs_are_worked_at_in_order_and_one_at_a_time(opened: Opened) -> None:
    """Five runs: the order of submission, never two at once, each finished."""
    trainer = Trainer()
    desk = opened(trainer)
    runs = [submitted(desk) for _ in range(5)]
    assert {ended(desk, run).status for run in runs} == {RunStatus.FINISHED}
    assert trainer.worked == runs
    assert trainer.most_at_once == 1


class Unknown(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("this plan cannot be run", remedy="make another"), QuorumError("too few sites answered"),
        PeerError("a bad reply"), KeyError("patient 17"), MemoryError(), SystemExit(3), KeyboardInterrupt(),
        Unknown(), RecursionError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_head_that_cannot_run_frees_its_place(opened: Opened, error: BaseException) -> None:
    """Whatever it raises: it has failed, with a reason and without data; the next one trains."""
    desk = opened(Trainer(fail={b"bad": error}))
    head, following = submitted(desk, b"bad"), submitted(desk)
    assert ended(desk, following).status is RunStatus.FINISHED
    failed = ended(desk, head)
    assert failed.status is RunStatus.FAILED
    assert failed.reason
    assert "17" not in failed.reason
    assert "Traceback" not in failed.reason


def test_a_head_whose_files_are_gone_frees_its_place(opened: Opened) -> None:
    """Its folder was deleted while it waited: nothing of it can be written any more."""
    import shutil

    trainer = Trainer(hold=(1,))
    desk = opened(trainer)
    first = submitted(desk)
    until(trainer.holding.is_set)
    head, following = submitted(desk), submitted(desk)
    shutil.rmtree(desk.run(head).folder.path)
    desk.run(head).folder.path.write_text("in the way")
    trainer.go.set()
    assert ended(desk, following).status is RunStatus.FINISHED
    assert ended(desk, head).status is RunStatus.FAILED
    assert ended(desk, first).status is RunStatus.FINISHED


def test_the_list_shows_order_and_reason(opened: Opened) -> None:
    """At work first, then who waits, with who is ahead; then what has ended."""
    trainer = Trainer(hold=(1,), fail={b"bad": ConfigError("cannot be run")})
    desk = opened(trainer)
    bad = submitted(desk, b"bad")
    first, second, third = (submitted(desk) for _ in range(3))
    until(trainer.holding.is_set)
    assert [record.run_id for record in desk.listed()] == [first, second, third, bad]
    assert [record.run_id for record in desk.ahead_of(third)] == [first, second]
    assert desk.run(first).record.status is RunStatus.TRAINING
    assert desk.listed()[-1].reason == "cannot be run"


@pytest.mark.parametrize("hold", [0, 2])
@pytest.mark.parametrize("how", ["stop", "drain"])
def test_stop_and_drain_end_what_they_say_and_resume_goes_on(opened: Opened, hold: int, how: str) -> None:
    """Of an offering run and of one that trains; each goes on after its last round, and is then finished."""
    trainer = Trainer(hold=(hold,))
    desk = opened(trainer)
    run = submitted(desk)
    until(trainer.holding.is_set)
    assert desk.run(run).record.status is (RunStatus.TRAINING if hold else RunStatus.OFFERING)
    if how == "stop":
        assert desk.stop(run, 10).status is RunStatus.STOPPED
    else:
        told = desk.drain(run)
        assert told.status is (RunStatus.DRAINING if hold else RunStatus.OFFERING)
        trainer.go.set()
        assert ended(desk, run).status is RunStatus.STOPPED
    rounds = _rounds(desk, run)
    assert rounds == list(range(1, (hold if how == "stop" else hold + 1) or 1))
    trainer.go.set()
    assert desk.resume(run).status is RunStatus.QUEUED
    assert ended(desk, run).status is RunStatus.FINISHED
    assert _rounds(desk, run) == [1, 2, 3]


def test_a_waiting_run_stops_before_it_begins(opened: Opened) -> None:
    """Stop and drain alike; nobody ever works at it, and the others keep their order."""
    trainer = Trainer(hold=(1,))
    desk = opened(trainer)
    first, second, third, fourth = (submitted(desk) for _ in range(4))
    until(trainer.holding.is_set)
    assert desk.stop(second, 5).status is RunStatus.STOPPED
    assert desk.drain(third).status is RunStatus.STOPPED
    trainer.go.set()
    assert ended(desk, fourth).status is RunStatus.FINISHED
    assert trainer.worked == [first, fourth]
    desk.resume(second)
    assert ended(desk, second).status is RunStatus.FINISHED


def test_a_draining_run_may_be_stopped_at_once(opened: Opened) -> None:
    """And to drain one that is told to stop changes nothing."""
    trainer = Trainer(hold=(2,))
    desk = opened(trainer)
    run = submitted(desk)
    until(trainer.holding.is_set)
    desk.drain(run)
    assert desk.stop(run, 10).status is RunStatus.STOPPED
    assert _rounds(desk, run) == [1]


def test_an_executor_that_does_not_stop_is_given_up(opened: Opened) -> None:
    """Its place is free after the grace; what it still says counts no more; no second one beside it."""
    deaf, said = threading.Event(), []

    class Deaf(Trainer):
        def pause(self, control: Any) -> None:
            self.holding.set()
            deaf.wait(20)

        def train(self, run: RunFolder, control: Any, events: Any) -> None:
            try:
                super().train(run, control, events)
            except BaseException as error:
                said.append(error)
                raise

    trainer = Deaf(hold=(2,))
    desk = opened(trainer)
    run, following = submitted(desk), submitted(desk)
    until(trainer.holding.is_set)
    stopped = desk.stop(run, 10)
    assert stopped.status is RunStatus.STOPPED
    assert "given up" in stopped.reason
    trainer.hold = ()
    assert ended(desk, following).status is RunStatus.FINISHED
    with pytest.raises(StorageError, match="cannot be resumed yet"):
        desk.resume(run)
    deaf.set()
    until(lambda: said)
    assert "given up" in str(said[0])
    events = desk.run(run).folder.events.read_text()
    assert '"RoundFolded"' in events
    assert '"round": 2' in events
    assert events.count('"RoundFolded"') == 1
    until(lambda: not desk._given_up[run].is_alive())
    desk.resume(run)
    assert ended(desk, run).status is RunStatus.FINISHED


def test_excluded_sites_reach_the_executor_and_stay(opened: Opened) -> None:
    """From the next round on; once more after a resume; an unknown name is refused."""
    trainer = Trainer(hold=(1,))
    desk = opened(trainer)
    run = submitted(desk)
    until(trainer.holding.is_set)
    with pytest.raises(ConfigError, match="amber"):
        desk.exclude(run, "ambe")
    with pytest.raises(ConfigError, match="no site"):
        desk.exclude(run, "../x")
    assert desk.exclude(run, "birch").excluded == ("birch",)
    assert desk.exclude(run, "birch").excluded == ("birch",)
    desk.stop(run, 10)
    trainer.go.set()
    desk.resume(run)
    assert ended(desk, run).status is RunStatus.FINISHED
    assert trainer.controls[-1].excluded == frozenset({"birch"})
    with pytest.raises(ConfigError, match="finished"):
        desk.exclude(run, "cedar")


def test_why_tells_what_a_run_waits_for(opened: Opened) -> None:
    """The executor's own words and sites, since when; nothing once it goes on."""
    trainer = Trainer(hold=(0,))
    desk = opened(trainer)
    run = submitted(desk)
    until(trainer.holding.is_set)
    control = desk.run(run).control
    assert control is not None
    assert (control.waiting.text, control.waiting.sites) == (
        "two sites have not answered the offer", ("amber", "cedar"),
    )  # fmt: skip
    assert control.waiting.since > 0
    trainer.go.set()
    ended(desk, run)
    assert control.waiting.text == ""


def test_a_submission_is_made_once(opened: Opened) -> None:
    """Asked again after a lost answer it is the same run; under another plan it is refused."""
    desk = opened(Trainer())
    assert submitted(desk, b"p", "mine") == submitted(desk, b"p", "mine")
    with pytest.raises(ConfigError, match="another plan"):
        submitted(desk, b"q", "mine")
    assert len(desk.listed()) == 1


@pytest.mark.parametrize(
    ("plan", "initial"), [(b"", [b"a"]), (b"p" * (4 << 20) + b"p", [b"a"]), (b"p", []), (b"p", [b"", b""])]
)
def test_what_is_no_plan_leaves_nothing(opened: Opened, tmp_path: Path, plan: bytes, initial: Any) -> None:
    """Empty, too large, without an adapter: refused, and no folder is left."""
    desk = opened(Trainer())
    with pytest.raises(ConfigError):
        desk.submit(plan, initial, "s")
    assert desk.listed() == []
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".desk.lock"]


def test_an_upload_that_breaks_off_leaves_nothing(opened: Opened, tmp_path: Path) -> None:
    """The parts stop with an error: no run, no folder."""

    def parts() -> Iterator[bytes]:
        yield b"a"
        raise EOFError

    desk = opened(Trainer())
    with pytest.raises(EOFError):
        desk.submit(b"p", parts(), "s")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".desk.lock"]


def test_a_plan_that_the_check_refuses_is_not_queued(opened: Opened) -> None:
    """The server's own look at a plan comes first."""

    def check(plan: bytes) -> str:
        raise PeerError("the signature does not hold")

    desk = opened(Trainer(), check=check)
    with pytest.raises(PeerError):
        submitted(desk)
    assert desk.listed() == []


def test_the_queue_is_bounded(opened: Opened) -> None:
    """One more than allowed is refused."""
    trainer = Trainer(hold=(1,))
    desk = opened(trainer, limits=Limits(beat_s=0.1, most_waiting=2))
    submitted(desk)
    until(trainer.holding.is_set)
    submitted(desk)
    submitted(desk)
    with pytest.raises(BudgetError):
        submitted(desk)


def test_two_desks_never_share_a_folder(opened: Opened, tmp_path: Path) -> None:
    """The second one is refused while the first one lives."""
    desk = opened(Trainer())
    with pytest.raises(StorageError, match="another server"):
        desk_at(tmp_path, Trainer())
    desk.close()
    desk_at(tmp_path, Trainer()).close()


def test_an_unknown_run_is_named_with_the_nearest_one(opened: Opened) -> None:
    """And nothing that looks like a path is looked up."""
    desk = opened(Trainer())
    run = submitted(desk)
    for name in (run[:-1], "../../etc/passwd", ""):
        with pytest.raises(ConfigError, match="unknown run"):
            desk.stop(name, 1)


@pytest.mark.parametrize("now", list(RunStatus))
def test_only_the_allowed_ways_are_open(now: RunStatus) -> None:
    """Every other one is an error of ours; ended runs take no wish."""
    for then in RunStatus:
        if then in ALLOWED[now]:
            assert moved("run", now, then) is then
        else:
            with pytest.raises(InternalError):
                moved("run", now, then)
    if now.ended:
        for wish in (Wish.STOP, Wish.DRAIN):
            with pytest.raises(ConfigError):
                wished("run", now, wish)
    else:
        assert wished("run", now, Wish.STOP, Wish.DRAIN) is Wish.STOP
        assert wished("run", now, Wish.DRAIN, Wish.STOP) is Wish.STOP


def _rounds(desk: Desk, run: str) -> list[int]:
    from wardround.server.run_live import read_lines

    return [line["round"] for line in read_lines(desk.run(run).folder.journal / "rounds.jsonl")]


assert QUICK.stop_grace_s < 5
