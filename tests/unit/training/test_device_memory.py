"""A device whose memory is full: fewer rows at once, the same logical batch, and a word in the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.core.errors import TrainingError
from wardround.core.plan import LocalWork
from wardround.strategies.contract import LocalRules
from wardround.training.device_memory import Fit, fitted
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.workbench import Machine, Workbench

WORK = LocalWork(steps=3, batch_size=8, learning_rate=0.05)


class SmallDevice:
    """A task on a device that holds so many rows; the error comes in the pass forward, or in the one back.

    Attributes:
        sizes: Rows of each microbatch that was tried.
    """

    def __init__(self, task: Any, most: int, kind: type[Exception] = torch.OutOfMemoryError) -> None:
        self.task, self.most, self.kind, self.late, self.sizes = task, most, kind, False, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def example_losses(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """As the task's, where they fit."""
        rows = len(batch["labels"])
        self.sizes.append(rows)
        losses: torch.Tensor = self.task.example_losses(model, batch)
        if rows > self.most:
            if not self.late:
                raise self.kind("can't allocate memory")
            losses.register_hook(self._full)
        return losses

    def _full(self, _: torch.Tensor) -> None:
        raise self.kind("can't allocate memory")


def trained(bench: Workbench, rows: Any) -> LocalResult:
    """One round."""
    return train_locally(
        bench,
        LocalJob(rows, bench.initial_adapter(), WORK, LocalRules(), round=1, rounds=1, seed_root=3, site="a"),
    )


@pytest.fixture(scope="module")
def benches(tiny_bert: Path, toys: Any) -> tuple[Workbench, LocalResult]:
    """A bench with dropout, and what another trains two rows at once; a round leaves no trace in either."""
    cut = toys.bench(
        tiny_bert, toys.classifier, dropout=0.1, machine=Machine(device="cpu", microbatch_size=2)
    )
    return toys.bench(tiny_bert, toys.classifier, dropout=0.1), trained(cut, toys.rows(11))


@pytest.mark.parametrize("late", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_full_device_trains_to_the_bits_of_smaller_microbatches(
    benches: tuple[Workbench, LocalResult],
    toys: Any,
    caplog: pytest.LogCaptureFixture,
    kind: type[Exception],
    late: bool,
) -> None:
    """Eight rows, then four, then two at once: what an attempt added is taken back, dropout's draws too."""
    small, expected = benches
    device = SmallDevice(small.task, 3, kind)
    device.late = late
    found = trained(replace(small, task=device, fit=Fit()), toys.rows(11))
    assert np.array_equal(found.adapter.vector, expected.adapter.vector)
    assert (found.steps, found.targets, found.loss_sum) == (
        expected.steps,
        expected.targets,
        expected.loss_sum,
    )
    assert device.sizes == [8, 4, *([2] * 4 * 3)]
    told = [record.getMessage() for record in caplog.records if "rows at once" in record.getMessage()]
    assert len(told) == 2
    assert "4 rows at once: 2 at once from now on, the batch stays 8" in told[1]


def test_an_error_in_a_later_piece_takes_the_earlier_ones_back(tiny_bert: Path, toys: Any) -> None:
    """Memory that gets tight in the middle of a batch."""
    rows = toys.rows(8)
    cut = toys.bench(tiny_bert, toys.classifier, machine=Machine(device="cpu", microbatch_size=2))
    expected = trained(cut, rows)
    wide = toys.bench(tiny_bert, toys.classifier, machine=Machine(device="cpu", microbatch_size=4))
    device = SmallDevice(wide.task, 4)
    real = device.example_losses

    def tight(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        losses = real(model, batch)
        device.most = 3
        return losses

    device.example_losses = tight  # type: ignore[method-assign]  # counts the calls
    assert np.array_equal(trained(replace(wide, task=device), rows).adapter.vector, expected.adapter.vector)
    assert device.sizes[:3] == [4, 4, 2]


def test_what_fits_is_remembered_from_batch_to_batch() -> None:
    """And no more is tried than the settings say."""
    fit = Fit()
    assert [fit.at_once(None), fit.at_once(5)] == [None, 5]
    fit.most = 3
    assert [fit.at_once(None), fit.at_once(5), fit.at_once(2)] == [3, 3, 2]


def test_one_row_that_does_not_fit_ends_the_round_by_name(tiny_bert: Path, toys: Any) -> None:
    """With a remedy; nothing is tried for ever."""
    bench = toys.bench(tiny_bert, toys.classifier)
    device = SmallDevice(bench.task, 0)
    with pytest.raises(TrainingError) as caught:
        trained(replace(bench, task=device), toys.rows(8))
    assert caught.value.code == "out_of_memory"
    assert "gradient_checkpointing" in str(caught.value)
    assert device.sizes == [8, 4, 2, 1]


def test_another_error_passes_at_once() -> None:
    """It is no matter of memory."""
    fit = Fit()

    def work(_: int | None) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        fitted(fit, None, 8, work, lambda: None)
    assert fit.most is None
