"""Laws of the classification counters: they add up over any split, and the figures mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from wardround.core.metrics import METRICS
from wardround.core.metrics.classification import auroc, count_rows
from wardround.core.packed import zeros

FAMILY = METRICS.get("classification")
Rows = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


@st.composite
def scored_rows(draw: st.DrawFn) -> Rows:
    """Probabilities, labels and losses of up to 40 rows over two to five classes."""
    rows, classes = draw(st.integers(0, 40)), draw(st.integers(2, 5))
    logits = draw(hnp.arrays(np.float64, (rows, classes), elements=st.floats(-40, 40)))
    labels = draw(hnp.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(log_probabilities), labels, -log_probabilities[np.arange(rows), labels]


def figures(rows: Rows) -> dict[str, float]:
    """What the family computes from the rows' counters."""
    names = tuple(str(index) for index in range(rows[0].shape[1]))
    counters = zeros(FAMILY.layout(names, {}), np.int64)
    for name, array in count_rows(*rows).items():
        counters[name][...] = array
    return FAMILY.compute(counters, names, {}).values


@given(rows=scored_rows(), data=st.data())
def test_counters_of_a_split_sum_to_those_of_the_whole(rows: Rows, data: st.DataObject) -> None:
    """However the rows lie at the sites, the sum of the sites' counters is that of all rows, bit for bit."""
    total = len(rows[1])
    home = np.array(data.draw(st.lists(st.integers(0, 3), min_size=total, max_size=total)), dtype=np.int64)
    whole = count_rows(*rows)
    parts = [count_rows(*(array[home == site] for array in rows)) for site in range(4)]
    for name, array in whole.items():
        np.testing.assert_array_equal(sum(part[name] for part in parts), array)


@given(rows=scored_rows())
def test_every_counter_accounts_for_every_row(rows: Rows) -> None:
    """The matrix, the bins and each class's two histograms hold each row once."""
    counted = count_rows(*rows)
    total = len(rows[1])
    assert counted["examples"] == counted["confusion"].sum() == counted["calibration"][0].sum() == total
    both = counted["score_positives"] + counted["score_negatives"]
    assert (both.sum(axis=1) == total).all()
    np.testing.assert_array_equal(counted["score_positives"].sum(axis=1), counted["confusion"].sum(axis=1))


@given(rows=scored_rows())
def test_figures_stay_in_their_ranges(rows: Rows) -> None:
    """Shares are between 0 and 1, the loss is not negative, nothing is NaN."""
    values = figures(rows)
    assert bool(values) == bool(len(rows[1]))
    loss = values.pop("loss", 0.0)
    assert 0 <= loss < np.inf
    assert all(0 <= value <= 1 for value in values.values())


histograms = hnp.arrays(np.int64, 16, elements=st.integers(0, 1000))


@given(positives=histograms, negatives=histograms)
def test_auroc_of_exchanged_classes_is_the_rest_to_one(
    positives: NDArray[np.int64], negatives: NDArray[np.int64]
) -> None:
    """What outscores and what is outscored share all pairs; so do scores read backwards."""
    area = auroc(positives, negatives)
    exchanged = auroc(negatives, positives)
    backwards = auroc(positives[::-1], negatives[::-1])
    if area is None:
        assert exchanged is None
        assert backwards is None
    else:
        assert exchanged == pytest.approx(1 - area, abs=1e-12)
        assert backwards == pytest.approx(1 - area, abs=1e-12)


@given(scores=hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-8, 8, width=16)), data=st.data())
def test_auroc_is_off_by_half_of_the_pairs_that_share_a_bin_at_most(
    scores: NDArray[np.float64], data: st.DataObject
) -> None:
    """Against the area by comparing every pair of scores, however the scores are crowded."""
    chosen = data.draw(st.lists(st.booleans(), min_size=scores.size, max_size=scores.size))
    truth = np.array(chosen)
    if truth.all() or not truth.any():
        return
    second = 1 / (1 + np.exp(-scores))
    counted = count_rows(
        np.stack([1 - second, second], axis=1), truth.astype(np.int64), np.zeros(scores.size)
    )
    positives, negatives = counted["score_positives"][1], counted["score_negatives"][1]
    area = auroc(positives, negatives)
    gaps = second[truth][:, None] - second[~truth][None, :]
    exact = float(((gaps > 0) + 0.5 * (gaps == 0)).mean())
    assert area is not None
    assert abs(area - exact) <= 0.5 * float((positives * negatives).sum()) / gaps.size + 1e-12
