"""Whole simulated runs under secure aggregation: one adapter whatever the mode, and every loss survived."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client import flower_app
from wardround.client import work as handler
from wardround.core.errors import PolicyError, QuorumError
from wardround.core.messages import Reply, Request, reply_to
from wardround.privacy.packing import packed_size
from wardround.runtime.events import EventStream, Notice, RoundBurnt, RoundFolded, SiteReplied, SumOpened
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import encode_all, prepare
from wardround.simulations.simulate import SimulationResult, run_simulation
from wardround.simulations.twin import run_twin

Settings = Callable[..., RunConfig]
Undisturbed = Callable[[RunConfig], SimulationResult]
Fault = Callable[[Request, Callable[[], Reply]], Reply]


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Settings:
    """Six wards, two rounds: threshold five."""
    return notes(rows=72, wards=6, rounds=2)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], list[str]]:
    """Let a fault stand between the network and every site; gives the sites that train, in order."""

    def install(fault: Fault) -> list[str]:
        trained: list[str] = []
        train, answer = handler.train_locally, flower_app.answer

        def counted(bench: Any, job: Any) -> Any:
            trained.append(job.site)
            return train(bench, job)

        monkeypatch.setattr(handler, "train_locally", counted)
        monkeypatch.setattr(
            flower_app, "answer", lambda request, site: fault(request, lambda: answer(request, site))
        )
        return trained

    return install


def run(config: RunConfig) -> tuple[SimulationResult, RecorderSink]:
    """A run and its events."""
    recorder = RecorderSink()
    return run_simulation(config, sinks=(recorder,)), recorder


def last(result: SimulationResult) -> str:
    """Digest of the last adapter."""
    return result.federated.outcome.last.adapter.digest


def lost(sites: Collection[str], exchange: int, **places: int) -> Fault:
    """These sites vanish in one exchange, and answer nothing after it in that attempt."""

    def fault(request: Request, answer: Callable[[], Reply]) -> Reply:
        here = all(getattr(request, name) == value for name, value in places.items())
        if here and request.site in sites and request.exchange >= exchange:
            return reply_to(request, status="failed", code="gone", reason="gone")
        return answer()

    return fault


def test_one_adapter_whatever_the_mode(settings: Settings) -> None:
    """All four fold the same sums; accounted and real send the same bytes, in five exchanges."""
    modes = ("off", "accounted", "real", "trusted")
    results = {mode: run(settings(mode, secure={"mode": mode})) for mode in modes}
    assert len({result.plan.digest for result, _ in results.values()}) == 4
    assert len({last(result) for result, _ in results.values()}) == 1
    assert len({str(result.federated.outcome.selection) for result, _ in results.values()}) == 1
    seen = {
        mode: [
            (e.round, e.name, e.exchanges, e.bytes_up, e.bytes_down)
            for e in recorder.events
            if isinstance(e, SumOpened)
        ]
        for mode, (_, recorder) in results.items()
    }
    assert seen["real"] == seen["accounted"]
    assert [entry[:3] for entry in seen["real"]] == [
        (1, "evaluation", 5), (1, "training", 5), (2, "evaluation", 5), (2, "training", 5),
        (3, "evaluation", 5),
    ]  # fmt: skip
    assert {entry[2] for mode in ("off", "trusted") for entry in seen[mode]} == {1}


@pytest.mark.parametrize("bits", [8, 12])
def test_a_narrow_ring_masked_or_not(settings: Settings, bits: int) -> None:
    """One adapter either way, the plain twin's, in so many bytes fewer than 16 bits a coordinate take."""
    masked, recorder = run(settings("masked", encoding={"bits": bits}, secure={"mode": "real"}))
    clear, _ = run(settings("clear", encoding={"bits": bits}, secure={"mode": "off"}))
    wide, of_16 = run(settings("wide", secure={"mode": "real"}))
    prepared = prepare(settings("twin", encoding={"bits": bits}))
    arm = encode_all(prepared, EventStream())[0]
    assert last(masked) == last(clear) == run_twin(arm, prepared.bench, prepared.initial).digest
    assert last(masked) != last(wide)
    size = wide.plan.adapter.layout.size
    up, up_of_16 = (
        sum(event.bytes_up for event in seen.events if isinstance(event, SumOpened))
        for seen in (recorder, of_16)
    )
    assert up_of_16 - up == 2 * 6 * (packed_size(size, 16) - packed_size(size, bits))


