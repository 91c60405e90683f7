"""Runs with differential privacy, from the configuration to ledger, events, picture and card."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.summary import summarise
from wardround.core.errors import BudgetError, ConfigError, PolicyError, QuorumError
from wardround.core.messages import SPENT
from wardround.privacy.accounting.of_plan import round_cost, sigma_of_sums
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Notice, PrivacyReported, PrivacySpent, RoundFolded, SiteReplied
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.config import RunConfig
from wardround.simulations.report import print_result
from wardround.simulations.simulate import SimulationResult, run_simulation

Make = Callable[..., RunConfig]
PATIENT: dict[str, Any] = {"unit": "patient", "epsilon": 4.0, "delta": 1e-2}
DISTRIBUTED = PATIENT | {"noise": "distributed", "sample_rate": 0.5}
GIVEN: dict[str, Any] = {"epsilon": None, "sigma": 2.0}
"""For tests of no figure: a noise that is written down, where one that fits ε is searched for in seconds."""
CENTRAL = {"unit": "site", "noise": "central", "epsilon": 30.0, "delta": 0.1, "clip_norm": 0.5}
ONE_STEP = {"steps": 1, "optimiser": "sgd", "learning_rate": 0.5}
REAL = {"mode": "real", "policy": {"least_cohort": 3, "least_honest": 2, "modes": ["real", "accounted"]}}

SEED = 134
"""Under which 14 of 20 patients are there to train on at each of three sites: each one's hash decides."""


@pytest.fixture
def wards(notes: Callable[..., Make]) -> Make:
    """Three sites of 20 patients with two rows each; a third of the patients is held back."""
    make = notes(120, 3, 2, unit_column="patient", labels=["0", "1"])

    def private(name: str, privacy: dict[str, Any], **sections: Any) -> RunConfig:
        local = {"max_grad_norm": None, **sections.pop("local", {})}
        config = make(name, privacy=privacy, strategy={"weighting": "uniform"}, local=local, **sections)
        return config.model_copy(update={"seed": SEED})

    return private


def run(config: RunConfig) -> tuple[SimulationResult, RecorderSink]:
    """The result and what was told."""
    recorder = RecorderSink()
    return run_simulation(config, sinks=(recorder,)), recorder


def spent_in(recorder: RecorderSink) -> list[PrivacySpent]:
    """ε by round."""
    return [event for event in recorder.events if isinstance(event, PrivacySpent)]


def closing_lines(result: SimulationResult) -> str:
    """What the terminal says at the end."""
    out = io.StringIO()
    print_result(result, Console(file=out, width=1_000))
    return out.getvalue()


def ledger_of(result: SimulationResult, site: str) -> Path:
    """Folder of a site's ledger."""
    return result.folder / "arms" / "federated" / "sites" / site / "ledger"


