"""A site is killed in the middle of its local round, with real processes: it goes on at its checkpoint."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import yaml
from deployed import wait_for
from federation import Federation, config_of

from wardround.client import supervisor
from wardround.client.accepted import RunFolders
from wardround.client.fetching import fetch_result
from wardround.client.hours import DAYS, Opening
from wardround.client.kept_process import ProcessState
from wardround.client.processes import SiteProcesses
from wardround.client.supervisor import running_site
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded
from wardround.runtime.plan_folder import INITIAL, SIGNED
from wardround.server.daemon import RunningServer, running_server
from wardround.simulations.simulate import run_simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COUNTS = {"aachen": 96, "basel": 68, "cork": 120}
STEPS = 300
"""A round lasts longer than it takes to notice that one is under way, on a fast machine too."""
WORK = {"rounds": {"rounds": 2, "deadline_s": 600.0}, "local": {"steps": STEPS, "batch_size": 4}}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Sites that leave a checkpoint five times a second."""
    return Federation.make(tmp_path_factory.mktemp("cut"), tiny_bert, COUNTS, checkpoint_s=0.2)


@pytest.fixture(scope="module")
def undisturbed(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the last adapter of a simulation of the same plan."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run_simulation(config_of(federation.base, federation.rows, output=str(output), **WORK))
    return done.federated.outcome.last.adapter.digest


def end_of(federation: Federation, server: RunningServer, name: str, cut: Callable[[str], None]) -> str:
    """Digest of the last adapter of a run that is cut; every site is in every round."""
    plan = federation.plan(name, **WORK)
    signed, initial = (plan / SIGNED).read_bytes(), (plan / INITIAL).read_bytes()
    run_id = server.desk.submit(signed, [initial], name).run_id
    cut(run_id)
    wait_for(lambda: server.desk.run(run_id).record.status.ended, 900)
    folder = federation.practice.server / "runs" / run_id
    rounds = [event for event in read_events(folder / "events.jsonl") if isinstance(event, RoundFolded)]
    assert [(event.round, event.survivors) for event in rounds] == [
        (round, tuple(sorted(COUNTS))) for round in (1, 2)
    ]
    site = federation.practice.sites["aachen"]
    return fetch_result(site, RunFolders(site.path / "runs"), run_id).record.last


def in_the_middle(federation: Federation, run_id: str, *sites: str) -> None:
    """Wait until each of these sites has left a few checkpoints in its round."""
    kept = {
        site: federation.practice.sites[site].path / "runs" / run_id / "kept" / "checkpoint.sealed"
        for site in sites
    }
    seen: dict[str, set[int]] = {site: set() for site in sites}

    def several() -> bool:
        for site, path in kept.items():
            with suppress(FileNotFoundError):
                seen[site].add(path.stat().st_mtime_ns)
        return all(len(times) > 1 for times in seen.values())

    wait_for(several, 300)


def went_on(federation: Federation, site: str) -> list[int]:
    """After which steps a site went on, in the order of its log."""
    path = federation.practice.sites[site].path / "logs" / "worker.log"
    log = path.read_text() if path.exists() else ""
    return [int(step) for step in re.findall(rf"goes on after step (\d+) of {STEPS}", log)]


def test_two_killed_workers_go_on_at_their_checkpoints(federation: Federation, undisturbed: str) -> None:
    """At once, of two of three sites: nobody is left out of the round, and no bit of the adapter differs."""
    with ExitStack() as stack:
        server = stack.enter_context(running_server(federation.practice.server))
        sites: dict[str, SiteProcesses] = {
            name: stack.enter_context(running_site(site.path))
            for name, site in federation.practice.sites.items()
        }

        def cut(run_id: str) -> None:
            in_the_middle(federation, run_id, "basel", "cork")
            for name in ("basel", "cork"):
                worker = next(state for state in sites[name].states() if state.name == "worker")
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)

        assert end_of(federation, server, "worker", cut) == undisturbed
    for name in ("basel", "cork"):
        (step,) = went_on(federation, name)
        assert 0 < step < STEPS


def test_a_round_waits_at_its_checkpoint_outside_the_sites_hours(
    federation: Federation, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker is gone meanwhile, and loses no step: the round goes on where it was left."""
    monkeypatch.setattr(supervisor, "Opening", partial(Opening, every_s=0.1))
    site = federation.practice.sites["basel"]
    before, settings = (
        len(went_on(federation, "basel")),
        yaml.safe_load((site.path / "site.yaml").read_text()),
    )
    with ExitStack() as stack:
        server = stack.enter_context(running_server(federation.practice.server))
        sites = {
            name: stack.enter_context(running_site(each.path))
            for name, each in federation.practice.sites.items()
        }

        def worker() -> ProcessState:
            return next(state for state in sites["basel"].states() if state.name == "worker")

        def cut(run_id: str) -> None:
            in_the_middle(federation, run_id, "basel")
            today = datetime.now().astimezone().weekday()
            (site.path / "site.yaml").write_text(
                yaml.safe_dump(settings | {"hours": [f"{DAYS[(today + 3) % 7]} 08:00-09:00"]})
            )
            wait_for(lambda: worker().pid is None, 120)
            time.sleep(3)
            assert (worker().pid, worker().reason) == (None, "until the site's working hours begin again")
            (site.path / "site.yaml").write_text(yaml.safe_dump(settings))

        assert end_of(federation, server, "hours", cut) == undisturbed
    (step,) = went_on(federation, "basel")[before:]
    log = (site.path / "logs" / "worker.log").read_text()
    assert f"is left after step {step} of {STEPS}: the site's working hours are over" in log


@contextmanager
def site_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`wardround site start`, ended at the end where it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wardround.cli", "site", "start", "--folder", str(folder)],
        stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        process.wait(60)


def test_a_whole_site_that_was_killed_goes_on_at_its_checkpoint(
    federation: Federation, undisturbed: str
) -> None:
    """Supervisor, node and worker, as in a power cut: it is asked again once Flower lets its node in."""
    folder, before = federation.practice.sites["basel"].path, len(went_on(federation, "basel"))
    with ExitStack() as stack:
        server = stack.enter_context(running_server(federation.practice.server))
        for name, site in federation.practice.sites.items():
            if name != "basel":
                stack.enter_context(running_site(site.path))
        first = stack.enter_context(site_process(folder))

        def cut(run_id: str) -> None:
            in_the_middle(federation, run_id, "basel")
            first.send_signal(signal.SIGKILL)
            first.wait()
            stack.enter_context(site_process(folder))

        assert end_of(federation, server, "site", cut) == undisturbed
    (step,) = went_on(federation, "basel")[before:]
    assert 0 < step < STEPS
