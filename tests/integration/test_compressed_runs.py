"""Whole simulated runs whose contributions travel compressed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from wardround.client import flower_app, parties
from wardround.core.compression import Compression
from wardround.core.errors import ConfigError, QuorumError
from wardround.core.messages import Reply, Request, reply_to
from wardround.privacy.compression import compressed_size
from wardround.privacy.packing import packed_size
from wardround.runtime.events import BytesMoved, RoundFolded, SiteReplied, SumOpened
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import prepare
from wardround.simulations.simulate import SimulationResult, run_simulation

Settings = Callable[..., RunConfig]
INT8 = {"method": "blocks", "bits": 8}
INT4 = {"method": "blocks", "bits": 4, "block": 16}
TOP = {"method": "top_k", "share": 0.1, "bits": 16}
METHODS = {"int8": (INT8, 0.54), "int4": (INT4, 0.39), "top_k": (TOP, 0.15)}
"""And the most of the ring's bytes that a contribution may take."""


@pytest.fixture
def settings(notes: Callable[..., Any], without_curves: None) -> Settings:
    """Three wards and two rounds, in the clear."""
    make = notes(rows=36, wards=3, rounds=2)

    def ready(output: str, compression: Any = None, mode: str = "off", **sections: Any) -> RunConfig:
        config: RunConfig = make(
            output, **{"encoding": {"compression": compression}, "secure": {"mode": mode}} | sections
        )
        return config

    return ready


def run(config: RunConfig) -> tuple[SimulationResult, RecorderSink]:
    """A run and its events."""
    recorder = RecorderSink()
    return run_simulation(config, sinks=(recorder,)), recorder


def adapter(result: SimulationResult) -> np.ndarray:
    """The last one."""
    return result.federated.outcome.last.adapter.vector


def training(recorder: RecorderSink) -> list[int]:
    """Bytes up of each training sum."""
    found = [event for event in recorder.events if isinstance(event, SumOpened)]
    return [event.bytes_up for event in found if event.name == "training"]


def store(result: SimulationResult, site: str) -> list[str]:
    """What a site keeps."""
    return sorted(path.name for path in result.folder.rglob(f"{site}/**/round-*.safetensors"))


@pytest.mark.parametrize("name", METHODS)
def test_fewer_bytes_go_up_and_the_adapter_is_nearly_the_same(settings: Settings, name: str) -> None:
    """To the byte what the form states; sealed or in the clear the same adapter, bit for bit."""
    given, most = METHODS[name]
    spec: Any = TypeAdapter(Compression).validate_python(given)
    plain, told = run(settings("plain"))
    found, recorder = run(settings("small", given))
    sealed, through = run(settings("sealed", given, "trusted"))
    assert np.array_equal(adapter(found), adapter(sealed))
    size = plain.plan.adapter.layout.size
    saved = packed_size(size, 16) - compressed_size(size, spec)
    assert [a - b for a, b in zip(training(told), training(recorder), strict=True)] == [3 * saved] * 2
    assert compressed_size(size, spec) < most * packed_size(size, 16)
    assert max(training(through)) < max(training(told)) - 3 * saved + 3 * 2000
    folded = [event for event in recorder.events if isinstance(event, RoundFolded)]
    whole = [event for event in told.events if isinstance(event, RoundFolded)]
    assert [a.bytes_up - b.bytes_up for a, b in zip(whole, folded, strict=True)] == [3 * saved] * 2
    up = sum(e.bytes_up for e in recorder.events if isinstance(e, SiteReplied) and e.round < 3)
    assert up == sum(event.bytes_up for event in folded)
    initial = prepare(settings("none")).initial.vector
    moved, other = adapter(plain) - initial, adapter(found) - initial
    along = float(moved @ other / np.linalg.norm(moved) / np.linalg.norm(other))
    assert along > {"int8": 0.99, "int4": 0.9, "top_k": 0.4}[name]
    assert found.summary["secure"]["compression"].startswith(("8 bits", "4 bits", "the largest 10"))
    assert (store(found, "w0") != []) == (name == "top_k")


def test_with_every_coordinate_whole_nothing_is_lost(settings: Settings) -> None:
    """`top_k` with a share of 1 and floats ends where the ring alone ends, but for rounding at random."""
    plain, _ = run(settings("plain"))
    found, _ = run(settings("whole", {"method": "top_k", "share": 1.0, "bits": 32}))
    np.testing.assert_allclose(adapter(found), adapter(plain), atol=1e-5)


@pytest.mark.parametrize("mode", ["off", "trusted"])
@pytest.mark.parametrize("name", ["int4", "top_k"])
def test_an_interrupted_run_ends_with_the_same_bits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, mode: str
) -> None:
    """Round 2 never gets its quorum; resumed, every site goes on from what it had not sent after round 1."""
    whole, _ = run(settings("whole", METHODS[name][0], mode))
    answer, broken = flower_app.answer, [True]

    def fault(request: Request, site: Any) -> Reply:
        reply = answer(request, site)  # the site has trained, and kept its rest of round 2
        if broken and request.round == 2 and request.site != "w0":
            return reply_to(request, status="failed", code="gone", reason="gone")
        return reply

    monkeypatch.setattr(flower_app, "answer", fault)
    config = settings("part", METHODS[name][0], mode)
    with pytest.raises(QuorumError, match="did not reach its quorum"):
        run_simulation(config)
    broken.clear()
    resumed = run_simulation(config.model_copy(update={"resume": config.output}))
    assert np.array_equal(adapter(resumed), adapter(whole))


