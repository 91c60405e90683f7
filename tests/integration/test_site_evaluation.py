"""`wardround site evaluate`: base, alone, federated on a site's own rows; nothing leaves, nothing stays."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from federation import Federation, config_of
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.accepted import RunFolders
from wardround.client.local_data import ready
from wardround.client.membership.site_folder import confirmed_roster, open_site_folder
from wardround.client.site_settings import read_site_settings
from wardround.core.counting import metric_layout, scores
from wardround.core.packed import Packed
from wardround.core.plan import RoundRules, TrainingPlan
from wardround.runtime.files import save_tensors
from wardround.runtime.plan_folder import SIGNED, read_plan
from wardround.runtime.result_record import KIND, ResultRecord
from wardround.runtime.signed import sign_document
from wardround.runtime.small_files import read_identity
from wardround.server.consortium.server_folder import open_server_folder
from wardround.simulations.simulate import SimulationResult, run_simulation
from wardround.training.alone import rounds_alone, train_alone
from wardround.training.evaluation import evaluate
from wardround.training.paired import LEAST_GROUPS, Counted, differences, grouped
from wardround.training.workbench import Workbench

COUNTS = {"aachen": 60, "basel": 10, "cork": 10}
RUN = "20261126-120000-0a1b2c3d"
SITE = "aachen"
Simulated: TypeAlias = tuple[Federation, SimulationResult]


def sections(**more: Any) -> dict[str, Any]:
    """Sections of the plan that let something be learnt, and hold enough patients back to compare."""
    data = {
        "source": {"path": "-"}, "columns": {"text": "note", "label": "grade"}, "labels": ["mild", "severe"],
        "max_length": 16, "unit_column": "patient", "site_column": "ward", "validation_fraction": 0.4,
    }  # fmt: skip
    local = {"steps": 3, "batch_size": 8, "learning_rate": 2e-2}
    return {"data": data, "local": local, "rounds": {"rounds": 3, "deadline_s": 120.0}, **more}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Simulated:
    """A federation's folders with a signed plan, and the simulation of it, with each site alone as well."""
    folder = tmp_path_factory.mktemp("evaluate")
    federation = Federation.make(folder, tiny_bert, COUNTS)
    for path in (*(folder / f"{site}.jsonl" for site in COUNTS), federation.rows):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:  # something to learn
            row["note"] = f"{row['grade']} {row['grade']} {row['note']}"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = sections()
    given["data"]["source"]["path"] = str(federation.rows)
    federation.plan("plan", **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wardround.simulations.plots.plot_run", lambda *_, **__: None)
        config = config_of(
            tiny_bert, federation.rows, output=str(folder / "run"), bounds={"local_only": True}, **given
        )
        result = run_simulation(config)
    return federation, result


@pytest.fixture
def federation(simulated: Simulated, tmp_path: Path) -> Federation:
    """A copy in which the site took part, and has fetched what the simulation released."""
    made, result = simulated
    shutil.copytree(made.practice.folder, tmp_path / "practice", copy_function=shutil.copy2)
    sites = {name: open_site_folder(tmp_path / "practice/sites" / name) for name in COUNTS}
    copy = replace(made, practice=replace(made.practice, folder=tmp_path / "practice", sites=sites))
    keep_result(copy, copy.practice.folder / "plan", result)
    return copy


def keep_result(federation: Federation, plan: Path, result: SimulationResult) -> None:
    """What a fetch leaves."""
    site, outcome = federation.practice.sites[SITE], result.federated.outcome
    runs, server = RunFolders(site.path / "runs"), open_server_folder(federation.practice.server)
    roster, key = confirmed_roster(site).digest, server.certificate().identity
    runs.offered(RUN, (plan / SIGNED).read_bytes())
    signed = read_plan(plan)
    runs.accept(RUN, plan=signed.digest, roster=roster, server=bytes.fromhex(key))
    record = ResultRecord(
        run_id=RUN, plan=signed.digest, roster=roster.hex(), sites=tuple(sorted(COUNTS)), reason="completed",
        metric="loss", scores=outcome.selection.scores, released_round=outcome.released_round,
        released=outcome.released.digest, last_round=outcome.last.round, last=outcome.last.adapter.digest,
    )  # fmt: skip
    folder = runs.of(RUN) / "result"
    folder.mkdir()
    save_tensors(folder / "released.safetensors", outcome.released.tensors())
    own = read_identity(federation.practice.server / "identity.key")
    (folder / "result.signed.json").write_bytes(sign_document(KIND, record, own))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection, or asks for a name, fails."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def run(command_line: Any, federation: Federation, *more: str, code: int = 0) -> str:
    """Output and errors of `site evaluate`."""
    site = federation.practice.sites[SITE].path
    done = command_line(site, "site", "evaluate", RUN, "--folder", str(site), *more, code=code)
    return str(done.stdout + done.stderr)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("no_network")
def test_three_adapters_are_compared_and_nothing_leaves_or_stays(
    federation: Federation, simulated: Simulated, command_line: Any
) -> None:
    """On the held-back rows, with intervals over patients; the federated figures are the simulation's own."""
    site = federation.practice.sites[SITE].path
    before = files(federation.practice.folder)
    found = json.loads(run(command_line, federation, "--json"))
    assert files(federation.practice.folder) == before
    assert (found["rows"], found["units"]) == (24, 12)
    assert found["local_rounds"]["trained"] == 3
    assert set(found["metrics"]) >= {"accuracy", "macro_f1", "auroc", "loss"}
    loss = found["metrics"]["loss"]
    assert loss["better"] == "min"
    plan, local = simulated[1].plan, ready(read_site_settings(site / "site.yaml"), simulated[1].plan, SITE)
    for arm, adapter in (
        ("federated", simulated[1].federated.outcome.released), ("base", local.bench.initial_adapter()),
    ):  # fmt: skip
        local.bench.load_adapter(adapter)
        counters = evaluate(
            local.bench.model, local.bench.task, plan.task, plan.data, local.rows.validation, batch_size=7,
            device=local.bench.device,
        )  # fmt: skip
        expected = scores(plan, counters).values
        assert {name: figure[arm] for name, figure in found["metrics"].items()} == pytest.approx(
            expected, abs=1e-5
        )
    for arm in ("base", "local"):
        gain = loss["federated_minus"][arm]
        assert gain["difference"] == pytest.approx(loss["federated"] - loss[arm])
        assert gain["low"] <= gain["difference"] <= gain["high"]
    assert any("held back" in note or "holds back" in note for note in found["notes"])
    assert any("its head (classifier)" in note for note in found["notes"])
    said = run(command_line, federation, "--without-local")
    assert "federated − base (95 %)" in said
    assert "Nothing of this has left it" in said
    assert "local" not in said.split("Nothing of")[0].replace("the local one", "")
    assert site.exists()


def test_what_a_site_trains_alone_is_the_simulations_local_arm(
    federation: Federation, simulated: Simulated
) -> None:
    """The same rounds and the same released one; the adapters differ by the ring's last digits alone."""
    arm = simulated[1].bounds[f"local/{SITE}"]
    plan = read_plan(federation.practice.folder / "plan").plan
    site = federation.practice.sites[SITE]
    local = ready(read_site_settings(site.path / "site.yaml"), plan, SITE)
    told: list[tuple[int, int]] = []
    alone = train_alone(
        local.bench, plan, local.rows, SITE, local.bench.initial_adapter(), sites=3,
        tell=lambda *round: told.append(round),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert alone.round == arm.outcome.released_round > 1
    moved = np.abs(arm.outcome.released.vector - local.bench.initial_adapter().vector).max()
    assert np.abs(alone.adapter.vector - arm.outcome.released.vector).max() < 1e-3 * moved


def test_rows_of_a_file_are_scored_and_those_seen_before_are_told(
    federation: Federation, command_line: Any, tmp_path: Path
) -> None:
    """Without a patient's column each row stands for itself; without labels there is nothing to score."""
    fresh = tmp_path / "fresh.jsonl"
    lines = [{"note": f"case {i} of nobody", "grade": ("mild", "severe")[i % 2]} for i in range(12)]
    fresh.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = json.loads(run(command_line, federation, "--rows", str(fresh), "--json", "--without-local"))
    assert (found["rows"], found["units"], found["local_rounds"]) == (12, 12, None)
    assert not any("too good" in note for note in found["notes"])
    own = Path(read_site_settings(federation.practice.sites[SITE].path / "site.yaml").source.path)
    said = run(command_line, federation, "--rows", str(own), "--without-local")
    assert "36 of 60 test rows equal one that was trained on; 18 units have rows in both" in said
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(line) + "\n" for line in lines[:4]))
    assert "(too few units)" in run(command_line, federation, "--rows", str(few), "--without-local")
    few.write_text(json.dumps({"note": "a", "grade": "kanarienvogel"}) + "\n")
    said = run(command_line, federation, "--rows", str(few), "--without-local", code=2)
    assert "a text of 13 characters" in said
    assert "kanarienvogel" not in said


