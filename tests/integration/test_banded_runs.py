"""Runs with correlated noise, from the configuration to ledger, summary and card."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from wardround.client.ledger.ledger import Ledger
from wardround.core.errors import ConfigError
from wardround.core.plan import TrainingPlan
from wardround.privacy.accounting.mechanisms import BandedGaussian
from wardround.privacy.accounting.of_plan import round_cost
from wardround.runtime.events import PrivacySpent, SiteReplied
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.config import RunConfig
from wardround.simulations.privacy_audit import audited
from wardround.simulations.report import print_result
from wardround.simulations.simulate import SimulationResult, run_simulation

Make = Callable[..., RunConfig]
BANDED: dict[str, Any] = {"unit": "patient", "epsilon": 4.0, "delta": 1e-2, "mechanism": "banded"}

SEED = 134
"""Under which 14 of 20 patients are there to train on at each of three sites: each one's hash decides."""


@pytest.fixture
def wards(notes: Callable[..., Make]) -> Make:
    """Three sites of 20 patients with two rows each; a third of the patients is held back."""
    make = notes(120, 3, 2, unit_column="patient", labels=["0", "1"])

    def private(name: str, privacy: dict[str, Any] = BANDED, **sections: Any) -> RunConfig:
        local = {"max_grad_norm": None, **sections.pop("local", {})}
        strategy = {"weighting": "uniform", **sections.pop("strategy", {})}
        config = make(name, privacy=privacy, strategy=strategy, local=local, **sections)
        return config.model_copy(update={"seed": SEED})

    return private


def run(config: RunConfig) -> tuple[SimulationResult, RecorderSink]:
    """The result and what was told."""
    recorder = RecorderSink()
    return run_simulation(config, sinks=(recorder,)), recorder


def spent_in(recorder: RecorderSink) -> list[dict[str, float]]:
    """ε by round and site."""
    return [event.sites for event in recorder.events if isinstance(event, PrivacySpent)]


def test_a_run_is_reserved_whole_and_says_which_mechanism_it_was(wards: Make) -> None:
    """From the first round on, at every site, in the ledger, the summary, the card and the closing lines."""
    result, recorder = run(wards("banded"))
    cost = round_cost(result.plan, 14)
    assert cost is not None
    steps = 2 * cost.steps
    first, last = spent_in(recorder)
    assert first == last == pytest.approx(dict.fromkeys(("w0", "w1", "w2"), cost.epsilon().value))
    assert 3.9 < cost.epsilon().value <= 4.0
    summary = json.loads((result.folder / "summary.json").read_text())["privacy"]
    spent = cost.account(2).fixed_schedule_epsilon(1e-2, units=14).value
    assert summary["epsilon"] == pytest.approx(spent, rel=1e-9)
    assert summary["reserved"] == pytest.approx(cost.epsilon().value)
    assert summary["epsilon"] < summary["reserved"]
    assert (summary["mechanism"], summary["rules"]["mechanism"]) == ("banded", "banded")
    behind = {"units": 14, "sample_rate": 1 / cost.bands, "sigma": cost.sigma, "steps": steps}
    assert {name: summary["sites"]["w1"][name] for name in behind} == behind
    card = (result.folder / "README.md").read_text()
    out = io.StringIO()
    print_result(result, Console(file=out, width=1_000))
    for shown in (card, out.getvalue()):
        assert "banded matrix factorisation" in shown
        assert f"ε = {spent:.4g} at δ = 0.01 per patient and site" in shown
    assert "DP-SGD" not in card
    ledger = result.folder / "arms" / "federated" / "sites" / "w1" / "ledger"
    with Ledger.open(ledger) as opened:
        held = list(opened.book.draws.everything())
        assert [(round, stage) for (_, round, stage), _ in held] == [(0, 0)]
        ((_, (charge,)),) = held
        assert charge.terms.mechanism == BandedGaussian(sigma=cost.sigma, bands=cost.bands, steps=steps)
        assert [(round, stage) for _, round, stage in opened.book.seals] == [(1, 0), (2, 0)]


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "dp_adam"])
def test_a_killed_and_resumed_run_has_the_bits_of_the_undisturbed_one(wards: Make, optimiser: str) -> None:
    """Its noise goes on from where it stood; nothing is charged again."""
    local: dict[str, Any] = {"optimiser": optimiser}
    local |= {} if optimiser == "sgd" else {"epsilon": 1e-2, "optimiser_state": "keep"}
    whole, told = run(wards("whole", local=local))

    class KilledError(Exception):
        """Stands for the end of the process."""

    class Kill(RecorderSink):
        def emit(self, event: Any) -> None:
            if isinstance(event, SiteReplied) and event.round == 2:
                raise KilledError
            super().emit(event)

    config = wards("killed", local=local)
    with pytest.raises(KilledError):
        run_simulation(config, sinks=(Kill(),))
    resumed, recorder = run(config.model_copy(update={"resume": config.output}))
    digests = {each.federated.outcome.last.adapter.digest for each in (whole, resumed)}
    assert len(digests) == 1
    assert spent_in(recorder)[-1] == spent_in(told)[-1]


