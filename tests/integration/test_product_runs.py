"""Methods for LoRA's factors and products, through the real loop, the real handler and Flower's engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from wardround.client import work as handler
from wardround.core import lora
from wardround.core.errors import ConfigError
from wardround.core.packed import Adapter
from wardround.core.ranks import beside
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, RoundFolded, SiteReplied
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import prepare
from wardround.simulations.simulate import SimulationResult, run_simulation

METHODS = ("tangent", "tangent_scaffold", "rolora", "ffa_lora", "two_pass", "one_pass", "fedsvd", "hetlora")
ROUNDS = 3


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Callable[..., RunConfig]:
    """Four wards, three rounds, sums under secure aggregation in 32-bit rings."""
    make = notes(rows=48, wards=4, rounds=ROUNDS)

    def by_strategy(
        name: str, strategy: str, options: dict[str, Any] | None = None, **sections: Any
    ) -> RunConfig:
        given = {"secure": {"mode": "real", "policy": {"least_cohort": 4}}, "encoding": {"bits": 32}}
        chosen = {"strategy": {"name": strategy, "options": options or {}}}
        made: RunConfig = make(name, **(given | chosen | sections))
        return made

    return by_strategy


class Stop:
    """Ends the run once a round is folded, as a kill does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def emit(self, event: Event) -> None:
        if isinstance(event, RoundFolded) and event.round > self.after:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to flush."""


def factor(adapter: Adapter, role: str) -> np.ndarray[Any, Any]:
    """All values of the tensors of a role."""
    return np.concatenate([adapter[s.name].ravel() for s in adapter.layout.tensors if s.role == role])


@pytest.mark.parametrize("strategy", METHODS)
def test_a_run_trains_what_its_method_says(
    settings: Callable[..., RunConfig], undisturbed: Callable[[RunConfig], SimulationResult], strategy: str
) -> None:
    """To the end, with every site in every sum; sites find no fault in the folds."""
    result = undisturbed(settings(strategy, strategy))
    events = read_events(result.folder / "metrics.jsonl")
    assert all(event.status == "ok" for event in events if isinstance(event, SiteReplied))
    folded = [event for event in events if isinstance(event, RoundFolded)]
    assert [len(event.survivors) for event in folded] == [4] * ROUNDS
    initial, last = prepare(settings("initial", strategy)).initial, result.federated.outcome.last.adapter
    assert lora.distance(initial, last) > 0.01
    assert (factor(last, "lora_b") != 0).mean() > 0.9
    still = (factor(last, "lora_a") == factor(initial, "lora_a")).all()
    assert still == (strategy == "ffa_lora")
    over_products = strategy in ("tangent", "tangent_scaffold", "two_pass", "one_pass")
    assert all((event.discarded_energy is not None) == over_products for event in folded)
    if strategy == "fedsvd":
        for pair, _ in lora.products(last):
            drawn, now = (adapter[pair.a.name].astype(np.float64) for adapter in (initial, last))
            length = np.sum(drawn**2) / pair.rank
            np.testing.assert_allclose(now @ now.T, length * np.eye(pair.rank), atol=1e-5 * length)
    if over_products:
        assert all(
            0 <= event.discarded_energy < 0.5 for event in folded if event.discarded_energy is not None
        )
        for pair, product in lora.products(last):
            left, right = last[pair.b.name].T @ last[pair.b.name], last[pair.a.name] @ last[pair.a.name].T
            np.testing.assert_allclose(left, right, atol=1e-5 * product.norm() + 1e-6)


def test_the_methods_begin_as_they_should(
    settings: Callable[..., RunConfig], undisturbed: Callable[[RunConfig], SimulationResult]
) -> None:
    """In round 1 all but FedIT and its kin train B alone, and so the same."""
    one = {"rounds": {"rounds": 1}}
    adapters = {
        name: undisturbed(settings(f"one_{name}", name, **one)).federated.outcome.last.adapter
        for name in ("tangent", "rolora", "ffa_lora", "one_pass", "fedsvd")
    }
    np.testing.assert_array_equal(adapters["rolora"].vector, adapters["ffa_lora"].vector)
    for name in ("tangent", "one_pass", "fedsvd"):
        assert lora.difference(adapters["rolora"], adapters[name]) < 1e-4


@pytest.mark.parametrize("strategy", ["tangent", "tangent_scaffold", "rolora"])
def test_a_run_that_was_stopped_goes_on_to_the_same_adapter(
    settings: Callable[..., RunConfig], undisturbed: Callable[[RunConfig], SimulationResult], strategy: str
) -> None:
    """Bit for bit, the server's momentum and the sites' moments included."""
    options = {"server": {"optimiser": "momentum", "momentum": 0.5}}
    kept = {"local": {"optimiser_state": "keep"}}
    whole = undisturbed(settings(f"whole_{strategy}", strategy, options, **kept))
    whole = whole.federated.outcome.last.adapter
    config = settings(f"cut_{strategy}", strategy, options, **kept)
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Stop(1),))
    again = run_simulation(config.model_copy(update={"resume": config.output}))
    assert again.federated.outcome.last.adapter.digest == whole.digest


def test_moments_turn_with_the_factors_of_a_fold(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site goes on with those of the last round: of its own directions where it has a rank of its own."""
    turns: list[tuple[int, int, int]] = []
    turned = handler.turned

    def recording(state: Any, old: Adapter, new: Adapter, betas: Any) -> Any:
        found = turned(state, old, new, betas)
        turns.append((len(state), len(found), lora.pairs(new.layout)[0].rank))
        return found

    monkeypatch.setattr(handler, "turned", recording)
    kept = {"local": {"optimiser_state": "keep"}, "simulation": {"ranks": [1, 2]}}
    result = run_simulation(settings("turned", "tangent", **kept))
    # Adam's three slots of each tensor; A is frozen in the first round, and of the new A nothing is known.
    assert len(turns) == 4 * (ROUNDS - 1)
    assert {rank for *_, rank in turns} == {1, 2}
    assert all(0 < after <= before for before, after, _ in turns)
    events = read_events(result.folder / "metrics.jsonl")
    assert all(event.status == "ok" for event in events if isinstance(event, SiteReplied))
    turns.clear()
    run_simulation(settings("plain", "fedavg", local={"optimiser_state": "keep"}))
    assert not turns, "a mean of factors turns nothing"


