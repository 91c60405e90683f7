"""Personalised strategies and SCAFFOLD, through the real loop, the real handler and Flower's engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from wardround.client.memory import SiteStore
from wardround.core.errors import ConfigError
from wardround.core.packed import Packed
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Evaluated, Event, SiteReplied
from wardround.simulations.after_run import merge_run
from wardround.simulations.config import RunConfig
from wardround.simulations.finished_run import finished_run
from wardround.simulations.open_model import open_model
from wardround.simulations.simulate import SimulationResult, run_simulation
from wardround.strategies._controls import CONTROL
from wardround.strategies._personal import OWN

SITES = ("w0", "w1", "w2")
ROUNDS = 3
STRATEGIES = {
    "fedsa": {"name": "fedsa"},
    "dual_adapter": {"name": "dual_adapter", "options": {"global_rank": 1}},
}


@pytest.fixture
def settings(notes: Callable[..., Any], tmp_path: Path) -> Callable[..., RunConfig]:
    """Three wards, three rounds, and test rows of each of them."""
    make = notes(rows=36, wards=3, rounds=ROUNDS, id_column="patient")
    rows = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join(rows[:14]) + "\n", encoding="utf-8")

    def by_strategy(name: str, strategy: dict[str, Any], **sections: Any) -> RunConfig:
        data = {"test": {"path": str(tmp_path / "test.jsonl")}} | sections.pop("data", {})
        made: RunConfig = make(name, strategy=strategy, data=data, **sections)
        return made

    return by_strategy


class Stop:
    """Ends the run at an event, as a kill does."""

    def __init__(self, at: Callable[[Event], bool]) -> None:
        self.at = at

    def emit(self, event: Event) -> None:
        """Look whether this is the one."""
        if self.at(event):
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to flush."""


def cut_and_resumed(config: RunConfig, site: str) -> SimulationResult:
    """A run that is killed as a site of round 2 answers, and goes on."""
    with pytest.raises(KeyboardInterrupt):
        run_simulation(
            config, sinks=(Stop(lambda e: isinstance(e, SiteReplied) and (e.round, e.site) == (2, site)),)
        )
    return run_simulation(config.model_copy(update={"resume": config.output}))


def stored(result: SimulationResult, site: str, round: int) -> SiteStore:
    """What a site keeps."""
    store = SiteStore(result.folder / "arms" / "federated" / "sites" / site)
    assert (store.folder / f"round-{round:05d}.safetensors").exists()
    return store


def saved(folder: Path) -> dict[str, Any]:
    """Tensors of a PEFT folder, as plain PEFT reads them."""
    return safetensors.numpy.load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_each_site_ends_with_a_whole_adapter_of_its_own_and_nothing_is_released_for_everybody(
    settings: Callable[..., RunConfig], name: str
) -> None:
    """Shared in common, own apart; in PEFT's files; no `adapter/`, none on the card, none to merge."""
    result = run_simulation(settings(name, STRATEGIES[name]))
    folder, own = result.folder, result.federated.own
    assert sorted(own) == list(SITES)
    assert not any((folder / there).exists() for there in ("adapter", "adapter_last", "samples.md"))
    layout, last = result.plan.adapter.layout, result.federated.outcome.last
    assert result.federated.outcome.released_round == ROUNDS == last.round
    for spec in layout.tensors:
        tensors = [own[site][spec.name] for site in SITES]
        federated = last.adapter[spec.name]
        if name == "fedsa":
            shared = {"lora_b": 0}.get(spec.role)
            parts = [(t, federated) for t in tensors] if shared is None else []
            if shared == 0:
                assert not federated.any()  # the initial one
                assert all(t.any() for t in tensors)
                assert not np.array_equal(tensors[0], tensors[1])
        else:
            first = {"lora_a": np.s_[:1], "lora_b": np.s_[:, :1]}.get(spec.role, np.s_[...])
            rest = {"lora_a": np.s_[1:], "lora_b": np.s_[:, 1:]}.get(spec.role)
            parts = [(t[first], federated[first]) for t in tensors]
            if rest is not None:
                assert not np.array_equal(tensors[0][rest], tensors[1][rest])
        for found, expected in parts:
            np.testing.assert_array_equal(found, expected)
    for site in SITES:
        files = saved(folder / "sites" / site / "adapter")
        for key, array in files.items():
            np.testing.assert_array_equal(array, own[site][key])
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "none for everybody" in card
    assert '"sites/NAME/adapter"' in card
    assert last.adapter.digest not in card
    assert own["w1"].digest in card
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["arms"]["federated"]["site_adapters"] == {s: a.digest for s, a in own.items()}
    assert "released_adapter" not in summary["arms"]["federated"]
    for refused in (lambda: merge_run(folder), lambda: open_model(folder)):
        with pytest.raises(ConfigError, match="no adapter for everybody"):
            refused()


