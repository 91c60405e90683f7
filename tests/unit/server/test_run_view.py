"""What a run's events come to, for whoever asks how it stands."""

from __future__ import annotations

from typing import Any

from wardround.server.run_view import RunView, sentence


def folded(round: int, size: int) -> dict[str, Any]:
    """A round that counts."""
    return {"event": "RoundFolded", "round": round, "bytes_up": size}


def test_bytes_are_those_of_whole_rounds() -> None:
    """Of replies, those that a fold tells: a single reply's event has the first exchange alone."""
    view = RunView()
    for event in (
        {"event": "RoundStarted", "round": 1, "cohort": ["amber"], "bytes_down": 100},
        {
            "event": "SiteReplied", "round": 1, "site": "amber", "status": "ok", "code": "", "reason": "",
            "bytes_up": 7,
        },
        folded(1, 400),
        {"event": "RoundStarted", "round": 2, "cohort": ["amber"], "bytes_down": 100},
        {"event": "RoundBurnt", "round": 2, "reason": "lost"},
        {"event": "RoundStarted", "round": 3, "cohort": ["amber"], "bytes_down": 100},
        folded(3, 500),
    ):  # fmt: skip
        view = view.after(event)
    assert (view.bytes_down, view.bytes_up) == (300, 900)
    assert (view.round, view.phase) == (3, "folded")


def test_a_run_that_releases_nothing_names_no_best_round_at_its_end() -> None:
    """Each site has its own adapter then; while it trains, a score is a score."""
    scored = RunView().after({"event": "Improved", "round": 2, "metric": "loss", "value": 0.5})
    assert scored.released_round == 2
    end = {"event": "RunFinished", "reason": "completed", "last_round": 3, "best_round": 3}
    for digest, best, said in (("d" * 64, 3, "round 3 is released"), ("", 0, "none is released")):
        ended = end | {"adapter_digest": digest}
        assert scored.after(ended).released_round == best
        told = sentence(ended)
        assert told is not None
        assert said in told[1]
