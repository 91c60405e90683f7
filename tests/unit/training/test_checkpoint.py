"""A local round that is cut after any step goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.plan import LocalWork
from wardround.strategies.contract import LocalRules
from wardround.training.checkpoint import Checkpoint
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.workbench import Workbench


@dataclass
class Every:
    """Keeps a checkpoint after every step."""

    kept: list[Checkpoint] = field(default_factory=list)

    def due(self) -> bool:
        """Always."""
        return True

    def keep(self, checkpoint: Checkpoint) -> None:
        """In memory."""
        self.kept.append(checkpoint)


@pytest.fixture(scope="module")
def bench(tiny_bert: Path, toys: Any) -> Workbench:
    """BERT drops out, LoRA too: a generator that is not put back shows."""
    made: Workbench = toys.bench(tiny_bert, toys.classifier, dropout=0.1)
    return made


def train(bench: Workbench, rows: Sequence[Any], work: LocalWork, **options: Any) -> LocalResult:
    """Round 2 of site `alpha`."""
    rules = options.pop("rules", LocalRules())
    return train_locally(
        bench,
        LocalJob(
            rows,
            bench.initial_adapter(),
            work,
            rules,
            round=2,
            rounds=3,
            seed_root=11,
            site="alpha",
            **options,
        ),
    )


@pytest.mark.parametrize(
    "rules",
    [LocalRules(), LocalRules(proximal=0.5), LocalRules(mean_gradient=True)],
    ids=["plain", "proximal", "mean gradient"],
)
@pytest.mark.parametrize(
    "work",
    [
        LocalWork(steps=5, batch_size=4, learning_rate=1e-2, optimiser="adamw", optimiser_state="keep"),
        LocalWork(steps=5, batch_size=4, learning_rate=1e-2, optimiser="adamw", optimiser_state="reset"),
        LocalWork(epochs=2, batch_size=5, learning_rate=0.1, optimiser="sgd", momentum=0.9),
    ],
    ids=["adamw kept", "adamw reset", "sgd"],
)
def test_a_round_that_is_cut_after_any_step_ends_with_the_same_bits(
    bench: Workbench, toys: Any, work: LocalWork, rules: LocalRules
) -> None:
    """Adapter, optimiser state, losses and targets, whichever step was the last."""
    rows = toys.rows(12)
    before = None
    if work.optimiser_state == "keep":
        before = train(bench, rows, work).optimiser_state
    checkpoints = Every()
    whole = train(bench, rows, work, rules=rules, optimiser_state=before, checkpoints=checkpoints)
    assert [kept.done for kept in checkpoints.kept] == list(range(1, whole.steps))
    for kept in checkpoints.kept:
        train(bench, rows, work.model_copy(update={"learning_rate": 0.3}))  # what another process left
        rest = train(bench, rows, work, rules=rules, optimiser_state=before, resumed=kept)
        np.testing.assert_array_equal(rest.adapter.vector, whole.adapter.vector)
        if whole.gradient is not None:
            assert rest.gradient is not None
            np.testing.assert_array_equal(rest.gradient.vector, whole.gradient.vector)
        assert (rest.steps, rest.targets, rest.loss_sum) == (whole.steps, whole.targets, whole.loss_sum)
        assert (rest.optimiser_state or {}).keys() == (whole.optimiser_state or {}).keys()
        for name, array in (whole.optimiser_state or {}).items():
            np.testing.assert_array_equal((rest.optimiser_state or {})[name], array)


@pytest.mark.parametrize("lost", ["generators", "optimiser_state", "adapter"])
def test_each_part_of_a_checkpoint_is_needed(bench: Workbench, toys: Any, lost: str) -> None:
    """Without it the bits are others: the test above can fail."""
    rows, work = toys.rows(12), LocalWork(steps=5, batch_size=4, learning_rate=1e-2)
    checkpoints = Every()
    whole = train(bench, rows, work, checkpoints=checkpoints)
    empty: dict[str, Any] = {"generators": {}, "optimiser_state": {}, "adapter": bench.initial_adapter()}
    rest = train(bench, rows, work, resumed=replace(checkpoints.kept[2], **{lost: empty[lost]}))
    assert (rest.adapter.vector != whole.adapter.vector).any()