def test_bounds_under_banded_noise_have_the_same_promise(wards: Make) -> None:
    """A site alone and all rows in one place: blocks and noise of their own."""
    result, recorder = run(wards("bounds", bounds={"local_only": True, "centralised": True}))
    arms = {
        event.arm: max(event.sites.values()) for event in recorder.events if isinstance(event, PrivacySpent)
    }
    assert len(arms) == 5  # the federation, three sites alone, and all rows in one place
    assert all(3.9 < epsilon <= 4.0 for epsilon in arms.values())
    assert result.summary["privacy"]["arms"].keys() == arms.keys()


def test_sites_that_are_asked_now_and_then_follow_the_pattern(wards: Make) -> None:
    """Their next steps follow on their last ones; the run is charged whole all the same."""
    result, recorder = run(wards("some", rounds={"rounds": 4, "participation": 0.67}))
    cost = round_cost(result.plan, 14)
    assert cost is not None
    told = [site for event in spent_in(recorder) for site in event.items()]
    assert {round(epsilon, 9) for _, epsilon in told} == {round(cost.epsilon().value, 9)}
    assert all(event.status == "ok" for event in recorder.events if isinstance(event, SiteReplied))


def test_the_audit_tests_what_is_fresh_in_each_step(wards: Make) -> None:
    """Sensitivity and noise; canaries are said to be left out."""
    result, _ = run(wards("audited"))
    audit = audited(result.folder)
    assert {finding.test.split(",")[0] for finding in audit.gate} >= {"noise"}
    assert audit.passed
    assert any("canaries" in what for what in audit.untested)


@pytest.mark.parametrize(
    ("privacy", "sections", "reason"),
    [
        ({"unit": "example"}, {}, "unit=example has none: set unit to patient"),
        ({"noise": "distributed"}, {}, "noise=distributed is drawn once a round: set noise to local"),
        ({"clipping": "adaptive"}, {}, "clipping=adaptive would scale it anew in every step"),
        ({"sample_rate": 0.5}, {}, "leave sample_rate out, and set bands"),
        ({"mechanism": "poisson", "bands": 4}, {}, "bands=4 has no effect"),
        ({"bands": 15}, {}, "more blocks than units"),
        ({}, {"strategy": {"name": "rolora"}}, "does not train the same parameters in every round"),
        ({}, {"strategy": {"name": "tangent"}}, "does not train the same parameters in every round"),
    ],
)
def test_what_banded_noise_cannot_be_is_refused_by_name(
    wards: Make, privacy: dict[str, Any], sections: dict[str, Any], reason: str
) -> None:
    """With what to do instead."""
    with pytest.raises(ConfigError) as error:
        run(wards("refused", BANDED | privacy, **sections))
    assert reason in str(error.value)
    assert error.value.remedy or "set " in str(error.value) or "leave" in str(error.value)


def test_plans_without_it_keep_their_digest(wards: Make, tmp_path: Path) -> None:
    """What a plan of an earlier version says of privacy has neither of its settings."""
    result, _ = run(wards("plain", {"unit": "patient", "sigma": 2.0, "delta": 1e-2}))
    fields = json.loads(result.plan.canonical())["privacy"]
    assert not {"mechanism", "bands"} & fields.keys()
    assert TrainingPlan.parse(result.plan.canonical()) == result.plan
    banded, _ = run(wards("said"))
    assert json.loads(banded.plan.canonical())["privacy"]["mechanism"] == "banded"
    assert TrainingPlan.parse(banded.plan.canonical()) == banded.plan
