"""Which rows make which batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wardround.core.plan import LocalWork
from wardround.training.batches import microbatches, plan_batches


def rng(seed: int = 3) -> np.random.Generator:
    """A generator of known state."""
    return np.random.Generator(np.random.PCG64(seed))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4))
def test_whole_epochs_visit_every_row_equally_often(n: int, size: int, epochs: int) -> None:
    """Each pass holds every row once, in batches of the size, the last one short."""
    batches = plan_batches(n, LocalWork(epochs=epochs, batch_size=size), rng())
    passes = -(-n // min(size, n))
    assert len(batches) == passes * epochs
    for start in range(0, len(batches), passes):
        assert sorted(np.concatenate(batches[start : start + passes]).tolist()) == list(range(n))


@given(st.integers(1, 60), st.integers(1, 20), st.floats(0.01, 3))
def test_fractional_epochs_take_their_share_of_rows(n: int, size: int, epochs: float) -> None:
    """Rows in all are epochs · n rounded, at least one, and no row is ahead of another by two."""
    batches = plan_batches(n, LocalWork(epochs=epochs, batch_size=size), rng())
    rows = np.concatenate(batches)
    assert len(rows) == max(1, int(epochs * n + 0.5))
    counts = np.bincount(rows, minlength=n)
    assert counts.max() - counts.min() <= 1
    assert all(0 < len(batch) <= size for batch in batches)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 30))
def test_steps_give_that_many_full_batches(n: int, size: int, steps: int) -> None:
    """A batch may reach into the next pass; rows are still visited equally often."""
    batches = plan_batches(n, LocalWork(steps=steps, batch_size=size), rng())
    assert [len(batch) for batch in batches] == [min(size, n)] * steps
    counts = np.bincount(np.concatenate(batches), minlength=n)
    assert counts.max() - counts.min() <= 1


def test_passes_are_shuffled_anew_and_equal_seeds_give_equal_batches() -> None:
    """Two passes differ in order; two calls with one seed do not; another seed does."""
    work = LocalWork(epochs=2, batch_size=50)
    first, second = plan_batches(50, work, rng())
    assert first.tolist() != second.tolist()
    assert first.tolist() == plan_batches(50, work, rng())[0].tolist()
    assert first.tolist() != plan_batches(50, work, rng(4))[0].tolist()


def test_no_rows_give_no_batches() -> None:
    """Nothing to shuffle, nothing to do."""
    assert plan_batches(0, LocalWork(epochs=1), rng()) == []


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 10))
def test_microbatches_hold_exactly_the_batch_longest_rows_first(lengths: list[int], size: int) -> None:
    """Nothing is lost or doubled, pieces fit the machine, lengths fall."""
    rows = [SimpleNamespace(length=length) for length in lengths]
    batch = rng().permutation(len(rows))
    pieces = microbatches(batch, rows, size)
    joined = np.concatenate(pieces)
    assert sorted(joined.tolist()) == sorted(batch.tolist())
    assert all(len(piece) <= size for piece in pieces)
    if len(batch) > size:
        in_order = [lengths[index] for index in joined]
        assert in_order == sorted(in_order, reverse=True)


def test_a_batch_that_fits_is_left_as_it_is() -> None:
    """Without a limit the planned order stands."""
    rows = [SimpleNamespace(length=length) for length in (1, 9, 4)]
    batch = np.array([2, 0, 1])
    assert microbatches(batch, rows, None)[0] is batch
    assert microbatches(batch, rows, 3)[0] is batch
