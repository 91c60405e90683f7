"""A site behind a line of 2 Mbit/s with 300 ms and 1 % loss: its rounds end, as those of others do.

`WARDROUND_SLOW_COORDINATES` says how many coordinates it has, `WARDROUND_SLOW_ROUNDS` how many rounds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from deployed import wait_for
from federation import Federation
from networks import SERVER, Line, slow_machines, why_not

from wardround.client.history.history import FOLDER, verify
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30}
PORT = 9443
LINE = Line(bits_s=2e6, round_trip_s=0.3, loss=0.01)
COORDINATES = int(os.environ.get("WARDROUND_SLOW_COORDINATES", "200000"))
ROUNDS = int(os.environ.get("WARDROUND_SLOW_ROUNDS", "2"))
A_RANK = 960
"""Coordinates that one more rank has, over all layers of the tiny model."""


def test_a_site_on_a_slow_line_completes_its_rounds(
    tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Two rounds with all three sites in each, and what it sent is what it recorded."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("s")
    federation = Federation.make(
        folder, tiny_bert, COUNTS, address=f"{SERVER}:{PORT}",
        plans={"least_units": 2, "least_a_label": 1, "least_batch": 2, "most_rank": 10**7},
    )  # fmt: skip
    rank = max(1, COORDINATES // A_RANK)
    plan = federation.plan(
        "plan", rounds={"rounds": ROUNDS, "deadline_s": 3 * 3600.0}, adapter={"options": {"r": rank}},
        grace_s=3 * 3600.0, local={"steps": 1, "batch_size": 4},
    )  # fmt: skip
    server = federation.practice.server
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        there, here = stack.enter_context(slow_machines(LINE))

        def start(machine: Any, *arguments: str, log: str) -> None:
            stack.enter_context(machine.process(["-m", "wardround.cli", *arguments], tmp_path / log, env))

        start(there, "server", "start", str(server), log="server.log")
        for name, site in federation.practice.sites.items():
            machine = here if name == "basel" else there
            start(machine, "site", "start", "--folder", str(site.path), log=f"{name}.log")
        wait_for((server / "control" / "control.sock").exists, 120)
        run = ["-m", "wardround.cli", "run", "start", str(plan), "--server", str(server), "--json"]
        with there.process(run, tmp_path / "run.json", env) as asked:
            assert asked.wait(600) == 0, (tmp_path / "run.json").read_text()
        run_id = json.loads((tmp_path / "run.json").read_text())["run_id"]
        began = time.monotonic()
        result = server / "runs" / run_id / "result" / "result.signed.json"
        wait_for(result.exists, 4 * 3600)
        took = time.monotonic() - began
    events = list(read_events(server / "runs" / run_id / "events.jsonl"))
    rounds = [event for event in events if isinstance(event, RoundFolded)]
    assert [event.survivors for event in rounds] == [tuple(sorted(COUNTS))] * ROUNDS
    sent = sum(row.left.bytes for row in verify(federation.practice.sites["basel"].path / FOLDER).sent)
    layout = json.loads((plan / "plan.json").read_text())["plan"]["adapter"]["layout"]["tensors"]
    figures = {
        "tensors": len(layout), "sent_bytes": sent, "seconds": round(took),
        "rounds_s": [round(event.wall_s) for event in rounds],
    }  # fmt: skip
    sys.stdout.write(json.dumps(figures) + "\n")