def test_sites_of_many_ranks_make_one_adapter(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trains so many directions as it has; the adapter is of the plan's rank."""
    sizes: dict[str, int] = {}
    train = handler.train_locally

    def recording(bench: Any, job: Any) -> Any:
        sizes[job.site] = lora.pairs(job.before.layout)[0].rank
        return train(bench, job)

    monkeypatch.setattr(handler, "train_locally", recording)
    ranks = {"simulation": {"ranks": [1, 2, 5]}}
    result = run_simulation(settings("mixed", "tangent", **ranks))
    assert sizes == {"w0": 1, "w1": 2, "w2": 5, "w3": 1}
    last = result.federated.outcome.last.adapter
    assert last.layout.digest == result.plan.adapter.layout.digest
    assert last.vector.any()
    sketched = run_simulation(settings("sketched", "one_pass", **ranks)).federated.outcome.last.adapter
    assert sketched.layout.digest == last.layout.digest
    assert 1e-3 < lora.difference(last, sketched) < 1, "what lies outside the tangent space is taken in"
    weighted = run_simulation(settings("weighted", "hetlora", simulation={"ranks": [1, 2]}))
    assert sizes == {"w0": 1, "w1": 2, "w2": 1, "w3": 2}
    assert weighted.federated.outcome.last.round == ROUNDS
    few = run_simulation(settings("few", "fedavg", simulation={"ranks": {"w1": 1}}))
    assert sizes == {"w0": 2, "w1": 1, "w2": 2, "w3": 2}
    assert few.federated.outcome.last.round == ROUNDS


@dataclass(frozen=True)
class Trained:
    """One site's local round: what it trained, before and after, and what stood frozen beside it."""

    site: str
    round: int
    before: Adapter
    after: Adapter
    rest: Adapter | None
    weight: int


@pytest.fixture
def locally(monkeypatch: pytest.MonkeyPatch) -> list[Trained]:
    """Every local round, as it happens."""
    seen, train = list[Trained](), handler.train_locally

    def recording(bench: Any, job: Any) -> Any:
        found = train(bench, job)
        seen.append(Trained(job.site, job.round, job.before, found.adapter, job.rest, found.examples))
        return found

    monkeypatch.setattr(handler, "train_locally", recording)
    return seen


def mean_of_products(trained: list[Trained], *, whole: bool) -> dict[str, Any]:
    """Module → mean of the sites' s · B A of one round; the whole adapter's, or what trained alone."""
    total = sum(one.weight for one in trained)
    found: dict[str, Any] = {}
    for one in trained:
        for pair, product in lora.products(beside(one.after, one.rest) if whole else one.after):
            found[pair.module] = found.get(pair.module, 0) + one.weight / total * product.dense()
    return found


def require_whole(result: SimulationResult) -> None:
    """Every site in every round, nothing clipped on its way, nothing cut off."""
    events = read_events(result.folder / "metrics.jsonl")
    replies = [event for event in events if isinstance(event, SiteReplied)]
    assert all(event.status == "ok" for event in replies)
    assert {event.local["clipped"] for event in replies if "clipped" in event.local} == {0.0}
    folded = [event for event in events if isinstance(event, RoundFolded)]
    assert [len(event.survivors) for event in folded] == [4, 4]
    assert all(event.discarded_energy is not None and event.discarded_energy < 1e-9 for event in folded)


@pytest.mark.parametrize("ranks", [(), (1, 2, 3)], ids=["one rank", "mixed ranks"])
def test_stacked_directions_add_up_over_the_rounds(
    settings: Callable[..., RunConfig], locally: list[Trained], ranks: tuple[int, ...]
) -> None:
    """FLoRA through a trusted aggregator: the global adapter is the sum of all that was ever learnt."""
    result = run_simulation(
        settings(
            "flora", "flora", {"site_rank": 3}, secure={"mode": "trusted"}, rounds={"rounds": 2},
            adapter={"options": {"r": 24, "alpha": 48}}, simulation={"ranks": ranks},
        )
    )  # fmt: skip
    require_whole(result)
    sizes = {one.site: lora.pairs(one.before.layout)[0].rank for one in locally}
    assert sizes == {"w0": 1, "w1": 2, "w2": 3, "w3": 1} if ranks else set(sizes.values()) == {3}
    assert not any(factor(one.before, "lora_b").any() for one in locally), "what trains is new"
    starts = {factor(one.before, "lora_a").tobytes() for one in locally}
    assert len(starts) == len(locally) == 8, "drawn for each site and round"
    last, learnt = result.federated.outcome.last.adapter, [
        mean_of_products([one for one in locally if one.round == round], whole=False) for round in (1, 2)
    ]  # fmt: skip
    for pair, product in lora.products(last):
        expected = learnt[0][pair.module] + learnt[1][pair.module]
        assert np.linalg.norm(learnt[1][pair.module]) > 1e-4
        np.testing.assert_allclose(product.dense(), expected, atol=1e-6)


def test_what_a_mean_of_factors_misses_stands_frozen_beside_it(
    settings: Callable[..., RunConfig], locally: list[Trained]
) -> None:
    """FedEx-LoRA: the global adapter is the exact mean of the sites' products."""
    result = run_simulation(
        settings(
            "fedex", "fedex", {"trained_rank": 2}, secure={"mode": "off"}, rounds={"rounds": 2},
            adapter={"options": {"r": 14, "alpha": 28}}, simulation={"ranks": {"w1": 1}},
        )
    )  # fmt: skip
    require_whole(result)
    sizes = {one.site: lora.pairs(one.before.layout)[0].rank for one in locally}
    assert sizes == {"w0": 2, "w1": 1, "w2": 2, "w3": 2}
    mean = mean_of_products([one for one in locally if one.round == 2], whole=True)
    last = result.federated.outcome.last.adapter
    for pair, product in lora.products(last):
        np.testing.assert_allclose(product.dense(), mean[pair.module], atol=1e-6)
        missed = last[pair.b.name][:, 2:] @ last[pair.a.name][2:]
        assert np.linalg.norm(missed) > 1e-6


def test_methods_that_say_what_trains_refuse_other_ranks(settings: Callable[..., RunConfig]) -> None:
    """Above what their options let train, be it the plan's own; and where contributions are hidden."""
    for name, options in (("flora", {"site_rank": 1}), ("fedex", {"trained_rank": 1})):
        with pytest.raises(ConfigError, match="fewer directions"):
            run_simulation(
                settings(f"rank_{name}", name, options, secure={"mode": "off"}, simulation={"ranks": [2]})
            )
        with pytest.raises(ConfigError, match="has to see each"):
            run_simulation(settings(f"hidden_{name}", name, options))


def test_a_rank_that_cannot_be_taken_is_refused_before_training(settings: Callable[..., RunConfig]) -> None:
    """Above the plan's under a mean of factors, with what works; and of a site that there is not."""
    with pytest.raises(ConfigError, match="is sent factors") as refused:
        run_simulation(settings("above", "fedavg", simulation={"ranks": [2, 4]}))
    assert "strategy=tangent" in str(refused.value)
    with pytest.raises(ConfigError, match="is sent factors"):
        run_simulation(settings("above_fedsvd", "fedsvd", simulation={"ranks": [2, 4]}))
    with pytest.raises(ConfigError, match="unknown site"):
        run_simulation(settings("nobody", "tangent", simulation={"ranks": {"w9": 1}}))


def test_methods_for_factors_refuse_an_adapter_without_any(settings: Callable[..., RunConfig]) -> None:
    """A head alone has no B and A."""
    head = {"adapter": {"options": {"targets": "none"}}}
    for name in METHODS:
        with pytest.raises(ConfigError, match="has none"):
            run_simulation(settings(f"head_{name}", name, **head))


def test_adaptive_server_optimisers_have_no_place_in_a_tangent_space(
    settings: Callable[..., RunConfig],
) -> None:
    """They go by coordinates, which the factors do not have from round to round."""
    with pytest.raises(ConfigError, match="server"):
        run_simulation(settings("adam", "tangent", options={"server": {"optimiser": "adam"}}))
