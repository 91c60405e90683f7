"""Test rows dealt out in pieces: all of them, once, and no more under way than the crew takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wardround.core.plan import DataContract, TaskSpec
from wardround.runtime.events import Evaluated, EventStream
from wardround.runtime.sinks import RecorderSink
from wardround.simulations import scoring
from wardround.simulations.scoring import Scorer, TestRows, all_of, pieces
from wardround.simulations.together import Here, Trainer
from wardround.training.adapters import ADAPTERS
from wardround.training.encoded_text import EncodedText
from wardround.training.evaluation import ScoringJob, batches_of, score
from wardround.training.settings import BaseModelConfig, Machine
from wardround.training.tasks import TASKS
from wardround.training.workbench import open_workbench

SPEC = TaskSpec(name="sequence_classification", metrics="classification")


def made_up(count: int, *, seed: int) -> list[EncodedText]:
    """Rows of unlike lengths and two labels."""
    draw = np.random.default_rng(seed)
    tokens = [draw.integers(6, 380, size=int(draw.integers(3, 30)), dtype=np.int32) for _ in range(count)]
    return [EncodedText(own, own, label=index % 2, example=index) for index, own in enumerate(tokens)]


@pytest.mark.parametrize(("batches", "sizes"), [(0, [0]), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_pieces_are_all_batches_once(batches: int, sizes: list[int]) -> None:
    """And one that counts nothing where there is none: it gives the counters their zeros."""
    found = pieces(batches)
    assert [len(piece) for piece in found] == sizes
    assert [batch for piece in found for batch in piece] == list(range(batches))


def test_no_more_are_under_way_than_the_crew_takes() -> None:
    """What they made comes in order."""
    under_way, most = list[int](), list[int]()

    def start(jobs: list[Any]) -> Callable[[], list[Any]]:
        under_way.append(jobs[0])
        most.append(len(under_way))

        def wait() -> list[Any]:
            under_way.remove(jobs[0])
            return [-jobs[0]]

        return wait

    crew: Any = SimpleNamespace(ahead=2, start=start)
    jobs: Any = [1, 2, 3, 4, 5]
    assert list(all_of(crew, jobs)) == [-1, -2, -3, -4, -5]
    assert max(most) == 3
    assert not under_way


def test_rows_in_pieces_count_what_they_count_as_a_whole(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one adapter for all, and of each site's own; what goes wrong with a piece is raised."""
    lora = ADAPTERS.get("lora")
    bench = open_workbench(
        BaseModelConfig(path=str(tiny_bert)), TASKS.get(SPEC.name),
        DataContract(columns={}, labels=("a", "b")), lora, lora.Options(),
        Machine(device="cpu", evaluation_batch_size=2), seed=7,
    )  # fmt: skip
    plan: Any = SimpleNamespace(task=SPEC, data=bench.data)
    rows = TestRows(made_up(23, seed=1), {"a": made_up(5, seed=2), "b": []})
    assert batches_of(bench, rows.everybody) == 12
    begun: list[int] = []

    def train(jobs: Any) -> Any:
        begun.append(len(jobs))
        return Trainer(bench)(jobs)

    recorder = RecorderSink()
    monkeypatch.setattr(
        scoring, "scores", lambda _, counters: SimpleNamespace(values=counters, support={}, by_class={})
    )
    scorer = Scorer(bench, plan, rows, EventStream((recorder,)), Here(train))
    adapter = bench.initial_adapter()
    other = adapter.with_vector(adapter.vector + np.float32(0.1))

    def whole(adapter: Any, rows: Any) -> Any:
        return score(bench, ScoringJob(adapter, rows, SPEC, bench.data)).vector

    found: Any = scorer.score(adapter, arm="x", round=1)
    assert begun == [1] * 4, "three pieces of everybody's rows, and a site's own"
    assert list(found) == ["test", "test/a"]
    np.testing.assert_array_equal(found["test"].values.vector, whole(adapter, rows.everybody))
    np.testing.assert_array_equal(found["test/a"].values.vector, whole(adapter, rows.sites["a"]))
    own: Any = scorer.score_own({"a": adapter, "b": other}, arm="x", round=1)
    both = whole(adapter, rows.everybody) + whole(other, rows.everybody)
    np.testing.assert_array_equal(own["test"].values.vector, both)
    np.testing.assert_array_equal(own["own"].values.vector, whole(adapter, rows.sites["a"]))
    np.testing.assert_array_equal(own["test/a"].values.vector, own["own"].values.vector)
    assert [event.part for event in recorder.events if isinstance(event, Evaluated)][:2] == ["test", "test/a"]
    broken = Scorer(bench, plan, rows, EventStream(()), Here(lambda _: [ValueError("of a piece")]))
    with pytest.raises(ValueError, match="of a piece"):
        broken.score(adapter, arm="x", round=1)
