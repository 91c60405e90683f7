"""Which round is released where sites are missing from a score."""

from __future__ import annotations

from typing import Any

import pytest

from wardround.core.plan import RoundRules
from wardround.privacy.sums.contract import EVALUATION
from wardround.runtime.events import Evaluated, Notice, RoundFolded
from wardround.server.rounds import run_rounds


def hard_and_easy(round: int, site: str) -> int:
    """Rows right after so many rounds: "hard" has 0, the others get better until round 3."""
    return 0 if site == "hard" else {1: 7, 2: 8, 3: 9}.get(round, 6)


HARD_ROWS = {"off": 10, "real": 20}
"""A quarter of all rows: the easy sites have 10 each."""
SITES = {"off": ("a", "b", "c", "hard"), "real": ("a", "b", "c", "d", "e", "f", "hard")}
MODES = pytest.mark.parametrize("mode", sorted(SITES))


def released_with(bench: Any, fault: Any, mode: str = "off", **changes: Any) -> tuple[Any, list[Any]]:
    """A run of four rounds over a hard site and easy ones: its outcome, its validation scores."""
    changes = {"rounds": RoundRules(rounds=4, deadline_s=0.05)} | changes
    transport = bench.transport(
        bench.plan_of(mode, **changes), fault, correct=hard_and_easy,
        rows_of=lambda site: HARD_ROWS[mode] if site == "hard" else 10,
    )  # fmt: skip
    outcome = run_rounds(bench.run(transport, SITES[mode]), bench.initial)
    return outcome, bench.recorder.of(Evaluated)


@MODES
def test_a_training_that_failed_does_not_change_which_rows_score_the_broadcast(bench: Any, mode: str) -> None:
    """What the site scored before it failed counts: every score is over the same rows."""
    easy = len(SITES[mode]) - 1
    rows = 10 * easy + HARD_ROWS[mode]
    outcome, evaluated = released_with(
        bench,
        lambda request, reply: (
            [bench.failed(reply)] if (request.site, request.round) == ("hard", 2) else [reply]
        ),
        mode,
    )
    assert [event.support["accuracy"] for event in evaluated] == [rows] * 5
    assert [event.missing for event in evaluated] == [()] * 5
    assert outcome.released_round == 3
    assert bench.recorder.of(RoundFolded)[1].missing == ("hard",)
    assert outcome.selection.scores[0] == (1, 7 * easy / rows)


def garbled(reply: Any) -> dict[str, bytes]:
    """The reply's sums, what it scored cut short."""
    return {n: m[:-1] if n == EVALUATION else m for n, m in reply.sums.items()}


@MODES
@pytest.mark.parametrize(
    "reply_to_round_2", ["late", "quarantined", "garbled", "failed before it had scored"]
)
def test_a_score_that_lacks_a_site_is_shown_and_not_compared_with_whole_ones(
    bench: Any, reply_to_round_2: str, mode: str
) -> None:
    """Without the hard site round 1 looks like the best by far; it is not released for that."""

    def fault(request: Any, reply: Any) -> Any:
        if (request.site, request.round) != ("hard", 2):
            return [reply]
        return {
            "late": [],
            "quarantined": [bench.replace(reply, sums={})],
            "garbled": [bench.replace(reply, sums=garbled(reply))],
            "failed before it had scored": [bench.replace(bench.failed(reply), sums={})],
        }[reply_to_round_2]

    outcome, evaluated = released_with(bench, fault, mode)
    easy = 10 * len(SITES[mode]) - 10
    rows = easy + HARD_ROWS[mode]
    assert [event.support["accuracy"] for event in evaluated] == [rows, easy, rows, rows, rows]
    assert [event.missing for event in evaluated] == [(), ("hard",), (), (), ()]
    assert evaluated[1].values["accuracy"] > max(event.values["accuracy"] for event in evaluated[2:])
    assert outcome.released_round == 3
    notices = [event.text for event in bench.recorder.of(Notice)]
    assert len(notices) == 1
    assert "round 1 lacks hard" in notices[0]


def test_a_score_that_nobody_gives_is_said_and_decides_nothing(bench: Any) -> None:
    """Under secure aggregation too few evaluators open nothing: no figure, a notice, the round goes on."""

    def fault(request: Any, reply: Any) -> Any:
        if request.round != 2 or request.site not in "abc" or EVALUATION not in reply.sums:
            return [reply]
        kept = {name: message for name, message in reply.sums.items() if name != EVALUATION}
        return [bench.replace(reply, sums=kept, status="failed", code="internal", reason="KeyError")]

    outcome, evaluated = released_with(bench, fault, "real")
    assert [event.round for event in evaluated] == [0, 2, 3, 4]
    assert [event.missing for event in evaluated] == [()] * 4
    assert [event.survivors for event in bench.recorder.of(RoundFolded)] == [SITES["real"]] * 4
    assert [round for round, _ in outcome.selection.scores] == [2, 3, 4]
    (notice,) = bench.recorder.of(Notice)
    assert "round 1 has no score" in notice.text
    assert outcome.released_round == 3


def test_a_site_that_has_left_for_good_does_not_pin_the_release_to_the_rounds_before(bench: Any) -> None:
    """From round 3 on the hard site is gone: the rounds scored without it are the larger group."""
    outcome, evaluated = released_with(
        bench,
        lambda request, reply: [] if request.site == "hard" and request.round >= 3 else [reply],
        rounds=RoundRules(rounds=6, deadline_s=0.05),
    )
    assert [event.missing for event in evaluated][1:] == [(), *[("hard",)] * 5]
    assert outcome.released_round == 3


def test_what_is_missing_from_a_score_survives_a_kill(bench: Any) -> None:
    """The journal says it, so that a resumed run releases the same round."""
    plan = bench.plan_of(rounds=RoundRules(rounds=4, deadline_s=0.05))

    class Killed(BaseException):
        pass

    def late(request: Any, reply: Any, dies: bool = False) -> Any:
        if dies and request.round == 4:
            raise Killed
        return [] if (request.site, request.round) == ("hard", 2) else [reply]

    sites = ("a", "b", "c", "hard")
    killed = bench.transport(plan, lambda request, reply: late(request, reply, dies=True), hard_and_easy)
    with pytest.raises(Killed):
        run_rounds(bench.run(killed, sites), bench.initial)
    outcome = run_rounds(bench.run(bench.transport(plan, late, hard_and_easy), sites), bench.initial)
    assert outcome.selection.missing == (("hard",), (), (), ())
    assert outcome.released_round == 3
