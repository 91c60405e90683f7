"""The server as trusted aggregator, between processes: the simulation's bits, and who refuses what."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import wait_for
from federation import Deployed, Federation, config_of, server_process, started, submitted

from wardround.client.site_settings import FILE
from wardround.client.supervisor import running_site
from wardround.core.errors import ConfigError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import PlanAnswered, RoundFolded
from wardround.server.consortium.aggregator import aggregator_key
from wardround.server.consortium.server_folder import AGGREGATOR_KEY
from wardround.server.run_states import RunStatus
from wardround.simulations.simulate import run_simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30}
METHODS: dict[str, dict[str, Any]] = {
    "flora": {"strategy": {"name": "flora"}},
    "coordinate_median": {"strategy": {"name": "coordinate_median"}},
    "int4": {"encoding": {"compression": {"method": "blocks", "bits": 4}}},
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Its folders and files, the aggregator's key among them, which every site pins."""
    made = Federation.make(tmp_path_factory.mktemp("trusted"), tiny_bert, COUNTS)
    key = aggregator_key(made.practice.server).public.hex()
    for site in COUNTS:
        pin(made, site, key)
    return made


def pin(federation: Federation, site: str, key: str) -> None:
    """A site's people choose an aggregator."""
    path = federation.practice.sites[site].path / FILE
    settings = yaml.safe_load(path.read_text())
    settings["policy"] = {"modes": ["trusted"], "aggregator": key}
    path.write_text(yaml.safe_dump(settings))


def sections_of(federation: Federation, method: str, **more: Any) -> dict[str, Any]:
    """The settings of a plan that names the server's key."""
    key = aggregator_key(federation.practice.server).public.hex()
    return {**METHODS[method], "secure": {"mode": "trusted", "aggregator": key}, **more}


def simulated(federation: Federation, method: str, output: Path, **more: Any) -> list[Any]:
    """What is told of the rounds of the same plan's simulation, whose aggregator has another key."""
    sections = {**METHODS[method], "secure": {"mode": "trusted"}, **more}
    result = run_simulation(config_of(federation.base, federation.rows, output=str(output), **sections))
    return folded(result.folder / "metrics.jsonl")


def folded(events: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Round, digest of the adapter after it, and its survivors, as they were told."""
    told = (event for event in read_events(events) if isinstance(event, RoundFolded))
    return [(event.round, event.adapter_digest, event.survivors) for event in told]


@pytest.fixture(scope="module")
def deployed(federation: Federation) -> Iterator[Deployed]:
    """All of its processes."""
    with ExitStack() as stack:
        yield Deployed.start(stack, federation)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_rounds_are_the_simulations(
    federation: Federation, deployed: Deployed, method: str, tmp_path: Path
) -> None:
    """Strategies that see each contribution, and contributions in fewer bytes: the same adapters."""
    run = deployed.submit(federation.plan(method, **sections_of(federation, method)), method)
    record = deployed.ended(run)
    assert record.status is RunStatus.FINISHED, record.reason
    found = folded(deployed.server.desk.run(run).folder.events)
    assert found == simulated(federation, method, tmp_path / "simulated")
    assert [survivors for _, _, survivors in found] == [tuple(sorted(COUNTS))] * 2
    key = (federation.practice.server / AGGREGATOR_KEY).read_bytes()
    for path in filter(Path.is_file, federation.practice.server.rglob("*")):
        assert path.name == AGGREGATOR_KEY or key not in path.read_bytes(), path


def test_a_site_that_pinned_another_key_refuses(federation: Federation, deployed: Deployed) -> None:
    """By its policy, and says so; the run goes on without it."""
    own = aggregator_key(federation.practice.server).public.hex()
    pin(federation, "basel", "ab" * 32)
    try:
        plan = federation.plan("pinned", least=2, **sections_of(federation, "flora"))
        run = deployed.submit(plan, "pinned")
        record = deployed.ended(run)
    finally:
        pin(federation, "basel", own)
    assert record.status is RunStatus.FINISHED, record.reason
    events = deployed.server.desk.run(run).folder.events
    (basel,) = [e for e in read_events(events) if isinstance(e, PlanAnswered) and e.site == "basel"]
    assert basel.verdict == "refused"
    assert "does not trust the plan's aggregator" in str(basel.reasons)
    assert [survivors for _, _, survivors in folded(events)] == [("aachen", "cork")] * 2


def test_a_server_without_the_plans_key_refuses_before_anybody_is_asked(
    federation: Federation, deployed: Deployed
) -> None:
    """At once, when the run is to be queued; and where the key went later, when its turn comes."""
    plan = federation.plan("keyless", **sections_of(federation, "coordinate_median"))
    file = federation.practice.server / AGGREGATOR_KEY
    kept = file.read_bytes()
    runs = len(deployed.server.desk.listed())
    try:
        file.unlink()
        with pytest.raises(ConfigError, match="cannot open what is sealed") as none:
            deployed.submit(plan, "keyless")
        aggregator_key(federation.practice.server)
        with pytest.raises(ConfigError, match="to another aggregator than this server") as other:
            deployed.submit(plan, "keyless")
    finally:
        file.write_bytes(kept)
        file.chmod(0o600)
    for error in (none.value, other.value):
        assert error.found
        assert error.expected
        assert "wardround server aggregator-key" in str(error.remedy)
    assert len(deployed.server.desk.listed()) == runs


def test_a_killed_server_goes_on_to_the_simulations_adapter(
    federation: Federation, deployed: Deployed, tmp_path: Path
) -> None:
    """It has lost what it had accepted in the round: sites seal what they kept once more."""
    more = {"rounds": {"rounds": 4, "deadline_s": 120.0}}
    deployed.stack.close()  # its processes end here: this is the last test of the module
    practice, log = federation.practice, tmp_path / "server.log"
    plan = federation.plan("killed", **sections_of(federation, "coordinate_median", **more))
    with ExitStack() as stack:
        for site in practice.sites.values():
            stack.enter_context(running_site(site.path))
        with server_process(practice.server, log) as first:
            run = submitted(practice.server, plan, "killed")
            folder = practice.server / "runs" / run
            wait_for(lambda: started(folder, 2), 240)
            first.send_signal(signal.SIGKILL)
            first.wait()
        time.sleep(1.0)
        with server_process(practice.server, log):
            wait_for((folder / "result" / "result.signed.json").exists, 300)
    found = folded(folder / "events.jsonl")
    assert found == simulated(federation, "coordinate_median", tmp_path / "simulated", **more)