def test_only_what_the_server_signed_is_evaluated(federation: Federation, command_line: Any) -> None:
    """Nothing fetched, another adapter, an altered record, a run of others: each by name."""
    folder = federation.practice.sites[SITE].path / "runs" / RUN / "result"
    released, record = folder / "released.safetensors", folder / "result.signed.json"
    bytes_of = {path: path.read_bytes() for path in (released, record)}
    record.write_bytes(bytes_of[record].replace(b"completed", b"early_stop"))
    run(command_line, federation, code=1)
    record.write_bytes(bytes_of[record])
    layout = read_plan(federation.practice.folder / "plan").plan.adapter.layout
    save_tensors(released, Packed(layout, np.ones(layout.size, np.float32)).tensors())
    assert "not the adapter that the result names" in run(command_line, federation, code=1)
    record.unlink()
    assert "wardround site fetch" in run(command_line, federation, code=2)


def test_a_private_plan_is_trained_alone_without_its_privacy_and_says_so(
    federation: Federation, simulated: Simulated, command_line: Any
) -> None:
    """The ledger is not asked: there is none here, and a private round would fail without."""
    given = sections(
        privacy={"unit": "patient", "noise": "local", "sigma": 1.0, "delta": 1e-3},
        strategy={"weighting": "uniform"},
    )
    given["data"]["source"]["path"] = str(federation.rows)
    given["local"] |= {"max_grad_norm": None, "batch_size": 2}
    plan = federation.plan("private", units=(3, 18), **given)
    shutil.rmtree(federation.practice.sites[SITE].path / "runs")
    keep_result(federation, plan, simulated[1])
    found = json.loads(run(command_line, federation, "--json"))
    assert any("without the plan's privacy" in note for note in found["notes"])
    assert found["metrics"]["loss"]["local"] is not None
    assert not (federation.practice.sites[SITE].path / "ledger").exists()