def test_a_sites_own_adapter_is_merged_opened_and_scored(settings: Callable[..., RunConfig]) -> None:
    """`merge RUN/sites/NAME`, and what comes of it is found to belong to the run."""
    result = run_simulation(settings("run", STRATEGIES["fedsa"]))
    site = result.folder / "sites" / "w1"
    merge_run(site)
    for place in (site, site / "adapter", site / "merged"):
        assert finished_run(place, None).folder.resolve() == result.folder.resolve()
        open_model(place)


def test_scores_are_of_the_sites_own_adapters(settings: Callable[..., RunConfig]) -> None:
    """`test/SITE` of its own on its own rows, `own` their sum, `test` all of them on everybody's rows."""
    result = run_simulation(settings("run", STRATEGIES["fedsa"], evaluation={"every": 2}))
    test = result.federated.test
    assert set(test) == {"test", "own", *(f"test/{site}" for site in SITES)}
    own = [test[f"test/{site}"] for site in SITES]
    assert test["own"].support["loss"] == sum(scores.support["loss"] for scores in own) == 14
    assert test["test"].support["loss"] == 3 * 14
    mean = sum(s.values["loss"] * s.support["loss"] for s in own) / 14
    assert test["own"].values["loss"] == pytest.approx(mean, rel=1e-6)
    events = read_events(result.folder / "metrics.jsonl")
    rounds = [e.round for e in events if isinstance(e, Evaluated) and (e.arm, e.part) == ("federated", "own")]
    assert rounds == [0, 2, ROUNDS]
    # Another site's adapter on these rows, or what federates alone, scores otherwise.
    assert len({round(scores.values["loss"], 9) for scores in own}) == len(SITES)


@pytest.mark.parametrize("name", [*sorted(STRATEGIES), "scaffold"])
def test_a_killed_run_goes_on_to_the_same_bits(
    settings: Callable[..., RunConfig], undisturbed: Callable[[RunConfig], SimulationResult], name: str
) -> None:
    """Memory of a round that is asked again is what was before it: own adapters, c and c_i come out alike."""
    strategy = STRATEGIES.get(name, {"name": name})
    whole = undisturbed(settings("whole", strategy))
    cut = cut_and_resumed(settings("cut", strategy), "w1")
    assert cut.federated.outcome.last.adapter.digest == whole.federated.outcome.last.adapter.digest
    assert {s: a.digest for s, a in cut.federated.own.items()} == {
        s: a.digest for s, a in whole.federated.own.items()
    }
    for site in SITES:
        one, two = (stored(r, site, ROUNDS).load(before_round=ROUNDS + 1).memory for r in (cut, whole))
        assert {k: v.digest for k, v in one.slots.items()} == {k: v.digest for k, v in two.slots.items()}


def controls(result: SimulationResult) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """c, and the mean of the c_i (equal numbers of rows: equal weights)."""
    kept = [
        stored(result, site, ROUNDS).load(before_round=ROUNDS + 1).memory.slots[CONTROL].vector
        for site in SITES
    ]
    return result.federated.outcome.last.slots[CONTROL].vector, np.mean(np.array(kept, np.float64), axis=0)


def test_scaffold_keeps_the_servers_variate_the_mean_of_the_sites(
    settings: Callable[..., RunConfig], undisturbed: Callable[[RunConfig], SimulationResult]
) -> None:
    """End to end on 16 bits: what the sums' rounding leaves between c and the mean of c_i is small.

    Sums fold at the sites as well (`fold_check`): no reply is refused. And the adapter is not FedAvg's.
    """
    result = undisturbed(settings("scaffold", {"name": "scaffold"}))
    replies = [e for e in read_events(result.folder / "metrics.jsonl") if isinstance(e, SiteReplied)]
    assert {e.status for e in replies} == {"ok"}
    control, mean = controls(result)
    assert np.linalg.norm(mean) > 1e-2
    rounding = np.sqrt(len(SITES)) * 0.25 / 2**16
    apart = control - mean
    assert np.sqrt(np.mean(apart**2)) < 1.5 * rounding
    assert np.linalg.norm(apart) < 0.05 * np.linalg.norm(mean)
    plain = undisturbed(settings("fedavg", {"name": "fedavg"}))
    assert plain.federated.outcome.last.adapter.digest != result.federated.outcome.last.adapter.digest
    assert (result.folder / "adapter").is_dir()