def test_the_first_round_is_within_the_stated_bound_of_the_unquantised_twin(settings: Settings) -> None:
    """16 bits: no coordinate is further from the float64 mean than the run says, and most are not near it."""
    config = settings("run", rounds={"rounds": 1}, secure={"mode": "real"})
    result, recorder = run(config)
    prepared = prepare(config)
    arm = encode_all(prepared, EventStream())[0]
    fine = arm.plan.model_copy(update={"encoding": arm.plan.encoding.model_copy(update={"bits": 64})})
    exact = run_twin(replace(arm, plan=fine), prepared.bench, prepared.initial).vector.astype(np.float64)
    (bound,) = [e.rounding for e in recorder.events if isinstance(e, RoundFolded)]
    found = result.federated.outcome.last.adapter.vector.astype(np.float64)
    worst = np.abs(found - exact).max()
    float32 = np.spacing(np.abs(exact).max().astype(np.float32))
    assert bound / 100 < worst <= bound + float32
    assert result.summary["secure"]["rounding"] == bound
    assert f"{bound:.1e}" in (result.folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ["real", "accounted"])
@pytest.mark.parametrize(("exchange", "counts"), [(0, False), (1, False), (2, False), (3, True), (4, True)])
def test_a_site_may_vanish_in_any_phase(
    settings: Settings,
    faulty: Callable[[Fault], list[str]],
    undisturbed: Undisturbed,
    mode: str,
    exchange: int,
    counts: bool,
) -> None:
    """Before its vector was sent it is not in the sum, after that it is; the others' round goes on."""
    config = settings("run", rounds={"rounds": 1}, secure={"mode": mode})
    plain = settings("plain", rounds={"rounds": 1}, secure={"mode": "off"})
    whole = last(undisturbed(plain)) if counts else None
    trained = faulty(lost({"w3"}, exchange))
    result, recorder = run(config)
    assert result.federated.outcome.reason == "completed"
    (folded,) = [e for e in recorder.events if isinstance(e, RoundFolded)]
    assert folded.missing == (() if counts else ("w3",))
    told = [e.exchange for e in recorder.events if isinstance(e, SiteReplied) and e.code == "gone"]
    assert told[0] == exchange
    assert sorted(trained) == [f"w{i}" for i in range(6) if exchange or i != 3]
    # `off` with that site gone from the beginning, or there to the end, is the same sum.
    if counts:
        assert whole == last(result)
    elif exchange == 0:
        assert last(run(plain)[0]) == last(result)


def test_too_many_losses_are_tried_again_without_training(
    settings: Settings, faulty: Callable[[Fault], list[str]], undisturbed: Undisturbed
) -> None:
    """Two of six vanish while shares are dealt: four are too few, and the second attempt has all."""
    whole = last(undisturbed(settings("whole", secure={"mode": "real"})))
    trained = faulty(lost({"w1", "w4"}, 1, round=1, attempt=0))
    result, recorder = run(settings("run", secure={"mode": "real"}))
    assert last(result) == whole
    assert len(trained) == 12
    sums = [e for e in recorder.events if isinstance(e, SumOpened) and e.round == 1]
    assert [(e.name, e.attempt) for e in sums] == [("evaluation", 1), ("training", 1)]
    assert "2 more attempts were needed" in (result.folder / "README.md").read_text(encoding="utf-8")


def test_a_round_that_never_gets_its_threshold_ends_the_run_resumably(
    settings: Settings, faulty: Callable[[Fault], list[str]], undisturbed: Undisturbed
) -> None:
    """Nothing was opened: the run says why, and goes on from there once the sites are back."""
    whole = last(undisturbed(settings("whole", secure={"mode": "real"})))
    broken = lost({"w1", "w4"}, 1, round=2)
    there: list[Fault] = [broken]

    def now(request: Request, answer: Callable[[], Reply]) -> Reply:
        return there[0](request, answer)

    faulty(now)
    config = settings("run", secure={"mode": "real"})
    with pytest.raises(QuorumError, match="did not reach its quorum") as refused:
        run(config)
    assert "w1" in str(refused.value)
    assert "w4" in str(refused.value)
    there[0] = lost((), 0)
    resumed = config.model_copy(update={"resume": config.output})
    assert last(run(resumed)[0]) == whole