def test_a_run_with_local_noise_spends_what_it_says_and_shows_it(wards: Make) -> None:
    """Round by round, at every site, in the ledger, the summary, the card and the picture."""
    result, recorder = run(wards("local", PATIENT))
    cost = round_cost(result.plan, 14)
    assert cost is not None
    told = spent_in(recorder)
    assert [event.round for event in told] == [1, 2]
    for event in told:
        expected = cost.epsilon(event.round).value
        assert event.sites == pytest.approx(dict.fromkeys(("w0", "w1", "w2"), expected))
        assert (event.unit, event.delta) == ("patient", 1e-2)
    assert 3.9 < max(told[-1].sites.values()) <= 4.0
    summary = json.loads((result.folder / "summary.json").read_text())["privacy"]
    assert summary["reserved"] == max(told[-1].sites.values())
    spent = cost.account(2).fixed_schedule_epsilon(1e-2, units=14).value
    assert summary["epsilon"] == spent < summary["reserved"]
    assert summary["differential_privacy"] == (
        f"ε = {spent:.4g} at δ = 0.01 per patient and site, excluding tuning"
    )
    said = f"{summary['differential_privacy']} (by privacy loss distributions; ε = 3.998 was reserved"
    card = (result.folder / "README.md").read_text().replace("*", "")
    for sentence in (said, "Not private as it was run", "excludes the patients"):
        assert sentence in card
    assert f"Differential privacy: {said}, by Rényi DP)" in closing_lines(result)
    for shown in (card, closing_lines(result)):
        assert "choices made by looking at earlier runs are not counted" in shown
    (report,) = [event for event in recorder.events if isinstance(event, PrivacyReported)]
    assert (report.round, report.rounds, report.unit, report.delta) == (2, 2, "patient", 1e-2)
    assert report.sites == summary["sites"]
    behind = {"units": 14, "sample_rate": cost.sample_rate, "sigma": cost.sigma, "steps": 2 * cost.steps}
    for both in report.sites.values():
        assert {name: both[name] for name in behind} == behind
    row = (14, f"{cost.sample_rate:.4g}", f"{cost.sigma:.4g}", 2 * cost.steps, f"{spent:.4g}", "3.998")
    assert f"| w1 | {' | '.join(map(str, row))} |" in card.splitlines()
    logged = read_events(result.folder / "metrics.jsonl")
    assert [event for event in logged if isinstance(event, PrivacyReported)] == [report]
    assert {site: both["reserved"] for site, both in report.sites.items()} == told[-1].sites
    with Ledger.open(ledger_of(result, "w1")) as ledger:
        source = ledger.source("again", [f"p{number}" for number in range(60)][1::3][:1])
        assert [(round, stage) for _, round, stage in ledger.book.seals] == [(1, 0), (2, 0)]
        assert ledger.book.policy.epsilon == pytest.approx(4.0)
        assert ledger.epsilon(source).value <= 4.0
        (line,) = summarise(ledger.book).runs
        assert (line.released, line.epsilon.value) == (6, pytest.approx(summary["reserved"]))
        assert summarise(ledger.book).highest.value == math.inf


def test_equal_seeds_give_equal_runs_and_a_resumed_one_is_charged_once(wards: Make) -> None:
    """Batches and noise come from the seed; the ledger knows a draw again."""
    whole, _ = run(wards("whole", PATIENT))
    again, _ = run(wards("again", PATIENT))
    other, _ = run(wards("other", PATIENT).model_copy(update={"seed": 1}))
    digests = [each.federated.outcome.last.adapter.digest for each in (whole, again, other)]
    assert digests[0] == digests[1] != digests[2]

    class KilledError(Exception):
        """Stands for the end of the process."""

    class Kill(RecorderSink):
        def emit(self, event: Any) -> None:
            if isinstance(event, SiteReplied) and event.round == 2:
                raise KilledError
            super().emit(event)

    with pytest.raises(KilledError):
        run_simulation(wards("killed", PATIENT), sinks=(Kill(),))
    config = wards("killed", PATIENT)
    resumed, recorder = run(config.model_copy(update={"resume": config.output}))
    assert resumed.federated.outcome.last.adapter.digest == digests[0]
    assert spent_in(recorder)[-1].sites == pytest.approx(dict.fromkeys(("w0", "w1", "w2"), 4.0), abs=0.1)
    assert max(spent_in(recorder)[-1].sites.values()) <= 4.0