def test_under_secure_sums_scaffold_folds_the_same(
    notes: Callable[..., Any], undisturbed: Callable[[RunConfig], SimulationResult]
) -> None:
    """Masked or not, the ring carries update and control variate to the same bits."""
    make = notes(rows=60, wards=5, rounds=2)
    found = {
        mode: undisturbed(make(mode, strategy={"name": "scaffold"}, secure={"mode": mode}))
        for mode in ("off", "real")
    }
    one, two = (found[mode].federated.outcome.last for mode in ("off", "real"))
    assert one.adapter.digest == two.adapter.digest
    assert one.slots[CONTROL].digest == two.slots[CONTROL].digest


def test_who_takes_part_in_some_rounds_only_can_check_them(settings: Callable[..., RunConfig]) -> None:
    """A share of the sites a round: c is broadcast, so that nobody who missed a round is refused."""
    config = settings("part", {"name": "scaffold"}, rounds={"rounds": 4, "participation": 0.67})
    result = run_simulation(config)
    replies = [e for e in read_events(result.folder / "metrics.jsonl") if isinstance(e, SiteReplied)]
    assert {e.status for e in replies} == {"ok"}
    assert result.federated.outcome.last.round == 4


@pytest.mark.parametrize("name", ["fedsa", "scaffold"])
def test_a_site_that_is_not_in_the_sum_goes_on_from_what_it_knew_before(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its contribution of round 2 is lost after it was kept: round 3 begins for it with that of round 1."""
    from wardround.client import round as handler
    from wardround.core.errors import TrainingError

    contribute = handler.contribute

    def losing(request: Any, broadcast: Packed, site: Any, *rest: Any) -> Any:
        lanes = contribute(request, broadcast, site, *rest)
        if (site.name, request.round) == ("w1", 2):
            raise TrainingError("lost", "the reply is lost")
        return lanes

    monkeypatch.setattr(handler, "contribute", losing)
    result = run_simulation(settings("lost", {"name": name}))
    stores = {site: stored(result, site, ROUNDS).folder for site in SITES}
    rounds = {site: sorted(path.stem for path in folder.iterdir()) for site, folder in stores.items()}
    assert rounds["w0"] == rounds["w2"] == ["round-00002", "round-00003"]
    assert rounds["w1"] == ["round-00001", "round-00003"]
    if name == "scaffold":
        control, mean = controls(result)  # everybody answered in the last round: nothing of the loss is left
        assert np.linalg.norm(control - mean) < 0.05 * np.linalg.norm(mean)


def test_who_is_not_in_the_last_sum_ends_with_the_part_of_the_round_before_it(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is scored, and so no site is told any more that it is not in the sum."""
    from wardround.client import round as handler
    from wardround.core.errors import TrainingError

    contribute = handler.contribute

    def losing(request: Any, broadcast: Packed, site: Any, *rest: Any) -> Any:
        lanes = contribute(request, broadcast, site, *rest)
        if (site.name, request.round) == ("w1", ROUNDS):
            raise TrainingError("lost", "the reply is lost")
        return lanes

    monkeypatch.setattr(handler, "contribute", losing)
    result = run_simulation(settings("lost", {"name": "fedsa"}, data={"validation_fraction": 0}))
    kept = {site: stored(result, site, ROUNDS) for site in SITES}
    for site, expected in (("w0", ROUNDS), ("w1", ROUNDS - 1)):
        parts = {
            round: kept[site].load(before_round=round + 1).memory.slots[OWN].vector
            for round in (ROUNDS - 1, ROUNDS)
        }
        assert not np.array_equal(parts[ROUNDS - 1], parts[ROUNDS])
        own = result.federated.own[site]
        found = np.concatenate([own[s.name].reshape(-1) for s in own.layout.tensors if s.role == "lora_b"])
        np.testing.assert_array_equal(found, parts[expected])


@pytest.mark.parametrize("name", ["fedsa", "dual_adapter", "scaffold"])
def test_exact_memory_is_refused_under_privacy_before_a_model_is_loaded(
    settings: Callable[..., RunConfig], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what would work instead."""
    from wardround.training import workbench

    monkeypatch.setattr(workbench, "open_workbench", lambda *_, **__: pytest.fail("a model was loaded"))
    config = settings(
        name, {"name": name, "weighting": "uniform"}, local={"max_grad_norm": None},
        privacy={"unit": "example", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0},
        data={"labels": ["0", "1"]},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="fedprox" if name == "scaffold" else "fedavg or ffa_lora"):
        run_simulation(config)


def test_early_stopping_is_refused_where_the_last_round_is_released(
    settings: Callable[..., RunConfig],
) -> None:
    """Nobody keeps the sites' own parts of the best round."""
    with pytest.raises(ConfigError, match="releases the last round"):
        run_simulation(settings("run", STRATEGIES["fedsa"], release={"patience": 1}))