def test_an_initial_adapter_that_this_machine_cannot_make_is_asked_for(
    federation: Federation, command_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a plan that starts from a saved one: said, and right once the plan's folder is named."""
    expected = json.loads(run(command_line, federation, "--json", "--without-local"))["metrics"]

    def other(bench: Workbench) -> Packed:
        return bench.fresh.with_vector(bench.fresh.vector + np.float32(0.1))

    monkeypatch.setattr(Workbench, "initial_adapter", other)
    plan = federation.practice.folder / "plan"
    found = json.loads(run(command_line, federation, "--json", "--without-local"))
    assert any("name the plan's folder with --initial" in note for note in found["notes"])
    assert found["metrics"] != expected
    more = ("--json", "--without-local", "--initial")
    named = json.loads(run(command_line, federation, *more, str(plan)))
    assert not any("--initial" in note for note in named["notes"])
    assert named["metrics"] == expected
    assert "cannot read" in run(command_line, federation, *more, str(plan.parent), code=1)


def counted(plan: TrainingPlan, hits: list[bool], seed: int) -> Counted:
    """A classifier's counters, one row a unit, right where `hits` says so."""
    from wardround.core.metrics.classification import count_rows

    rng, lines = np.random.default_rng(seed), []
    for number, hit in enumerate(hits):
        truth = number % 2
        sure = 0.5 + 0.4 * rng.random()
        right = [1 - sure, sure] if truth else [sure, 1 - sure]
        row = np.array([right if hit else right[::-1]])
        arrays = count_rows(row, np.array([truth]), -np.log(row[:, truth]))
        layout = metric_layout(plan)
        packed = Packed(layout, np.zeros(layout.size, np.int64))
        for name, array in arrays.items():
            packed[name][...] = array
        lines.append(packed.vector)
    return Counted(plan, np.stack(lines))


@pytest.fixture(scope="module")
def plan(simulated: Simulated) -> TrainingPlan:
    """The plan of this module."""
    return simulated[1].plan


def test_an_interval_is_that_of_the_slow_bootstrap(plan: TrainingPlan) -> None:
    """Accuracy, unit by unit, drawn anew with another generator: the ends agree to the draws' own noise."""
    rng = np.random.default_rng(1)
    one, other = (rng.random(80) < 0.85).tolist(), (rng.random(80) < 0.6).tolist()
    found = differences(counted(plan, one, 1), counted(plan, other, 2))["accuracy"]
    gaps = np.array(one, float) - np.array(other, float)
    drawn = [gaps[np.random.default_rng(seed).integers(0, 80, 80)].mean() for seed in range(4000)]
    assert found.difference == pytest.approx(gaps.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_the_same_adapter_twice_differs_by_nothing_and_few_units_say_nothing(plan: TrainingPlan) -> None:
    """Paired: what is hard about a unit falls out. Below the least number there is no interval."""
    hits = [True, False, True] * 5
    same = differences(counted(plan, hits, 3), counted(plan, hits, 3))
    assert {(gain.difference, gain.low, gain.high) for gain in same.values()} == {(0.0, 0.0, 0.0)}
    few = differences(counted(plan, hits[: LEAST_GROUPS - 1], 3), counted(plan, hits[: LEAST_GROUPS - 1], 4))
    assert few["accuracy"].low is None


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40))
def test_rows_of_a_unit_stay_together(units: list[str]) -> None:
    """Each row once, and no unit in two groups."""
    from toy_plans import toy_plan

    groups = grouped(toy_plan(), units)
    assert sorted(place for group in groups for place in group) == list(range(len(units)))
    assert len(groups) == len(set(units))
    assert all(len({units[place] for place in group}) == 1 for group in groups)


def test_more_units_than_can_be_held_share_groups(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is lost, and none is torn apart."""
    monkeypatch.setattr("wardround.training.paired.MOST_GROUPS", 20)
    units = [f"u{number // 2}" for number in range(100)]
    groups = grouped(plan, units)
    assert len(groups) == 20
    assert sorted(place for group in groups for place in group) == list(range(100))
    homes = {
        unit: {number for number, group in enumerate(groups) for p in group if units[p] == unit}
        for unit in units
    }
    assert {len(home) for home in homes.values()} == {1}


@pytest.mark.parametrize(
    ("rounds", "share", "sites", "expected"), [(6, 1.0, 5, 6), (7, 0.5, 4, 4), (1, 0.1, 9, 1)]
)
def test_alone_it_trains_as_often_as_in_the_federation(
    rounds: int, share: float, sites: int, expected: int
) -> None:
    """Halves up, and once at least."""
    assert rounds_alone(RoundRules(rounds=rounds, participation=share), sites) == expected
