"""What a run's events come to, for whoever asks how it stands."""

from __future__ import annotations

from typing import Any

from wardround.server.run_view import RunView


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
