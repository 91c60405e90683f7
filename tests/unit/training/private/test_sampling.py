"""Poisson samples: every unit apart, with the probability that the account charges.

Seeds are fixed; the bounds would raise a false alarm once in 10⁶ fresh seeds.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import stats

from wardround.core.errors import ConfigError, InternalError
from wardround.training.private.sampling import PoissonSampler, bounded_rows

RARE = 1e-6


class Scripted:
    """Gives what it was told to."""

    repeatable = False

    def __init__(self, *words: int) -> None:
        self.left = list(words)

    def words(self, count: int) -> np.ndarray:
        """The next so many."""
        given, self.left = self.left[:count], self.left[count:]
        return np.array(given, np.uint64)


def inclusions(units: int, rate: float, draws: int, source: Any) -> np.ndarray:
    """0 or 1, (draws, units)."""
    sampler = PoissonSampler(range(units), rate, source)
    table = np.zeros((draws, units))
    for row in table:
        row[list(sampler.draw().units)] = 1
    return table


def plausible(statistic: float, degrees: int) -> bool:
    """Neither too far off nor too good."""
    low, high = stats.chi2.ppf([RARE / 2, 1 - RARE / 2], degrees)
    return bool(low < statistic < high)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.0123])
def test_every_unit_is_taken_with_the_rate(rate: float, seeded: Any) -> None:
    """Chi-square over the units, and over the sizes of the batches, empty ones among them."""
    units, draws = 100, 2000
    table = inclusions(units, rate, draws, seeded(1))
    spread = rate * (1 - rate)
    assert plausible((((table.sum(0) - draws * rate) ** 2) / (draws * spread)).sum(), units)
    assert plausible((((table.sum(1) - units * rate) ** 2) / (units * spread)).sum(), draws)
    empty = int((table.sum(1) == 0).sum())
    assert stats.binomtest(empty, draws, (1 - rate) ** units).pvalue > RARE


def test_units_are_taken_apart_from_each_other_and_from_other_steps(seeded: Any) -> None:
    """Correlations of all pairs, and of each unit with itself a step later."""
    units, draws, rate = 40, 3000, 0.2
    table = (inclusions(units, rate, draws, seeded(2)) - rate) / math.sqrt(rate * (1 - rate))
    pairs = (table.T @ table)[np.triu_indices(units, 1)]
    assert plausible((pairs**2).sum() / draws, len(pairs))
    later = (table[1:] * table[:-1]).sum(0)
    assert plausible((later**2).sum() / (draws - 1), units)


@pytest.mark.parametrize("rate", [0.5, 0.1, 1 / 3, 1e-5, 1 - 2**-53])
def test_the_edge_is_where_the_rate_says(rate: float) -> None:
    """Integers below q · 2⁶⁴ and no others, however q rounds in floats."""
    below = math.floor(Fraction(rate) * 2**64)
    sampler = PoissonSampler("abcd", rate, Scripted(below - 1, below, 0, 2**64 - 1))
    assert sampler.draw().units == (0, 2)


def test_a_rate_of_one_takes_everybody() -> None:
    """Also on the largest word there is."""
    assert PoissonSampler("ab", 1.0, Scripted(2**64 - 1, 0)).draw().units == (0, 1)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_rate_that_is_no_probability_is_refused(rate: float, seeded: Any) -> None:
    """Before anything is drawn."""
    with pytest.raises(ConfigError, match="no probability"):
        PoissonSampler("ab", rate, seeded(0))


def test_rows_of_a_unit_stand_side_by_side() -> None:
    """Wherever they lie in the data; units that were not drawn bring none."""
    batch = PoissonSampler("abcab", 0.5, Scripted(0, 2**63, 0)).draw()
    assert batch.indices == (0, 3, 2)
    assert batch.units == (0, 0, 2)
    assert (batch.rate, batch.population, batch.repeatable) == (0.5, 5, False)


def test_who_was_drawn_is_in_no_message() -> None:
    """A batch prints without its rows."""
    batch = PoissonSampler("ab", 1.0, Scripted(0, 0)).draw()
    assert "indices" not in repr(batch)


def test_nobody_is_drawn_from_nobody(seeded: Any) -> None:
    """A site whose rows are all gone still draws: nothing."""
    assert PoissonSampler([], 0.3, seeded(0)).draw().indices == ()


def test_a_source_that_falls_short_is_refused() -> None:
    """Numpy would stretch one word over all units."""
    with pytest.raises(InternalError, match="something else"):
        PoissonSampler("abc", 0.5, Scripted(0)).draw()


def test_a_large_unit_brings_some_of_its_rows_and_all_in_time(seeded: Any) -> None:
    """At most K, every row alike (chi-square), anew at each draw; small units are whole."""
    units, most, draws = ["a"] * 7 + ["b"] * 2 + ["c"] * 3, 3, 3000
    sampler = PoissonSampler(units, 1.0, seeded(3), most)
    counts = np.zeros(len(units))
    for _ in range(draws):
        rows = list(sampler.draw().indices)
        assert rows == sorted(set(rows))
        assert sum(row < 7 for row in rows) == most
        counts[rows] += 1
    assert (counts[7:] == draws).all()
    share = most / 7
    # Drawing without replacement: 7 counts with one constraint.
    statistic = ((counts[:7] - draws * share) ** 2).sum() / (draws * share * (1 - share)) * 6 / 7
    assert plausible(statistic, 6)


def test_the_rows_of_one_unit_are_chosen_whoever_else_is_there() -> None:
    """Words that choose a unit's rows choose no other unit's."""
    words = [9, 2, 5, 1]
    alone = PoissonSampler("aaaa", 1.0, Scripted(0, *words), 2).draw()
    after = PoissonSampler("bbaaaa", 1.0, Scripted(0, 0, *words), 2).draw()
    assert [row + 2 for row in alone.indices] == list(after.indices[2:]) == [3, 5]


@pytest.mark.parametrize("most", [0, -1])
def test_a_bound_that_leaves_no_row_is_refused(most: int, seeded: Any) -> None:
    """In both places."""
    with pytest.raises(ConfigError, match="leaves none"):
        PoissonSampler("ab", 0.5, seeded(0), most)
    with pytest.raises(ConfigError, match="leaves none"):
        bounded_rows("ab", most, seed=1)


def test_rows_bounded_for_a_run_are_bounded_for_good() -> None:
    """At most K a unit, equal for equal seeds, whoever else is there."""
    units = ["a"] * 6 + ["b"] + ["c"] * 4 + ["a"] * 2
    rows = bounded_rows(units, 3, seed=5)
    assert rows == sorted(rows) == bounded_rows(units, 3, seed=5)
    assert {unit: sum(units[row] == unit for row in rows) for unit in "abc"} == {"a": 3, "b": 1, "c": 3}
    left = [row for row, unit in enumerate(units) if unit != "c"]
    again = bounded_rows([units[row] for row in left], 3, seed=5)
    assert [left[row] for row in again] == [row for row in rows if units[row] != "c"]


def test_a_run_s_seed_favours_no_row() -> None:
    """Chi-square over seeds; and units do not choose alike."""
    counts, equal = np.zeros(5), 0
    for seed in range(2000):
        rows = bounded_rows("aaaaabbbbb", 2, seed=seed)
        first, second = [row for row in rows if row < 5], [row - 5 for row in rows if row >= 5]
        counts[first] += 1
        equal += first == second
    assert plausible(((counts - 800) ** 2).sum() / (2000 * 0.4 * 0.6) * 4 / 5, 4)
    assert stats.binomtest(equal, 2000, 0.1).pvalue > RARE