def test_nothing_exact_leaves_a_private_site(wards: Make) -> None:
    """Every field of a reply is a constant, noised and charged, or of rows that the claim excludes.

    A simulation shows more, under `private.`: there nothing is private.
    """
    constant = {SPENT}  # plan and number of units decide it
    of_noised = {"clipped", "shortened_by"}  # of the update after its noise
    excluded = {"validation."}  # of the patients that were held back
    times = {"seconds"}  # a simulation measures them; a site rounds them up to a grid
    _, recorder = run(wards("fields", PATIENT))
    replies = [event for event in recorder.events if isinstance(event, SiteReplied)]
    assert len(replies) == 9  # two rounds and the last evaluation
    for name in ("clipped_share", "signal_to_noise"):
        assert [reply.round for reply in replies if f"private.{name}" in reply.local] == [1, 1, 1, 2, 2, 2]
    for reply in replies:
        for name in reply.local:
            known = name in constant | of_noised or name.startswith((*excluded, *times, "private."))
            assert known, name
    folded = [event for event in recorder.events if isinstance(event, RoundFolded)]
    assert [event.train_loss for event in folded] == [None, None]


@pytest.mark.parametrize(
    "privacy",
    [PATIENT | GIVEN, DISTRIBUTED | GIVEN, CENTRAL | GIVEN],
    ids=["local", "distributed", "central"],
)
def test_the_counters_of_a_private_sum_are_the_weights_alone(
    wards: Make, privacy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss, no number of targets: with each of the three kinds of noise."""
    seen: list[list[int]] = []
    from wardround.client import work

    plain = work.contribution

    def spy(*args: Any) -> Any:
        seen.append([int(value) for value in args[1].vector])
        return plain(*args)

    monkeypatch.setattr(work, "contribution", spy)
    sections: dict[str, Any] = {"local": ONE_STEP, "secure": REAL, "encoding": {"bits": 32}}
    if privacy["unit"] == "site":
        sections["data"] = {"validation_fraction": 0.0}
    run(wards("counters", privacy, **sections))
    assert seen == [[1, 0, 0]] * 6


def test_without_noise_and_clipping_a_private_step_is_the_plain_one(wards: Make) -> None:
    """All rows in every batch, each a unit: the mean over them, as SGD takes it."""
    rules = {"unit": "example", "sigma": 1e-9, "sample_rate": 1.0, "delta": 1e-3, "clip_norm": 10.0}
    local = ONE_STEP | {"batch_size": 28}
    wide = {"bits": 64, "largest": 1.0}
    adapters = []
    for name, privacy in (("private", rules), ("plain", None)):
        config = wards(name, privacy or rules, local=local, encoding=wide, model={"dropout": "off"})
        config = config if privacy else config.model_copy(update={"privacy": None})
        adapters.append(run(config)[0].federated.outcome.last.adapter)
    assert np.abs(adapters[0].vector - adapters[1].vector).max() < 1e-6
    assert np.abs(adapters[0].vector).max() > 1e-3


def test_distributed_noise_is_one_for_all_sites(wards: Make) -> None:
    """The sum over the sites has the noise, whatever the masks; less of it than if each had added its own."""
    sections: dict[str, Any] = {"local": ONE_STEP, "encoding": {"bits": 32}}
    results = {
        mode: run(wards(mode, DISTRIBUTED, secure=REAL | {"mode": mode}, **sections))
        for mode in ("real", "accounted")
    }
    digests = {result.federated.outcome.last.adapter.digest for result, _ in results.values()}
    assert len(digests) == 1
    result, recorder = results["real"]
    assert 3.9 < max(spent_in(recorder)[-1].sites.values()) <= 4.0
    private = result.summary["privacy"]  # by losses of the Gaussians that stand for what the ring holds
    assert 3.0 < private["epsilon"] < private["reserved"] == max(spent_in(recorder)[-1].sites.values())
    moved = [event.update_norm for event in recorder.events if isinstance(event, RoundFolded)]
    single = PATIENT | {"sample_rate": 0.5}
    _, local = run(wards("local", single, secure=REAL, **sections))
    by_site = [event.update_norm for event in local.events if isinstance(event, RoundFolded)]
    # Three sites: no more than one honest share is guaranteed, so that all three together have √3 of it.
    assert np.mean(moved) == pytest.approx(np.mean(by_site), rel=0.25)
    assert result.plan.privacy is not None


def test_the_servers_noise_is_in_what_it_folds(wards: Make) -> None:
    """As long as σ C √d says, divided by the sites; without it the step would be no longer than C."""
    sections: dict[str, Any] = {"data": {"validation_fraction": 0.0}, "encoding": {"bits": 32}}
    result, recorder = run(wards("noised", CENTRAL, **sections))
    rules = result.plan.privacy
    assert rules is not None
    expected = sigma_of_sums(rules, 2) * 0.5 * result.plan.adapter.layout.size**0.5 / 3
    moved = [event.update_norm for event in recorder.events if isinstance(event, RoundFolded)]
    assert moved == pytest.approx([expected, expected], rel=0.1)
    assert min(moved) > 0.5
    private = result.summary["privacy"]
    assert len({tuple(both.values()) for both in private["sites"].values()}) == 1
    assert "| each of 3 | 3 | 1 | " in (result.folder / "README.md").read_text()
    assert private["epsilon"] < private["reserved"] == spent_in(recorder)[-1].sites["w0"] <= 30
    told = [event.text for event in recorder.events if isinstance(event, Notice)]
    assert any("the noise drowns this run" in text for text in told)


def test_a_site_that_has_run_dry_leaves_and_the_run_goes_on(
    notes: Callable[..., Make], tmp_path: Path
) -> None:
    """The smallest site pays most for a given noise: its ledger refuses, by how much, and stays as it was."""
    make = notes(120, 3, 4, unit_column="patient", labels=["0", "1"])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    few = [row for index, row in enumerate(rows) if row["ward"] != "w2" or index < 60]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    config = make(
        "dry", privacy={"unit": "patient", "sigma": 1.2, "delta": 1e-2}, strategy={"weighting": "uniform"},
        local={"max_grad_norm": None}, simulation={"privacy_cap": 2.6}, data={"validation_fraction": 0.0},
    )  # fmt: skip
    result, recorder = run(config)
    refused = [event for event in recorder.events if isinstance(event, SiteReplied) and event.status != "ok"]
    assert {(event.site, event.code) for event in refused} == {("w2", "budget")}
    assert [event.round for event in refused] == [3, 4]
    assert "overdrawn" in refused[0].reason
    assert result.federated.outcome.last.round == 4
    assert max(event.sites["w2"] for event in spent_in(recorder)) <= 2.6
    with pytest.raises(QuorumError):
        run(config.model_copy(update={"output": str(tmp_path / "poor"),
            "simulation": config.simulation.model_copy(update={"privacy_cap": 0.3})}))  # fmt: skip
    held_back = config.data.model_copy(update={"validation_fraction": 0.3})
    with pytest.raises(BudgetError, match="validation_fraction=0"):
        run(config.model_copy(update={"output": str(tmp_path / "held"), "data": held_back}))


def test_what_a_private_run_cannot_be_is_refused_before_a_model_is_loaded(
    wards: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch larger than a site, a δ for fewer units than there are: named with the site."""
    from wardround.training import workbench

    monkeypatch.delattr(workbench, "open_workbench")
    with pytest.raises(ConfigError, match="site w0: no sample rate"):
        run(wards("large", PATIENT, local={"batch_size": 15}))
    with pytest.raises(PolicyError, match="site w0: δ is too large"):
        run(wards("delta", PATIENT | {"delta": 0.5}))
    with pytest.raises(ConfigError, match="would hold back all that it has"):
        run(wards("nobody", PATIENT, data={"validation_fraction": 0.999}))
    with pytest.raises(ConfigError, match="label list would be learnt"):
        run(wards("labels", PATIENT, data={"labels": "auto"}))
    policy = REAL["policy"] | {"assumed_colluders": 2}
    with pytest.raises(PolicyError, match="more of them collude"):
        run(wards("colluders", DISTRIBUTED, local=ONE_STEP, secure=REAL | {"policy": policy}))
    with pytest.raises(PolicyError, match="δ is too large"):
        run(wards("sites", CENTRAL | {"delta": 0.4}, data={"validation_fraction": 0.0}))


def test_noise_that_the_ring_cannot_hold_is_refused_before_anybody_trains(wards: Make) -> None:
    """A share of less than a few integers would be no noise at all."""
    narrow = PATIENT | {"noise": "distributed", "sample_rate": 0.5, "sigma": 1e-9}
    narrow.pop("epsilon")
    with pytest.raises(ConfigError, match="too narrow for the ring"):
        run(wards("narrow", narrow, local=ONE_STEP, secure=REAL, encoding={"bits": 32}))


def test_a_run_that_stopped_early_has_cost_its_whole_plan(notes: Callable[..., Make]) -> None:
    """Where to stop was chosen by looking at what came out: no figure of fewer rounds holds for that."""
    make = notes(120, 3, 6, unit_column="patient", labels=["0", "1"])
    result, recorder = run(
        make(
            "early", privacy=PATIENT | GIVEN, strategy={"weighting": "uniform"},
            local={"max_grad_norm": None}, release={"patience": 1},
        )
    )  # fmt: skip
    outcome = result.federated.outcome
    assert (outcome.reason, outcome.last.round < 6) == ("early_stop", True)
    private = result.summary["privacy"]
    fewest = min(len(set(rows.units)) for rows in result.federated.arm.sites.values())
    cost = round_cost(result.plan, fewest)
    assert cost is not None
    assert (private["rounds"], private["stopped_early"]) == (6, True)
    assert private["reserved"] == cost.epsilon().value > max(spent_in(recorder)[-1].sites.values())
    assert private["epsilon"] == cost.account(6).reported_epsilon(1e-2, units=fewest).value
    assert "those of all 6 planned rounds" in (result.folder / "README.md").read_text()


def test_rows_are_accounted_for_where_rows_are_protected(wards: Make) -> None:
    """Not as the ledger charges them, to a patient of several."""
    result, recorder = run(wards("rows", {"unit": "example", "epsilon": 4.0, "delta": 1e-2}))
    private = result.summary["privacy"]
    assert private["reserved"] == max(spent_in(recorder)[-1].sites.values())
    cost = round_cost(result.plan, 28)
    assert cost is not None
    assert private["epsilon"] == cost.account(2).fixed_schedule_epsilon(1e-2, units=28).value
    assert 0 < private["epsilon"] < private["reserved"] <= 4.0


def test_bounds_under_privacy_have_the_same_promise(wards: Make) -> None:
    """A site alone and all rows in one place: each with the plan's ε, and DP-SGD of its own."""
    bounds = {"local_only": True, "centralised": True}
    result, recorder = run(
        wards("bounds", PATIENT, bounds=bounds, local={"optimiser": "dp_adam", "epsilon": 1e-2})
    )
    arms = {event.arm: max(event.sites.values()) for event in spent_in(recorder)}
    assert set(arms) == {"federated", "centralised", "local/w0", "local/w1", "local/w2"}
    assert all(3.8 < epsilon <= 4.0 for epsilon in arms.values())
    summary = json.loads((result.folder / "summary.json").read_text())["privacy"]
    assert set(summary["arms"]) == set(arms)


def test_the_clip_norm_adapts_over_rounds(wards: Make) -> None:
    """What a round leaves is where the next one begins, also after a resume."""
    rules = PATIENT | {
        "clipping": "adaptive",
        "clip_norm": 10.0,
        "adaptive": {"count_noise": 3.0, "rate": 1.0},
    }
    result, _ = run(wards("adaptive", rules))
    from wardround.client.memory import SiteStore

    store = SiteStore(result.folder / "arms" / "federated" / "sites" / "w0")
    first, second = (store.load(before_round=round).clip_norm for round in (2, 3))
    assert first is not None
    assert second is not None
    assert max(first, second) < 10.0
    assert first != second
