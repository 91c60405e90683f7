"""The command of the README that trains with differential privacy, as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wardround.runtime.event_log import read_events
from wardround.simulations.plots import curves_of, draw

DELTA = 1e-4
"""Of conf/privacy/patient.yaml."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_task_trains_privately_and_shows_what_was_spent(tmp_path: Path) -> None:
    """ε with its δ in the summary, on the card, in the closing line and in what the picture is drawn from.

    Two rounds, and no arms beside the federated one: the noise is found for the rounds that there are.
    """
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "wardround.cli", "simulate", "privacy=patient", "privacy.epsilon=8",
        "rounds.rounds=2", "bounds.local_only=false", "bounds.centralised=false", f"output={folder}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["privacy"]
    spent, reserved = summary["epsilon"], summary["reserved"]
    assert 4 < spent < reserved <= 8
    assert (summary["delta"], summary["unit"]) == (DELTA, "patient")
    assert set(summary["sites"]) == {"cleveland", "hungarian", "switzerland", "va"}
    assert spent == max(site["spent"] for site in summary["sites"].values())
    assert all(1 / site["units"] > DELTA for site in summary["sites"].values())

    claim = f"ε = {spent:.4g} at δ = 0.0001 per patient and site, excluding tuning"
    assert summary["differential_privacy"] == claim
    assert claim in " ".join(done.stdout.split())
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"**{claim}**" in card
    for name, site in summary["sites"].items():
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {name} | {site['units']:.0f} ")]
        assert f"| {site['spent']:.4g} | {site['reserved']:.4g} |" in row

    curves = curves_of(list(read_events(folder / "metrics.jsonl")))
    assert curves.spent == spent
    assert curves.reserved[2] == reserved
    assert f"{DELTA:g}" in curves.claim
    labels = [
        text.get_text()
        for legend in draw(curves).findobj(lambda part: type(part).__name__ == "Legend")
        for text in legend.get_texts()  # type: ignore[attr-defined]  # matplotlib finds by a function alone
    ]
    assert f"ε spent: {spent:.3g}" in labels
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
