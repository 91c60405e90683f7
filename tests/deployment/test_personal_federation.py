"""Personalised methods between processes: each site ends with the simulation's adapter, at the site alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from deployed import wait_for
from federation import Deployed, Federation, config_of, kill_for_good, started

from wardround.client.accepted import RunFolders
from wardround.client.evaluating import compare
from wardround.client.fetching import fetch_result, kept_result
from wardround.client.merging import merge_result
from wardround.client.site_commands import fetch_run
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import ConfigError, TrainingError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded
from wardround.runtime.result_record import SHARED
from wardround.server.run_states import RunStatus
from wardround.simulations.after_run import merge_run
from wardround.simulations.simulate import SimulationResult, run_simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30, "delft": 600}
LOST = "delft"
"""Has so many rows that it is in the middle of a round when it is killed."""
WEIGHTS = "adapter_model.safetensors"
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedsa": {"name": "fedsa"},
    "dual_adapter": {"name": "dual_adapter", "options": {"global_rank": 1}},
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Its folders and files."""
    return Federation.make(tmp_path_factory.mktemp("personal"), tiny_bert, COUNTS)


@pytest.fixture(scope="module")
def deployed(federation: Federation) -> Iterator[Deployed]:
    """All of its processes."""
    with ExitStack() as stack:
        yield Deployed.start(stack, federation)


def simulated(federation: Federation, name: str, output: Path) -> SimulationResult:
    """The simulation of the same plan."""
    config = config_of(federation.base, federation.rows, output=str(output), strategy=STRATEGIES[name])
    return run_simulation(config)


def tensors(adapter: Path) -> dict[str, tuple[str, bytes]]:
    """Type, shape and bits of a saved adapter; the order of a file's notes is not its writer's to say."""
    found = safetensors.numpy.load_file(adapter / WEIGHTS)
    return {name: (f"{array.dtype}{array.shape}", array.tobytes()) for name, array in found.items()}


def folder_at(federation: Federation, site: str, run: str) -> Path:
    """A run's folder at a site."""
    return federation.practice.sites[site].path / "runs" / run


def require_simulations(federation: Federation, run: str, expected: SimulationResult) -> None:
    """Every site fetches the run's result, and ends with the simulation's adapter for it, bit for bit."""
    for site in COUNTS:
        fetch_run(federation.practice.sites[site].path, run, merge=None)
        own = folder_at(federation, site, run) / "result" / "adapter"
        assert tensors(own) == tensors(expected.folder / "sites" / site / "adapter"), site


def require_nothing_released(deployed: Deployed, run: str, sites: dict[str, bytes]) -> None:
    """The server has no adapter of a site, nor one that it would release."""
    folder = deployed.server.desk.run(run).folder.path
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not names & {WEIGHTS, "adapter_config.json", "released.safetensors", "last.safetensors"}
    assert {path.name for path in (folder / "result").iterdir()} == {"result.signed.json", SHARED}
    for path in filter(Path.is_file, folder.rglob("*")):
        content = path.read_bytes()
        assert not [site for site, own in sites.items() if own in content], path
    with pytest.raises(ConfigError, match="no adapter by itself"):
        merge_run(folder)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_each_site_ends_with_the_simulations_adapter(
    federation: Federation, deployed: Deployed, name: str, tmp_path: Path
) -> None:
    """Under secure aggregation. What a site kept of its own lies sealed, and nowhere at the server."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    run = deployed.submit(federation.plan(name, strategy=STRATEGIES[name]), name)
    record = deployed.ended(run)
    assert record.status is RunStatus.FINISHED, record.reason
    folded = [
        e for e in read_events(deployed.server.desk.run(run).folder.events) if isinstance(e, RoundFolded)
    ]
    assert [len(event.survivors) for event in folded] == [len(COUNTS)] * 2
    expected = simulated(federation, name, tmp_path / "simulated")
    require_simulations(federation, run, expected)

    parts: dict[str, bytes] = {}
    for site, own in expected.federated.own.items():
        spec = next(s for s in own.layout.tensors if s.role == "lora_b")
        part = own[spec.name] if name == "fedsa" else own[spec.name][:, 1:]
        assert np.any(part)
        parts[site] = np.ascontiguousarray(part).tobytes()
        memory = list((folder_at(federation, site, run) / "memory").iterdir())
        assert {path.name for path in memory} == {"round-00001.sealed", "round-00002.sealed"}
        assert not [path for path in memory if parts[site] in path.read_bytes()]
    require_nothing_released(deployed, run, parts)

    site = federation.practice.sites["basel"]
    adapter = folder_at(federation, "basel", run) / "result" / "adapter"
    base = AutoModelForSequenceClassification.from_pretrained(federation.base, num_labels=2)
    loaded = PeftModel.from_pretrained(base, str(adapter)).state_dict()
    for key, array in safetensors.numpy.load_file(adapter / WEIGHTS).items():
        (found,) = [value for where, value in loaded.items() if where.replace(".default", "") == key or (
            where.replace("modules_to_save.default.", "") == key
        )]  # fmt: skip
        np.testing.assert_array_equal(found.numpy(), array)
    settings, kept = (
        read_site_settings(site.path / FILE),
        kept_result(site, RunFolders(site.path / "runs"), run),
    )
    compared = compare(
        settings, kept, site.name, test=None, initial=None, alone=False, tell=lambda _: None
    )  # fmt: skip
    assert any("this site's own adapter" in note for note in compared.notes)
    assert merge_result(settings, kept, site.name, tmp_path / "merged").passed


def test_a_site_that_missed_the_last_round_makes_its_adapter_of_what_it_has(
    federation: Federation, deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it trains: what all share after round 2, with its own part of round 1; as simulated."""
    from wardround.client import round as handler

    plan = federation.plan(
        "lost", strategy=STRATEGIES["fedsa"], rounds={"rounds": 2, "deadline_s": 60.0}, grace_s=15.0
    )
    run = deployed.submit(plan, "lost")
    wait_for(lambda: started(deployed.server.desk.run(run).folder.path, 2), 300)
    kill_for_good(deployed.sites[LOST])
    record = deployed.ended(run, 400)
    assert record.status is RunStatus.FINISHED, record.reason
    site = federation.practice.sites[LOST]
    fetched = fetch_result(site, RunFolders(site.path / "runs"), run)
    assert (fetched.record.missing, fetched.kept) == (((2, (LOST,)),), 1)
    contribute = handler.contribute

    def losing(request: Any, broadcast: Any, site: Any, *rest: Any) -> Any:
        lanes = contribute(request, broadcast, site, *rest)
        if (site.name, request.round) == (LOST, 2):
            raise TrainingError("lost", "the site is gone")
        return lanes

    monkeypatch.setattr(handler, "contribute", losing)
    config = config_of(
        federation.base, federation.rows, output=str(tmp_path / "simulated"), strategy=STRATEGIES["fedsa"],
        rounds={"rounds": 2, "deadline_s": 60.0},
    )  # fmt: skip
    require_simulations(federation, run, run_simulation(config))
