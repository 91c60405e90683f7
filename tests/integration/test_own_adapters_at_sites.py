"""A personalised run's end, at the server and at a site: what is released (nothing) and what a site makes.

The rounds are a simulation's; the server writes its result, and the site fetches it with the real commands.
tests/deployment/test_personal_federation.py does the same between processes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from federation import Federation, config_of

from wardround.client import fetching
from wardround.client.accepted import RunFolders
from wardround.client.fetching import fetch_result, kept_result
from wardround.client.membership.site_folder import SiteFolder, confirmed_roster
from wardround.client.memory import MEMORY_FOLDER, SiteStore
from wardround.client.sealed_files import Owner
from wardround.core.errors import ConfigError, PeerError
from wardround.runtime.event_log import JsonlSink
from wardround.runtime.events import RoundBurnt, RoundFolded
from wardround.runtime.files import load_tensors
from wardround.runtime.plan_folder import SIGNED, read_plan
from wardround.runtime.result_record import KIND, SHARED, ResultRecord
from wardround.runtime.signed import sign_document
from wardround.runtime.small_files import read_identity
from wardround.server.consortium.server_folder import open_server_folder
from wardround.server.execution import write_result
from wardround.server.outcome import Outcome
from wardround.server.run_record import RunFolder
from wardround.simulations.after_run import evaluate_file, merge_run, predict_file
from wardround.simulations.arms import site_store
from wardround.simulations.simulate import SimulationResult, run_simulation

COUNTS = {"aachen": 24, "basel": 17, "cork": 30}
RUN = "20261127-120000-0a1b2c3d"
SITE, ROUNDS = "aachen", 2
STRATEGY = {"name": "fedsa"}


@dataclass(frozen=True)
class Ended:
    """A run whose rounds are over, at a server and at one site that accepted it.

    Attributes:
        federation: Folders that a test may spoil.
        server: The run's folder at the server.
        site: The site's folder.
        runs: Its folders of runs.
        simulated: What was trained.
    """

    federation: Federation
    server: RunFolder
    site: SiteFolder
    runs: RunFolders
    simulated: SimulationResult

    @property
    def folder(self) -> Path:
        """Of the run, at the site."""
        return self.runs.of(RUN)

    def write(self, outcome: Outcome | None = None) -> ResultRecord:
        """What the server writes when the rounds are over."""
        signed = read_plan(self.federation.practice.folder / "plan")
        own: Any = SimpleNamespace(identity=read_identity(self.federation.practice.server / "identity.key"))
        return write_result(
            self.server, signed, confirmed_roster(self.site), tuple(sorted(COUNTS)),
            outcome or self.simulated.federated.outcome, own,
        )  # fmt: skip

    def keep(self, *rounds: int) -> None:
        """Let the site have kept what the simulated one kept of these rounds."""
        plan = self.simulated.plan
        owner = Owner(run_id=RUN, plan=bytes.fromhex(plan.digest), site=SITE)
        store = SiteStore.sealed(self.folder / MEMORY_FOLDER, owner, self.site.storage_key())
        trained = site_store(self.simulated.folder / "arms" / "federated", SITE)
        for round in rounds:
            store.save(trained.load(before_round=round + 1), round=round)

    def command(self, command_line: Any, *words: str, code: int = 0) -> str:
        """What a command of the site says."""
        done = command_line(self.site.path, "site", *words, "--folder", str(self.site.path), code=code)
        return str(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[Federation, SimulationResult]:
    """A signed plan, and the simulation of it."""
    folder = tmp_path_factory.mktemp("own")
    federation = Federation.make(folder, tiny_bert, COUNTS)
    federation.plan("plan", strategy=STRATEGY)
    config = config_of(tiny_bert, federation.rows, output=str(folder / "run"), strategy=STRATEGY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wardround.simulations.plots.plot_run", lambda *_, **__: None)
        return federation, run_simulation(config)


@pytest.fixture
def ended(
    trained: tuple[Federation, SimulationResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Ended:
    """Both folders, and a server that answers from its files."""
    federation = trained[0].copied(tmp_path / "practice")
    site = federation.practice.sites[SITE]
    server, runs = open_server_folder(federation.practice.server), RunFolders(site.path / "runs")
    signed = read_plan(federation.practice.folder / "plan")
    runs.offered(RUN, (federation.practice.folder / "plan" / SIGNED).read_bytes())
    key = bytes.fromhex(server.certificate().identity)
    runs.accept(RUN, plan=signed.digest, roster=confirmed_roster(site).digest, server=key)
    work = RunFolder(federation.practice.server / "runs" / RUN, RUN)
    work.path.mkdir(parents=True)

    def asked(_: SiteFolder, path: str, largest: int, **__: Any) -> bytes:
        file = work.path / "result" / path.rpartition("/")[2]
        if not file.exists():
            raise ConfigError("the server has no such result")
        assert file.stat().st_size <= largest
        return file.read_bytes()

    monkeypatch.setattr(fetching, "ask_server", asked)
    return Ended(federation, work, site, runs, trained[1])


def test_the_server_releases_no_adapter_and_says_so(ended: Ended, command_line: Any) -> None:
    """What federates is named as what it is, and no command takes it."""
    record = ended.write()
    assert (record.released, record.released_round) == (None, None)
    last = ended.simulated.federated.outcome.last
    assert (record.last, record.last_round) == (last.adapter.digest, ROUNDS)
    folder = ended.server.path / "result"
    assert sorted(path.name for path in folder.iterdir()) == ["result.signed.json", SHARED]
    assert "no adapter by itself" in load_tensors(folder / SHARED)[1]["what"]
    for take in (
        lambda: merge_run(folder), lambda: evaluate_file(folder, "rows.jsonl", None, as_json=True),
        lambda: merge_run(ended.server.path),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"(?s)no adapter by itself.*SITE/runs/RUN/result/adapter"):
            take()


def test_a_site_makes_its_own_adapter_of_both_parts_to_the_simulations_bits(
    ended: Ended, command_line: Any, tmp_path: Path
) -> None:
    """`fetch` makes it and says of what; `evaluate`, merge and predict take it; none is called released."""
    ended.keep(1, ROUNDS)
    ended.write()
    said = ended.command(command_line, "fetch", RUN)
    assert f"what the sites share after round {ROUNDS}, and its part of round {ROUNDS}" in said
    assert "released is round" not in said
    result, simulated = ended.folder / "result", ended.simulated.folder / "sites" / SITE / "adapter"
    assert sorted(path.name for path in result.iterdir()) == [
        "adapter", "own.safetensors", "result.signed.json", SHARED,
    ]  # fmt: skip
    config = "adapter_config.json"
    assert (result / "adapter" / config).read_bytes() == (simulated / config).read_bytes()
    ours, theirs = (
        safetensors.numpy.load_file(f / "adapter_model.safetensors") for f in (result / "adapter", simulated)
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    expected = ended.simulated.federated.own[SITE]
    fetched = kept_result(ended.site, ended.runs, RUN)
    assert (fetched.own, fetched.kept, fetched.adapter.digest) == (True, ROUNDS, expected.digest)

    found = json.loads(ended.command(command_line, "evaluate", RUN, "--json", "--without-local"))
    assert (found["own_adapter"], found["released_round"]) == (True, None)
    assert any("this site's own adapter" in note for note in found["notes"])
    rows = tmp_path / "rows.jsonl"
    lines = [{"note": f"case {i} of nobody", "grade": ("mild", "severe")[i % 2]} for i in range(8)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = evaluate_file(result / "adapter", str(rows), None, as_json=True)
    as_simulated = evaluate_file(simulated, str(rows), ended.simulated.folder, as_json=True)
    assert own.values == as_simulated.values
    assert evaluate_file(ended.folder, str(rows), None, as_json=True).values == own.values
    assert merge_run(ended.folder, tmp_path / "merged").passed
    assert merge_run(result, tmp_path / "merged too").passed
    predict_file(result, str(rows), tmp_path / "answers.jsonl", None)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 8


def test_fetched_and_merged_it_is_the_sites_own(ended: Ended, command_line: Any, tmp_path: Path) -> None:
    """`--merge` as for a released adapter; the shared part alone would have changed nothing."""
    ended.keep(ROUNDS)
    ended.write()
    said = ended.command(command_line, "fetch", RUN, "--merge", str(tmp_path / "merged"))
    assert "parity on" in said
    base = safetensors.numpy.load_file(ended.federation.base / "model.safetensors")
    merged = safetensors.numpy.load_file(tmp_path / "merged" / "model.safetensors")
    ends = {name.removeprefix("bert."): array for name, array in merged.items()}
    known = {name.removeprefix("bert."): array for name, array in base.items()}
    changed = {name for name in known.keys() & ends.keys() if not np.array_equal(known[name], ends[name])}
    assert any("query" in name for name in changed)


def test_a_site_that_never_trained_has_the_plans_initial_part(ended: Ended, command_line: Any) -> None:
    """Said, since it is no adapter that was made for its rows."""
    ended.write()
    said = ended.command(command_line, "fetch", RUN)
    assert "the plan's initial part: this site has kept none" in said
    fetched = kept_result(ended.site, ended.runs, RUN)
    assert fetched.kept is None
    assert fetched.adapter.digest == ended.simulated.federated.outcome.last.adapter.digest


@pytest.mark.parametrize(
    ("event", "kept"),
    [
        (RoundFolded("federated", ROUNDS, ("basel", "cork"), (SITE,), 0.1, 0.1, 9, 1.0, "d" * 64), 1),
        (RoundBurnt("federated", ROUNDS, "nobody answered", (SITE, "basel", "cork")), 1),
        (RoundFolded("federated", ROUNDS, (SITE, "cork"), ("basel",), 0.1, 0.1, 9, 1.0, "d" * 64), ROUNDS),
    ],
    ids=["not in the sum", "burnt", "another site"],
)
def test_what_is_in_no_sum_goes_for_nothing(ended: Ended, event: RoundFolded | RoundBurnt, kept: int) -> None:
    """As where the site is asked again: the part of the round before counts."""
    ended.keep(1, ROUNDS)
    JsonlSink(ended.server.events).emit(event)
    ended.write()
    assert fetch_result(ended.site, ended.runs, RUN).kept == kept


def test_fetched_again_it_is_not_made_worse(ended: Ended) -> None:
    """What the site kept is lost meanwhile: the adapter that was made of it stays."""
    ended.keep(ROUNDS)
    ended.write()
    first = fetch_result(ended.site, ended.runs, RUN)
    shutil.rmtree(ended.folder / MEMORY_FOLDER)
    again = fetch_result(ended.site, ended.runs, RUN)
    assert (again.kept, again.adapter.digest) == (ROUNDS, first.adapter.digest)
    assert kept_result(ended.site, ended.runs, RUN).adapter.digest == first.adapter.digest


def test_a_record_that_does_not_end_as_the_plan_does_is_refused(ended: Ended) -> None:
    """A server that releases what federates for an adapter is caught by the plan's strategy."""
    outcome = ended.simulated.federated.outcome
    ended.write(Outcome(outcome.last, outcome.selection, ROUNDS, outcome.last.adapter, "completed"))
    with pytest.raises(PeerError, match="does not end as the plan's strategy does"):
        fetch_result(ended.site, ended.runs, RUN)
    assert not (ended.folder / "result").exists()


def test_what_lies_at_the_site_is_held_against_the_record(ended: Ended) -> None:
    """Another shared part is refused; an own adapter of another result is to be made anew."""
    ended.keep(ROUNDS)
    record = ended.write()
    shared = ended.server.path / "result" / SHARED
    whole = shared.read_bytes()
    shared.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Exception, match="does not hold what was written"):
        fetch_result(ended.site, ended.runs, RUN)
    shared.write_bytes(whole)
    fetch_result(ended.site, ended.runs, RUN)
    other = record.model_copy(update={"last": "0" * 64})
    own = read_identity(ended.federation.practice.server / "identity.key")
    (ended.folder / "result" / "result.signed.json").write_bytes(sign_document(KIND, other, own))
    with pytest.raises(PeerError, match=r"(?s)not of the result.*wardround site fetch"):
        kept_result(ended.site, ended.runs, RUN)
