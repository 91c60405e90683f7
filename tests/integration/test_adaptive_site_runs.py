"""Runs in which the server's noise protects whole sites, clipped to a norm that follows their updates."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import ConfigError
from wardround.runtime.events import EventStream, Notice, PrivacySpent, RoundFolded, SiteReplied
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import encode_all, prepare
from wardround.simulations.privacy_audit import audited
from wardround.simulations.simulate import SimulationResult, run_simulation
from wardround.simulations.twin import run_twin
from wardround.strategies.adaptive_norm import clip_norm_of

Make = Callable[..., RunConfig]
FIXED: dict[str, Any] = {
    "unit": "site", "noise": "central", "epsilon": 30.0, "delta": 0.1, "clip_norm": 0.5,
}  # fmt: skip
ADAPTIVE: dict[str, Any] = FIXED | {"clipping": "adaptive", "adaptive": {"count_noise": 1.0, "rate": 0.8}}
REAL = {"mode": "real", "policy": {"least_cohort": 4, "least_honest": 2, "modes": ["real", "off"]}}


@pytest.fixture
def wards(notes: Callable[..., Make]) -> Make:
    """Four sites, three rounds, a ring in which rounding costs nothing."""
    make = notes(96, 4, 3, unit_column="patient", labels=["0", "1"])

    def of_sites(name: str, privacy: dict[str, Any] = ADAPTIVE, **sections: Any) -> RunConfig:
        base: dict[str, Any] = {
            "strategy": {"weighting": "uniform"}, "data": {"validation_fraction": 0.0},
            "encoding": {"bits": 32},
        }  # fmt: skip
        return make(name, privacy=privacy, **(base | sections))

    return of_sites


def run(config: RunConfig) -> tuple[SimulationResult, RecorderSink]:
    """The result and what was told."""
    recorder = RecorderSink()
    return run_simulation(config, sinks=(recorder,)), recorder


def norms_of(recorder: RecorderSink) -> list[float | None]:
    """C after each round."""
    return [event.clip_norm for event in recorder.events if isinstance(event, PrivacySpent)]


def digest_of(result: SimulationResult) -> str:
    """Of the last adapter."""
    return result.federated.outcome.last.adapter.digest


def test_the_norm_moves_and_summary_and_card_say_from_where_to_where(wards: Make) -> None:
    """ε is that of fixed clipping to the digit, round by round."""
    result, recorder = run(wards("adaptive"))
    norms = norms_of(recorder)
    assert len(set(norms)) == 3
    assert norms[-1] == clip_norm_of(result.federated.outcome.last)
    record = json.loads((result.folder / "summary.json").read_text())["privacy"]
    assert record["clip_norm"] == {"first": 0.5, "last": norms[-1]}
    card = (result.folder / "README.md").read_text()
    assert f"the norm from 0.5 in the first round to {norms[-1]:.4g} after the last" in card
    fixed, plain = run(wards("fixed", FIXED))
    spent, expected = (
        [max(event.sites.values()) for event in told.events if isinstance(event, PrivacySpent)]
        for told in (recorder, plain)
    )
    assert spent == pytest.approx(expected, rel=1e-6)
    assert norms_of(plain) == [None] * 3
    assert "clip_norm" not in json.loads((fixed.folder / "summary.json").read_text())["privacy"]
    assert "clip norm 0.5, flat clipping" in (fixed.folder / "README.md").read_text()


def test_a_resumed_run_ends_with_the_identical_adapter_and_norm(wards: Make) -> None:
    """C is journalled with the state; what was begun when the server was killed is done again."""
    whole, recorder = run(wards("whole"))

    class KilledError(Exception):
        """Stands for the end of the process."""

    class Kill(RecorderSink):
        def emit(self, event: Any) -> None:
            if isinstance(event, SiteReplied) and event.round == 3:
                raise KilledError
            super().emit(event)

    with pytest.raises(KilledError):
        run_simulation(wards("killed"), sinks=(Kill(),))
    config = wards("killed")
    resumed, again = run(config.model_copy(update={"resume": config.output}))
    assert digest_of(resumed) == digest_of(whole)
    assert norms_of(again) == norms_of(recorder)[2:]
    record = json.loads((resumed.folder / "summary.json").read_text())["privacy"]
    assert record["clip_norm"] == {"first": 0.5, "last": norms_of(recorder)[-1]}


@pytest.mark.parametrize("privacy", [ADAPTIVE, FIXED], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_the_slow_twin_gives_the_identical_adapter(
    wards: Make, privacy: dict[str, Any], participation: float
) -> None:
    """Clipping, count, noise and norm written out once more; C from below and above what sites send."""
    for start in (0.02, 5.0):
        config = wards(
            f"twin{start}", privacy | {"clip_norm": start}, rounds={"participation": participation}
        )
        result, _ = run(config)
        prepared = prepare(config)
        arm = encode_all(prepared, EventStream())[0]
        assert run_twin(arm, prepared.bench, prepared.initial).digest == digest_of(result)
        assert digest_of(result) != result.plan.adapter.initial_digest


def test_masks_change_nothing_and_nothing_of_a_single_site_is_told(wards: Make) -> None:
    """Under secure aggregation no one sees whose update was short; nor does a reply say how long it was."""
    plain, recorder = run(wards("plain"))
    masked, told = run(wards("masked", secure=REAL))
    assert digest_of(masked) == digest_of(plain)
    assert norms_of(told) == norms_of(recorder)
    for event in [*recorder.events, *told.events]:
        if isinstance(event, SiteReplied):
            assert all(name.startswith("seconds") for name in event.local), event.local


def test_the_noise_follows_the_norm(wards: Make) -> None:
    """What it adds to the mean is z_Δ C √d / n, of the C that the round was clipped to."""
    rules = ADAPTIVE | {"epsilon": 1.0, "delta": 0.1, "adaptive": {"count_noise": 12.0, "rate": 0.2}}
    result, recorder = run(wards("noise", rules, encoding={"bits": 32}))
    sigma, size = float(sigma_of(result)), result.plan.adapter.layout.size
    moved = [event.update_norm for event in recorder.events if isinstance(event, RoundFolded)]
    used = [0.5, *norms_of(recorder)[:-1]]
    expected = [sigma * norm * size**0.5 / 4 for norm in used if norm is not None]
    assert moved == pytest.approx(expected, rel=0.1)
    assert len(set(used)) == 3
    notices = [event.text for event in recorder.events if isinstance(event, Notice)]
    assert any(
        "the clip norm follows the noise of its count" in text and "4 sites" in text for text in notices
    )
    assert any("the noise drowns this run" in text for text in notices)


def sigma_of(result: SimulationResult) -> float:
    """z_Δ, by Theorem 1 of the paper."""
    from wardround.privacy.accounting.of_plan import sigma_of_sums

    rules = result.plan.privacy
    assert rules is not None
    z = sigma_of_sums(rules, result.plan.rounds.rounds)
    return float((z**-2 - (2 * rules.adaptive.count_noise) ** -2) ** -0.5)


def test_the_audit_finds_the_servers_noise(wards: Make) -> None:
    """As the run drew it."""
    audit = audited(run_simulation(wards("audited")).folder)
    assert audit.passed, audit.gate


def test_a_bound_beside_it_is_not_clipped_to_what_protects_sites(wards: Make) -> None:
    """One site alone has nobody to hide from: its update goes as far as it trained."""
    _, recorder = run(wards("bounds", ADAPTIVE | {"clip_norm": 1e-3}, bounds={"local_only": True},
                            encoding={"bits": 32, "largest": 1.0}))  # fmt: skip
    alone = [event for event in recorder.events if isinstance(event, SiteReplied) and event.arm != FEDERATED]
    assert {event.local["shortened_by"] for event in alone if "shortened_by" in event.local} == {1.0}


def test_what_adaptive_clipping_cannot_be_is_refused_before_anybody_trains(
    wards: Make, notes: Callable[..., Make]
) -> None:
    """A count that is dearer than the whole, and a vote over groups."""
    dear = ADAPTIVE | {"epsilon": 0.5, "adaptive": {"count_noise": 1.0}}
    with pytest.raises(ConfigError, match="costs more than the whole release"):
        run(wards("dear", dear))
    policy = {"least_cohort": 4, "least_honest": 2, "modes": ["off"], "group_strategies": ["group_median"]}
    options = {"group_size": 4, "attackers": 1}
    vote = {"name": "group_median", "weighting": "uniform", "options": options}
    many = notes(96, 12, 3, unit_column="patient", labels=["0", "1"])
    with pytest.raises(ConfigError, match="its strategy has several"):
        run(many("groups", privacy=ADAPTIVE | {"delta": 0.05}, strategy=vote, encoding={"bits": 32},
                 data={"validation_fraction": 0.0}, secure={"mode": "off", "policy": policy}))  # fmt: skip


def test_equal_seeds_give_equal_runs(wards: Make) -> None:
    """And other seeds others, also in C."""
    first, second, other = (
        run(config) for config in (wards("a"), wards("b"), wards("c").model_copy(update={"seed": 1}))
    )
    assert digest_of(first[0]) == digest_of(second[0]) != digest_of(other[0])
    assert norms_of(first[1]) == norms_of(second[1]) != norms_of(other[1])
    assert not np.array_equal(norms_of(first[1]), [0.5] * 3)
