"""Laws of small cells: multiples alone leave, near the truth, the same each time, and right on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wardround.core.cells import EXACT, Cells
from wardround.core.metrics import METRICS
from wardround.core.metrics.classification import count_rows
from wardround.core.packed import Array, Packed

TABLES = arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 40))


@st.composite
def cells(draw: st.DrawFn) -> Cells:
    """Of any site."""
    smallest = draw(st.integers(1, 20))
    return Cells(smallest, draw(st.integers(0, smallest - 1)))


def counted(rows: int, seed: int, classes: int = 3) -> dict[str, Array]:
    """Counters of a classifier on so many rows."""
    random = np.random.default_rng(seed)
    chances = random.dirichlet(np.ones(classes), rows)
    labels = random.integers(classes, size=rows)
    return count_rows(chances, labels, -np.log(chances[np.arange(rows), labels] + 1e-9))


def packed(counters: dict[str, Array], labels: tuple[str, ...]) -> Packed:
    """The same in the family's layout."""
    layout = METRICS.get("classification").layout(labels, {})
    found = Packed(layout, np.zeros(layout.size, np.int64))
    for name, array in counters.items():
        found[name][...] = array
    return found


@given(cells(), TABLES)
def test_a_table_leaves_as_multiples_each_run_of_cells_close_to_the_truth(cells: Cells, table: Array) -> None:
    """Of any neighbouring cells, so of their complement as well; below one cell nothing is left."""
    found = cells.table(table)
    assert not (found % cells.smallest).any()
    assert (found >= 0).all()
    assert found.sum() == cells.rows(int(table.sum()))
    if table.sum() < cells.smallest:
        assert not found.any()
        return
    truth, left = np.cumsum(table), np.cumsum(found)
    gaps = np.concatenate([[0], left - truth])
    assert gaps.max() - gaps.min() <= cells.smallest
    assert (np.abs(found - table) < cells.smallest).all()


@given(st.integers(2, 20), TABLES)
def test_over_all_secrets_a_table_leaves_as_it_is(smallest: int, table: Array) -> None:
    """Each count on average: many sites' sums are right."""
    if table.sum() < smallest:
        return
    total = sum(Cells(smallest, offset).table(table) for offset in range(smallest))
    assert (total == smallest * table).all()


@given(cells(), arrays(np.int64, 64, elements=st.integers(0, 5)))
def test_positions_leave_in_groups(cells: Cells, histogram: Array) -> None:
    """No bin tells of fewer rows than the smallest cell; order and range are kept."""
    found = cells.grouped(histogram)
    rows = int(histogram.sum())
    assert found.sum() == rows // cells.smallest * cells.smallest
    assert not (found % cells.smallest).any()
    if found.any():
        inside = np.flatnonzero(histogram)
        where = np.flatnonzero(found)
        assert inside[0] <= where[0] <= where[-1] <= inside[-1]


def test_a_group_lies_at_the_mean_of_its_rows() -> None:
    """By hand: 0 0 3 | 5 9 9 9, groups of three at least."""
    histogram = np.array([2, 0, 0, 1, 0, 1, 0, 0, 0, 3])
    assert Cells(3, 0).grouped(histogram).tolist() == [0, 3, 0, 0, 0, 0, 0, 0, 3, 0]


@given(cells(), st.integers(0, 10_000), st.integers(0, 10**9))
def test_a_mean_is_kept(cells: Cells, rows: int, total: int) -> None:
    """To the last unit of its counter."""
    found = cells.scaled(total, rows)
    if cells.rows(rows):
        assert found / cells.rows(rows) == pytest.approx(total / rows, abs=1.0)
    else:
        assert found == 0


@given(cells(), st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_a_classifiers_counters_are_multiples_and_agree(cells: Cells, rows: int, seed: int) -> None:
    """Each count of rows; what is right is no more than there is, and every total is the number of rows."""
    labels = ("a", "b", "c")
    family = METRICS.get("classification")
    counters = packed(counted(rows, seed), labels)
    found = family.coarse(counters, cells, rows)
    for name in ("examples", "confusion", "score_positives", "score_negatives"):
        assert not (found[name] % cells.smallest).any(), name
    count, right, _ = found["calibration"]
    assert not (found["calibration"][:2] % cells.smallest).any()
    assert (right <= count).all()
    assert found["examples"] == found["confusion"].sum() == count.sum() == cells.rows(rows)
    scores = family.compute(found, labels, {}).values
    assert all(np.isfinite(value) for value in scores.values())
    assert 0 <= scores.get("accuracy", 0) <= 1
    assert 0 <= scores.get("ece", 0) <= 1


@given(st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_a_simulations_counters_stay_exact(rows: int, seed: int) -> None:
    """The smallest cell of one row changes nothing, to the last unit."""
    counters = packed(counted(rows, seed), ("a", "b", "c"))
    found = METRICS.get("classification").coarse(counters, EXACT, rows)
    assert (found.vector == counters.vector).all()


@given(st.integers(5, 60), st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_a_new_patient_changes_no_count_by_less_than_a_cell(rows: int, seed: int, offset: int) -> None:
    """The difference of two releases, before and after one more row, is no count below the threshold."""
    cells, family = Cells(5, offset), METRICS.get("classification")
    random = np.random.default_rng(seed)
    chances, labels = random.dirichlet(np.ones(3), rows), random.integers(3, size=rows)
    losses = np.ones(rows)
    before, after = (
        family.coarse(packed(count_rows(chances[:n], labels[:n], losses[:n]), ("a", "b", "c")), cells, n)
        for n in (rows - 1, rows)
    )
    for name in ("examples", "confusion", "score_positives", "score_negatives"):
        change = np.abs(after[name] - before[name])
        assert not (change % 5).any(), name


@given(cells(), st.integers(1, 500), st.integers(0, 500))
def test_a_language_models_counters_keep_their_means(cells: Cells, rows: int, exact: int) -> None:
    """Loss and tokens as they were a row; answers are counts of rows."""
    family, options, exact = METRICS.get("language"), {"generate": 8}, min(exact, rows)
    layout = family.layout((), options)
    counters = Packed(layout, np.zeros(layout.size, np.int64))
    values = {
        "loss": 12_345_678 * rows, "tokens": 40 * rows, "bytes": 170 * rows, "correct_tokens": 13 * rows,
        "answers": rows, "exact_answers": exact, "rouge_l": 7_000 * rows,
    }  # fmt: skip
    for name, value in values.items():
        counters[name][...] = value
    found = family.coarse(counters, cells, rows)
    left = cells.rows(rows)
    assert int(found["answers"]) == left
    assert int(found["exact_answers"]) % cells.smallest == 0
    assert int(found["exact_answers"]) <= left
    assert int(found["tokens"]) == 40 * left
    if left:
        before, after = (family.compute(of, (), options).values for of in (counters, found))
        for name in ("loss", "token_accuracy", "bits_per_byte", "rouge_l"):
            assert after[name] == pytest.approx(before[name], rel=1e-6), name