def test_what_was_not_sent_is_sent_later_unless_nothing_arrived(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site whose contribution is in no sum goes on from what waited before that round."""
    answer, compress, rests = flower_app.answer, parties.compress, list[tuple[Any, Any]]()

    def lost(request: Request, site: Any) -> Reply:
        reply = answer(request, site)
        if request.round == 2 and request.site == "w2":
            return reply_to(request, status="failed", code="gone", reason="gone")
        return reply

    def watched(vector: Any, spec: Any, scale: Any, rng: Any, rest: Any) -> Any:
        found = compress(vector, spec, scale, rng, rest)
        rests.append((rest, found.rest))
        return found

    monkeypatch.setattr(flower_app, "answer", lost)
    monkeypatch.setattr(parties, "compress", watched)
    result, recorder = run(settings("run", TOP, rounds={"rounds": 3}, secure={"mode": "off", "attempts": 1}))
    survivors = [event.survivors for event in recorder.events if isinstance(event, RoundFolded)]
    assert survivors == [("w0", "w1", "w2"), ("w0", "w1"), ("w0", "w1", "w2")]
    assert [before is None for before, _ in rests] == [True] * 3 + [False] * 6
    same = [
        [index for index in range(start) if np.array_equal(rests[start + site][0], rests[index][1])]
        for start in (3, 6) for site in range(3)
    ]  # fmt: skip
    assert same == [[0], [1], [2], [3], [4], [2]]  # w2's of round 3 is what it had left after round 1
    assert store(result, "w2") == ["round-00001.safetensors", "round-00003.safetensors"]


@pytest.mark.parametrize("compression", [TOP, None], ids=["top_k", "scaffold"])
def test_a_run_cut_off_after_a_sum_without_a_site_ends_with_the_same_bits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, compression: Any
) -> None:
    """What the site had made of that round is forgotten, though nobody could tell it before the run ended."""
    answer, broken = flower_app.answer, list[bool]()

    def fault(request: Request, site: Any) -> Reply:
        if broken and request.round == 3:
            return reply_to(request, status="failed", code="gone", reason="gone")
        reply = answer(request, site)
        if request.round == 2 and request.site == "w2":
            return reply_to(request, status="failed", code="gone", reason="gone")
        return reply

    monkeypatch.setattr(flower_app, "answer", fault)
    strategy = {} if compression else {"strategy": {"name": "scaffold"}}
    secure = {"mode": "off", "attempts": 1}
    whole, _ = run(settings("whole", compression, rounds={"rounds": 3}, secure=secure, **strategy))
    broken.append(True)
    config = settings("part", compression, rounds={"rounds": 3}, secure=secure, **strategy)
    with pytest.raises(QuorumError):
        run_simulation(config)
    broken.clear()
    resumed = run_simulation(config.model_copy(update={"resume": config.output}))
    assert np.array_equal(adapter(resumed), adapter(whole))


def test_bytes_both_ways_stand_in_the_result(settings: Settings) -> None:
    """Of every site: in the summary, in the table of sites, and for TensorBoard."""
    result, recorder = run(settings("run", INT8))
    moved = [event for event in recorder.events if isinstance(event, BytesMoved)]
    assert [event.round for event in moved] == [1, 2, 3]  # the last one scores the last adapter
    folded = [event for event in recorder.events if isinstance(event, RoundFolded)]
    assert [sum(event.up.values()) for event in moved[:2]] == [event.bytes_up for event in folded]
    traffic = json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))["traffic"]
    assert traffic["bytes_up_a_site"] == round(sum(event.bytes_up for event in folded) / 6)
    assert traffic["bytes_down_a_site"] > 2 * result.plan.adapter.layout.size
    with (result.folder / "sites.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            both = traffic["sites"][row["site"]]
            assert (int(row["bytes_up"]), int(row["bytes_down"])) == (both["bytes_up"], both["bytes_down"])
            assert both["bytes_up"] == sum(event.up[row["site"]] for event in moved)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"secure": {"mode": "real"}}, r"cannot be compressed(?s:.*)encoding\.bits to 8(?s:.*)trusted"),
        ({"secure": {"mode": "accounted"}}, "cannot be compressed"),
        (
            {"privacy": {"unit": "example", "noise": "local", "epsilon": 8.0, "delta": 1e-3},
             "strategy": {"weighting": "uniform"}, "local": {"max_grad_norm": None},
             "data": {"labels": ["0", "1"]}},
            r"what no noise covers(?s:.*)privacy to null",
        ),
    ],
)  # fmt: skip
def test_where_nobody_may_see_or_keep_it_it_is_refused_before_a_model_is_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, sections: Any, message: str
) -> None:
    """Masked sums and differential privacy, with the remedy."""
    from wardround.training import workbench

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(workbench, "open_workbench", loaded)
    with pytest.raises(ConfigError, match=message):
        run_simulation(settings("run", INT8, **sections))
    assert not Path(settings("run").output).exists()
