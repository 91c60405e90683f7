"""The real federation on loopback: three sites, each with its own processes, keys and folder; one server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from federation import Deployed, Federation, config_of

from wardround.client.accepted import RunFolders
from wardround.client.evaluating import compare
from wardround.client.fetching import fetch_result, fetch_roster, kept_result
from wardround.client.merging import merge_result
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import ConfigError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import PlanAnswered, RoundFolded
from wardround.server.run_states import RunStatus
from wardround.simulations.config import SimulationConfig
from wardround.simulations.simulate import run_simulation

COUNTS = {"aachen": 24, "basel": 17, "cork": 30}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Its folders and files."""
    return Federation.make(tmp_path_factory.mktemp("federation"), tiny_bert, COUNTS)


@pytest.fixture(scope="module")
def deployed(federation: Federation) -> Iterator[Deployed]:
    """All of its processes."""
    with ExitStack() as stack:
        yield Deployed.start(stack, federation)


@pytest.fixture(scope="module")
def finished(federation: Federation, deployed: Deployed) -> str:
    """A run that has ended, under secure aggregation."""
    run = deployed.submit(federation.plan("plan"))
    record = deployed.ended(run)
    assert record.status is RunStatus.FINISHED, record.reason
    return run


def test_the_networked_run_ends_with_the_simulations_adapter(
    federation: Federation, deployed: Deployed, finished: str, tmp_path: Path
) -> None:
    """One plan, two engines, the same digest after every round; every site accepted and none was lost."""
    events = read_events(deployed.server.desk.run(finished).folder.events)
    simulated = run_simulation(
        config_of(federation.base, federation.rows, output=str(tmp_path / "simulated"))
    )
    told = read_events(tmp_path / "simulated" / "metrics.jsonl")
    digests = [
        [
            (event.round, event.adapter_digest, event.survivors)
            for event in found
            if isinstance(event, RoundFolded)
        ]
        for found in (events, told)
    ]
    assert digests[0] == digests[1]
    assert [round for round, _, _ in digests[0]] == [1, 2]
    answers = {event.site: event for event in events if isinstance(event, PlanAnswered)}
    assert {site: (answer.verdict, answer.rows) for site, answer in answers.items()} == dict.fromkeys(
        COUNTS, ("accepted", "enough")
    )
    record = fetch_result(
        federation.practice.sites["cork"],
        RunFolders(federation.practice.sites["cork"].path / "runs"),
        finished,
    ).record
    assert record.last == simulated.federated.outcome.last.adapter.digest
    assert record.released == simulated.federated.outcome.released.digest


def test_sites_of_other_ranks_make_the_simulations_adapter(
    federation: Federation, deployed: Deployed, finished: str, tmp_path: Path
) -> None:
    """Tangent aggregation under secure aggregation: one site trains fewer directions, another one more."""
    assert finished, "one run after the other"
    ranks = {"aachen": 1, "cork": 3}
    before = {site: (federation.practice.sites[site].path / FILE).read_text() for site in ranks}
    try:
        for site, rank in ranks.items():
            path = federation.practice.sites[site].path / FILE
            path.write_text(before[site] + f"\nrank: {rank}\n")
        run = deployed.submit(federation.plan("tangent", strategy={"name": "tangent"}), "two")
        record = deployed.ended(run)
    finally:
        for site, text in before.items():
            (federation.practice.sites[site].path / FILE).write_text(text)
    assert record.status is RunStatus.FINISHED, record.reason
    config = config_of(
        federation.base, federation.rows, output=str(tmp_path / "simulated"),
        strategy={"name": "tangent"}, simulation={"ranks": ranks},
    )  # fmt: skip
    last = run_simulation(config).federated.outcome.last.adapter
    folded = [
        e for e in read_events(deployed.server.desk.run(run).folder.events) if isinstance(e, RoundFolded)
    ]
    assert [len(event.survivors) for event in folded] == [3, 3]
    assert folded[-1].adapter_digest == last.digest
    plain = run_simulation(
        config.model_copy(update={"output": str(tmp_path / "plain"), "simulation": SimulationConfig()})
    )
    assert plain.federated.outcome.last.adapter.digest != last.digest, "ranks change what is trained"


def test_a_site_fetches_the_result_and_merges_it(
    federation: Federation, finished: str, tmp_path: Path
) -> None:
    """What the server signed is checked and kept; merged, it answers as the adapter on the site's base."""
    site = federation.practice.sites["basel"]
    fetched = fetch_result(site, RunFolders(site.path / "runs"), finished)
    assert fetched.record.sites == tuple(sorted(COUNTS))
    assert sorted(path.name for path in fetched.folder.iterdir()) == [
        "last.safetensors", "released.safetensors", "result.signed.json",
    ]  # fmt: skip
    report = merge_result(read_site_settings(site.path / FILE), fetched, site.name, tmp_path / "merged")
    assert report.passed
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_a_site_compares_what_it_fetched_with_what_it_would_have_alone(
    federation: Federation, finished: str
) -> None:
    """Offline, from its own files; the site's own rows and the adapter that the server signed."""
    site = federation.practice.sites["aachen"]
    runs = RunFolders(site.path / "runs")
    fetched = fetch_result(site, runs, finished)
    kept = kept_result(site, runs, finished)
    assert kept.record == fetched.record
    found = compare(
        read_site_settings(site.path / FILE), kept, site.name, test=None, initial=None, alone=True,
        tell=lambda _: None,
    )  # fmt: skip
    assert set(found.scores) == {"base", "local", "federated"}
    assert found.rounds is not None
    assert found.rounds[0] == 2
    assert found.rows > 0


def test_the_server_gives_members_its_roster(federation: Federation, deployed: Deployed) -> None:
    """The signed roster, word for word; a run that the site had no part in is refused."""
    site = federation.practice.sites["aachen"]
    assert fetch_roster(site) == (federation.practice.server / "roster.json").read_bytes()
    with pytest.raises(ConfigError, match="took no part"):
        fetch_result(site, RunFolders(site.path / "runs"), "20260101-000000-00000000")