def test_a_round_that_cannot_be_opened_any_more_is_burnt(
    settings: Settings, faulty: Callable[[Fault], list[str]]
) -> None:
    """Two answer the last request, four never do: the adapter stays, the next round trains afresh from it."""
    config = settings("run", secure={"mode": "real"})
    trained = faulty(lost({"w0", "w1", "w2", "w3"}, 4, round=1))
    result, recorder = run(config)
    (burnt,) = [e for e in recorder.events if isinstance(e, RoundBurnt)]
    assert (burnt.round, "too few sites answered" in burnt.reason) == (1, True)
    folded = [e.round for e in recorder.events if isinstance(e, RoundFolded)]
    assert folded == [2]
    assert len(trained) == 12
    asked = [e.attempt for e in recorder.events if isinstance(e, SiteReplied) and e.round == 1]
    assert set(asked) == {0}, "no second attempt once shares may have been given"
    journal = [
        json.loads(line)
        for line in next(result.folder.glob("**/journal/rounds.jsonl")).read_text().splitlines()
    ]
    assert journal[0]["adapter_digest"] == prepare(config).initial.digest
    assert result.summary["secure"]["burnt_rounds"] == 1


def test_who_deals_a_bad_share_is_named_and_cannot_stop_the_run_twice(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box that does not open ends one attempt; its dealer is in no other, and in no later round."""
    from wardround.privacy.secagg import site as secure_site

    seal, calls = secure_site.seal, list[int]()

    def spoiled(key: Any, first: Any, second: Any, agreed: bytes, head: bytes) -> bytes:
        sealed = seal(key, first, second, agreed, head)
        calls.append(1)
        return sealed[:-1] + bytes([sealed[-1] ^ 1]) if cheating else sealed

    cheating = False
    deal = secure_site.SecureSite.deal

    def dealt(self: Any, message: Any) -> Any:
        nonlocal cheating
        cheating = self.member.name == "w2"
        return deal(self, message)

    monkeypatch.setattr(secure_site, "seal", spoiled)
    monkeypatch.setattr(secure_site.SecureSite, "deal", dealt)
    result, recorder = run(settings("run", secure={"mode": "real"}))
    assert calls
    folded = [(e.round, e.missing) for e in recorder.events if isinstance(e, RoundFolded)]
    assert [round for round, _ in folded] == [1, 2]
    assert folded[0][1] == ("w2",)
    assert not any(isinstance(e, SiteReplied) and e.site == "w2" and e.round > 1 for e in recorder.events)
    texts = [e.text for e in recorder.events if isinstance(e, Notice)]
    assert any("w2" in text and "left out" in text for text in texts)
    assert result.federated.outcome.reason == "completed"


def test_different_broadcasts_never_make_a_sum(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real adapter to one site, another one to the rest: no sum of the two groups comes about."""
    from wardround.server import exchange

    def split(**fields: Any) -> Request:
        broadcast = fields["broadcast"]
        if broadcast is not None and fields["site"] != "w0" and fields["round"] == 2:
            fields["broadcast"] = broadcast.with_vector(broadcast.vector + np.float32(0.5))
        return Request(**fields)

    monkeypatch.setattr(exchange, "Request", split)
    monkeypatch.setattr(exchange._Attempt, "_following", lambda _: frozenset())  # it sends what it likes
    recorder = RecorderSink()
    with pytest.raises(QuorumError):
        run_simulation(settings("run", secure={"mode": "real"}), sinks=(recorder,))
    replies = [e for e in recorder.events if isinstance(e, SiteReplied) and e.round == 2 and not e.attempt]
    refused = {e.site: e.reason for e in replies if e.status != "ok"}
    assert set(refused) == {"w1", "w2", "w3", "w4", "w5"}
    assert set(refused.values()) == {"the broadcast is not the fold of the last sum"}
    assert not any(isinstance(e, SumOpened) and e.round == 2 for e in recorder.events)


def test_too_few_sites_are_refused_before_anything_is_trained(
    notes: Callable[..., Any], tmp_path: Path
) -> None:
    """Four wards under the default policy: what to change is said, and there is no half-made run."""
    make = notes(rows=24, wards=4, rounds=1)
    with pytest.raises(PolicyError, match="smaller than this site's policy allows") as refused:
        run_simulation(make("run", secure={"mode": "real"}))
    assert "least_cohort" in str(refused.value)
    assert not list((tmp_path / "run").glob("**/*.safetensors"))
    assert run(make("small", secure={"mode": "real", "policy": {"least_cohort": 4}}))[0]
