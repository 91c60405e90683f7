"""Units: pieces that keep them together, one clipped sum, guards on what goes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from wardround.core.errors import ConfigError, InternalError
from wardround.training.private.clipping import Flat
from wardround.training.private.per_example import record_gradients
from wardround.training.private.units import ClippedSum, ClippedUnits, unit_pieces

CPU = torch.device("cpu")


def clipped(gradients: torch.Tensor, units: list[Any], bound: float, size: int | None = None) -> ClippedUnits:
    """The clipped sum of a batch that comes in pieces."""
    total = ClippedSum(gradients.shape[1], Flat(bound), CPU)
    for piece in unit_pieces(units, [1] * len(units), size):
        total.add(gradients[list(piece.examples)].clone(), piece.units)
    return total.close()


def test_a_units_sum_is_clipped_once() -> None:
    """Two examples of one patient do not count twice; a short unit is left as it is."""
    gradients = torch.tensor([[3.0, 4.0], [0.0, 0.5], [3.0, 4.0]])
    found = clipped(gradients, ["p", "q", "p"], 2.0)
    assert torch.allclose(found.total, torch.tensor([1.2, 2.1], dtype=torch.float64), rtol=1e-5)
    assert (found.units, found.clipped, found.dropped) == (2, 1, 0)
    assert sorted(found.norms.tolist()) == pytest.approx([0.5, 10.0])


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_unit_that_is_not_finite_contributes_nothing(bad: float) -> None:
    """All of it, also its finite examples; it is counted."""
    gradients = torch.tensor([[1.0, 0.0], [bad, 0.0], [0.0, 1.0]])
    found = clipped(gradients, ["p", "p", "q"], 5.0)
    assert found.total.tolist() == [0.0, 1.0]
    assert (found.units, found.dropped, found.clipped) == (2, 1, 0)


def test_huge_gradients_are_clipped_and_not_dropped() -> None:
    """Their squares overflow float32."""
    found = clipped(torch.tensor([[3e30, 4e30], [0.0, 0.0]]), ["p", "q"], 1.0)
    assert float(found.total.norm()) == pytest.approx(1.0, rel=1e-5)
    assert found.dropped == 0


def test_the_bound_holds_for_millions_of_values() -> None:
    """A norm summed in float32 misses it."""
    row = torch.full((1, 3_000_000), 0.1)
    for bound in (1.0, 0.3):
        norm = float(clipped(row, ["p"], bound).total.norm())
        assert bound * (1 - 1e-5) < norm <= bound


def test_an_empty_batch_sums_to_zero() -> None:
    """Noise alone leaves the site then."""
    found = clipped(torch.zeros(0, 3), [], 1.0)
    assert found.total.tolist() == [0.0] * 3
    assert found.units == 0
    assert unit_pieces([], [], 4) == []


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    """Before anything is summed."""
    with pytest.raises(ConfigError, match="no bound"):
        ClippedSum(3, Flat(bound), CPU)


@pytest.mark.parametrize(
    ("first", "second"), [([0, 1], [0]), ([0, 1, 0], []), ([0, 1], [1, 2, 1]), ([0, 1], [2, 0])]
)
def test_a_unit_in_two_places_is_refused(first: list[int], second: list[int]) -> None:
    """It would be clipped twice; the message does not name it."""
    total = ClippedSum(2, Flat(1.0), CPU)

    def add_both() -> None:
        for units in (first, second):
            total.add(torch.ones(len(units), 2), units)

    with pytest.raises(InternalError, match="two places"):
        add_both()


def test_gradients_have_to_fit_their_units() -> None:
    """One row a line, all columns."""
    total = ClippedSum(2, Flat(1.0), CPU)
    for gradients in (torch.ones(2, 2), torch.ones(1, 3)):
        with pytest.raises(InternalError, match="fit"):
            total.add(gradients, [0])
    total.add(torch.ones(0, 2), [])
    assert total.close().units == 0


def test_pieces_keep_units_together_and_begin_with_the_longest() -> None:
    """Rows of a unit stand side by side; one that is too large runs on."""
    units = ["a", "b", "a", "c", "b", "b", "b", "b"]
    pieces = unit_pieces(units, [3, 9, 5, 7, 1, 1, 1, 1], 3)
    assert [piece.examples for piece in pieces] == [(1, 4, 5), (6, 7, 3), (2, 0)]
    assert [piece.units for piece in pieces] == [(0, 0, 0), (0, 0, 1), (2, 2)]
    assert len(unit_pieces(units, [1] * 8, None)) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, None])
def test_microbatches_of_a_model_change_nothing(
    size: int | None, tiny_bert: Path, toys: Any, rows_of_gradients: Any
) -> None:
    """The same clipped sum as from one example at a time, patients of many rows and of one."""
    bench = rows_of_gradients.stirred(toys.bench(tiny_bert, toys.classifier, base_dropout="off"))
    for module in bench.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows, units = toys.rows(9), [4, 2, 4, 1, 4, 4, 2, 0, 4]
    alone = rows_of_gradients.slow(bench, rows).double()
    sums = [alone[[i for i, u in enumerate(units) if u == unit]].sum(0) for unit in sorted(set(units))]
    bound = float(torch.stack(sums).norm(dim=1).median())
    expected = sum(s * min(1.0, bound / float(s.norm())) for s in sums)
    with record_gradients(bench.model, bench.parameters()) as gradients:
        total = ClippedSum(gradients.size, Flat(bound), bench.device)
        for piece in unit_pieces(units, [row.length for row in rows], size):
            some = [rows[index] for index in piece.examples]
            found = gradients.of(lambda some=some: rows_of_gradients.losses(bench, some), len(some))[0]
            total.add(found, piece.units)
        result = total.close()
    assert result.units == 4
    assert 1 <= result.clipped < 4
    assert float((result.total - expected).norm() / expected.norm()) < 1e-5
