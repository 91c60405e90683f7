"""What a private step refuses, each by name and before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wardround.core.errors import BudgetError, ConfigError, InternalError, PolicyError, TrainingError
from wardround.training.private.clipping import Adaptive
from wardround.training.private.guards import AdapterStart, require_examples_apart


@pytest.fixture
def bench(opened: Any) -> Any:
    """A small classifier."""
    return opened("bert")


@pytest.fixture
def rows(toys: Any) -> list[Any]:
    """Four of them."""
    found: list[Any] = toys.rows(4)
    return found


def unwritten(bench: Any) -> bool:
    """No gradient lies anywhere."""
    return all(parameter.grad is None for parameter in bench.parameters().values())


def test_noise_from_a_seed_is_for_simulations(bench: Any, rows: Any, stepping: Any) -> None:
    """They say that they are not private."""
    with pytest.raises(PolicyError, match="noise"), stepping.open(bench, rows, simulation=False):
        pytest.fail("opened")
    assert not any("forward" in vars(module) for module in bench.model.modules())


def test_a_batch_from_a_seed_is_for_simulations(bench: Any, rows: Any, stepping: Any, seeded: Any) -> None:
    """Whoever knows the seed knows who was drawn: nothing is amplified."""
    secret = seeded(0, repeatable=False)
    with stepping.open(bench, rows, source=secret, simulation=False) as steps:
        with pytest.raises(PolicyError, match="batch"):
            steps.write(stepping.batch(range(4)))
        assert unwritten(bench)
        steps.write(dataclasses.replace(stepping.batch(range(4)), repeatable=False))
    assert not unwritten(bench)


@pytest.mark.parametrize(
    "batch", [[0, 1], np.array([0, 1]), None], ids=["list", "array of plan_batches", "none"]
)
def test_only_poisson_draws_are_taken(batch: Any, bench: Any, rows: Any, stepping: Any) -> None:
    """Shuffled epochs are none."""
    with stepping.open(bench, rows) as steps, pytest.raises(InternalError, match="Poisson"):
        steps.write(batch)
    assert unwritten(bench)


@pytest.mark.parametrize(("units", "rate"), [(4, 0.5), (5, 1.0), (3, 1.0)])
def test_a_draw_has_to_be_the_accounts(units: int, rate: float, bench: Any, rows: Any, stepping: Any) -> None:
    """Its rate, and its rows."""
    with stepping.open(bench, rows) as steps, pytest.raises(InternalError, match="another way"):
        steps.write(stepping.batch(range(units), rate))
    assert unwritten(bench)


def step(steps: Any, batch: Any, bench: Any, rate: float = 0.1) -> None:
    """A whole one."""
    optimiser = torch.optim.SGD(bench.parameters().values(), lr=rate)
    steps.write(batch)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    steps.stepped()


def test_a_batch_serves_one_step(bench: Any, rows: Any, stepping: Any) -> None:
    """The next one is drawn anew; an equal draw is another one."""
    with stepping.open(bench, rows) as steps:
        batch = stepping.batch(range(4))
        step(steps, batch, bench)
        with pytest.raises(InternalError, match="one step"):
            steps.write(batch)
        step(steps, stepping.batch(range(4)), bench)


def test_no_more_steps_than_were_reserved(bench: Any, rows: Any, stepping: Any) -> None:
    """Sums that are noised elsewhere count as well."""
    with stepping.open(bench, rows, steps=2) as steps:
        step(steps, stepping.batch(range(4)), bench)
        steps.clipped_sum(stepping.batch(range(4)))
        with pytest.raises(BudgetError, match="reserved"):
            steps.write(stepping.batch(range(4)))
    assert unwritten(bench)


def test_a_plain_gradient_stops_an_empty_batch_too(bench: Any, rows: Any, stepping: Any) -> None:
    """It would be stepped with."""
    parameter = next(iter(bench.parameters().values()))
    with stepping.open(bench, rows, rate=1e-9) as steps:
        parameter.grad = torch.zeros_like(parameter)
        with pytest.raises(InternalError, match="plain gradient"):
            steps.write(stepping.batch(range(4), 1e-9))


def test_a_step_is_closed_before_the_next(bench: Any, rows: Any, stepping: Any) -> None:
    """Or its gradient was thrown away, and its checks were not made."""
    with stepping.open(bench, rows) as steps:
        steps.write(stepping.batch(range(4)))
        stepping.written(bench)
        with pytest.raises(InternalError, match="not stepped"):
            steps.write(stepping.batch(range(4)))


def test_an_adapter_that_stands_still_is_noticed(bench: Any, rows: Any, stepping: Any) -> None:
    """An optimiser over other tensors than the model reads, say; later steps are not compared."""
    with stepping.open(bench, rows) as steps:
        with pytest.raises(TrainingError, match="the same") as caught:
            step(steps, stepping.batch(range(4)), bench, rate=0.0)
        assert caught.value.code == "nothing_moved"
        step(steps, stepping.batch(range(4)), bench)
        step(steps, stepping.batch(range(4)), bench, rate=0.0)


def test_one_entry_is_a_move() -> None:
    """The smallest there is."""
    layer = nn.Linear(3, 2)
    start = AdapterStart(dict(layer.named_parameters()))
    with torch.no_grad():
        layer.bias[0] += 1e-6
    start.require_moved()


def frozen_of(bench: Any) -> torch.Tensor:
    """A weight of the base."""
    found: torch.Tensor = next(p for p in bench.model.parameters() if not p.requires_grad)
    return found


def test_a_frozen_weight_that_moves_is_noticed_in_the_step(bench: Any, rows: Any, stepping: Any) -> None:
    """Before a gradient is written."""
    frozen = frozen_of(bench)
    bench.model.register_forward_pre_hook(lambda *_: setattr(frozen.mul_(1.0), "seen", True))
    with (
        pytest.raises(InternalError, match="outside the adapter"),
        stepping.open(bench, rows) as steps,
    ):
        steps.write(stepping.batch(range(4)))
    assert unwritten(bench)


def test_a_write_that_is_not_counted_is_noticed_at_the_end(bench: Any, rows: Any, stepping: Any) -> None:
    """By its bits; not where the round has failed already."""

    def spoiled(factor: int) -> None:
        with stepping.open(bench, rows) as steps:
            step(steps, stepping.batch(range(4)), bench)
            frozen_of(bench).data[0, 0] += 1 // factor

    with pytest.raises(InternalError, match="outside the adapter"):
        spoiled(1)
    with pytest.raises(ZeroDivisionError):
        spoiled(0)


def test_packed_rows_are_refused(bench: Any, rows: Any, stepping: Any) -> None:
    """Several units would share a gradient."""
    positions = np.array([0, 1, 0, 1, 2], np.int32)
    packed = dataclasses.replace(rows[0], tokens=rows[0].tokens[:5], positions=positions)
    assert packed.rows == 2
    with pytest.raises(ConfigError, match="packed") as caught, stepping.open(bench, [*rows, packed]):
        pytest.fail("opened")
    assert "data.packing=false" in str(caught.value.remedy)


@pytest.mark.parametrize("expected", [0.0, -1.0, float("nan"), float("inf")])
def test_the_expected_batch_is_a_number(expected: float, bench: Any, rows: Any, stepping: Any) -> None:
    """It divides every sum."""
    with pytest.raises(ConfigError, match="expected batch"), stepping.open(bench, rows, expected=expected):
        pytest.fail("opened")


def test_a_count_that_costs_too_much_is_refused_at_once(bench: Any, rows: Any, stepping: Any) -> None:
    """Not in the first step."""
    rule = Adaptive(1.0, expected=4, count_sigma=0.4)
    with pytest.raises(ConfigError, match="costs more"), stepping.open(bench, rows, rule, sigma=1.0):
        pytest.fail("opened")


def test_a_task_with_several_lines_an_example_is_refused(
    bench: Any, rows: Any, stepping: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which line is whose is not known here."""
    plain: Callable[..., Any] = bench.task.collate
    monkeypatch.setattr(type(bench.task), "collate", lambda _, some, data: plain([*some, *some], data))
    with stepping.open(bench, rows) as steps, pytest.raises(ConfigError, match="toy_classifier"):
        steps.write(stepping.batch(range(4)))
    assert unwritten(bench)


def test_normalisation_over_the_batch_is_refused(bench: Any, rows: Any, stepping: Any) -> None:
    """Frozen or not; with fixed statistics it reads one example at a time."""
    bench.model.norm = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    with pytest.raises(ConfigError, match="norm"), stepping.open(bench, rows):
        pytest.fail("opened")
    fixed = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    require_examples_apart(fixed)
