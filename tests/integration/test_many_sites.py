"""Many sites in one process: what they take of memory, and a thousand of them that are killed and go on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from wardround.client.site import Site
from wardround.privacy.secagg import messages
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded
from wardround.simulations import arms, waiting
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import run_simulation

THOUSAND = 1_000
ROUNDS = 3
DEADLINE_S = 900.0
RUN = """
import sys, pathlib
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import run_simulation
run_simulation(RunConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text()))
"""


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Site]:
    """All sites of the last run."""
    seen: dict[tuple[str, str], Site] = {}
    plain = arms.client_app

    def recording(served: Any, **more: Any) -> Any:
        seen.clear()
        seen.update(served)
        return plain(served, **more)

    monkeypatch.setattr(arms, "client_app", recording)
    return seen


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"strategy": {"name": "tangent"}},
        {"secure": {"mode": "real"}, "rounds": {"rounds": 2}, "data": {"validation_fraction": 0.0}},
        {"secure": {"mode": "accounted", "attempts": 2}, "simulation": {"outage": 0.2}},
    ],
    ids=str,
)
def test_contributions_that_wait_on_disk_change_nothing(
    notes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    """Masked or not, in a further attempt as well: the adapter has the same bits."""
    settings: Callable[..., RunConfig] = notes(rows=96, wards=8, rounds=3)
    memory = run_simulation(settings("memory", **sections))
    written, mapped = [], waiting.ContributionsOnDisk._mapped

    def counted(kept: waiting.ContributionsOnDisk, name: str, coordinates: Any) -> Any:
        written.append(kept.folder.name)
        return mapped(kept, name, coordinates)

    monkeypatch.setattr(waiting.ContributionsOnDisk, "_mapped", counted)
    monkeypatch.setattr(waiting.contributions_of, "__defaults__", (0,))
    disk = run_simulation(settings("disk", **sections))
    assert disk.federated.outcome.last.adapter.digest == memory.federated.outcome.last.adapter.digest
    assert len(set(written)) > 1
    assert not list(disk.folder.rglob("waiting-*")), "nothing is left of it"


@pytest.mark.parametrize("strategy", ["fedavg", "tangent", "fedavgm"])
def test_what_all_sites_know_of_the_state_is_in_memory_once(
    notes: Callable[..., Any], sites: dict[tuple[str, str], Site], strategy: str
) -> None:
    """After the first round, which every site was sent, and after later ones, which sites fold themselves."""
    settings: Callable[..., RunConfig] = notes(rows=96, wards=8, rounds=3)
    for rounds in (1, 3):
        more = {"rounds": {"rounds": rounds}, "strategy": {"name": strategy}}
        run_simulation(settings(f"rounds{rounds}", **more))
        known = [site.folds.known for site in sites.values()]
        assert len(known) == 8
        assert len({id(state.adapter.vector) for state in known if state is not None}) == 1


@pytest.mark.parametrize("mode", ["off", "real"])
def test_what_all_sites_are_sent_is_read_once(notes: Callable[..., Any], mode: str) -> None:
    """An offer and an opened sum name every site: read by each of them they would cost their square."""
    settings: Callable[..., RunConfig] = notes(rows=96, wards=8, rounds=3)
    messages._shared.cache_clear()
    run_simulation(settings("run", secure={"mode": mode}, data={"validation_fraction": 0.0}))
    read = messages._shared.cache_info()
    assert read.misses == 3 + 2, "offers, and sums of the rounds before the last"
    assert read.hits >= 3 * 8 + 2 * 8 - 5


def folded(run: Path) -> int:
    """Rounds that are done."""
    events = run / "metrics.jsonl"
    if not events.exists():
        return 0
    return sum(isinstance(event, RoundFolded) for event in read_events(events))


@pytest.mark.slow
def test_a_thousand_sites_that_are_killed_go_on(notes: Callable[..., Any], tmp_path: Path) -> None:
    """Killed in the second of three rounds, and not killed: the same adapter in the end."""
    settings = notes(rows=2 * THOUSAND, wards=THOUSAND, rounds=ROUNDS, validation_fraction=0.0, max_length=16)
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def started(run: Path, **more: Any) -> subprocess.Popen[bytes]:
        config = settings(run.name, local={"steps": 1, "batch_size": 1}).model_copy(update=more)
        written = tmp_path / "config.json"
        written.write_text(config.model_dump_json())
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", RUN, str(written)], stdout=log, stderr=log)

    def ended(process: subprocess.Popen[bytes]) -> None:
        assert process.wait(DEADLINE_S) == 0, (tmp_path / "log").read_text()[-3000:]

    ended(started(whole))
    process, end = started(cut), time.monotonic() + DEADLINE_S
    try:
        while folded(cut) < 1:
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    assert folded(cut) < ROUNDS
    ended(started(cut, resume=str(cut)))
    assert folded(cut) == folded(whole) == ROUNDS
    expected, found = (load_file(run / "adapter/adapter_model.safetensors") for run in (whole, cut))
    assert expected.keys() == found.keys()
    assert all((expected[name] == found[name]).all() for name in expected)
