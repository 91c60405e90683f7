"""Laws of every partition that draws: a partition indeed, units whole, reproducible, skewed as asked."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import DataError
from wardround.simulations.partitions import PARTITIONS
from wardround.training.examples import Example, split_validation

DRAWN = ("iid", "dirichlet", "quantity")


@st.composite
def tables(draw: st.DrawFn) -> list[Example]:
    """Rows of units of uneven size, with labels that may be one-sided."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=25))
    classes = draw(st.integers(1, 4))
    labels = draw(st.randoms(use_true_random=False))
    rows = [f"p{unit}" for unit, size in enumerate(sizes) for _ in range(size)]
    labels.shuffle(rows)
    return [
        Example(number, {}, label=labels.randrange(classes), id=str(number), unit=unit)
        for number, unit in enumerate(rows)
    ]


def split(name: str, examples: list[Example], seed: int = 0, **options: Any) -> dict[str, list[int]]:
    """Sites of a partition."""
    partition = PARTITIONS.get(name)
    return partition.split(examples, partition.Options(**options), seed=seed)


@pytest.mark.parametrize("by", ["unit", "row"])
@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=60, deadline=None)
@given(examples=tables(), sites=st.integers(1, 6), least=st.integers(1, 3), seed=st.integers(0, 1000))
def test_the_partition_law(
    name: str, by: str, examples: list[Example], sites: int, least: int, seed: int
) -> None:
    """Every row in exactly one of the asked sites, none too small, whole units, reproducible."""
    options = {"sites": sites, "by": by, "least_rows": least, "alpha": 5.0}
    if name == "iid":
        del options["alpha"]
    try:
        found = split(name, examples, seed, **options)
    except DataError:
        # Refused is what cannot be, or what chance did not give: never an easy case.
        units = len({example.unit for example in examples}) if by == "unit" else len(examples)
        assert units < sites or len(examples) < 30 * sites
        return
    assert sorted(index for rows in found.values() for index in rows) == list(range(len(examples)))
    assert list(found) == sorted(found)
    assert len(found) == sites
    assert all(rows == sorted(rows) and len(rows) >= least for rows in found.values())
    if by == "unit":
        homes = {(examples[index].unit, site) for site, rows in found.items() for index in rows}
        assert len(homes) == len({example.unit for example in examples})
    assert split(name, examples, seed, **options) == found


@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=25, deadline=None)
@given(examples=tables(), order=st.randoms(use_true_random=False))
def test_the_order_of_rows_is_nothing(name: str, examples: list[Example], order: Any) -> None:
    """By unit, a shuffled source gives every unit the same site."""

    def homes(rows: list[Example]) -> dict[str, str]:
        found = split(name, rows, sites=1 if len({row.unit for row in rows}) < 4 else 2, by="unit")
        return {rows[index].unit: site for site, indices in found.items() for index in indices}

    shuffled = list(examples)
    order.shuffle(shuffled)
    assert homes(shuffled) == homes(examples)


def rows_of(count: int, classes: int) -> list[Example]:
    """As many rows of each class, each its own unit."""
    return [Example(i, {}, label=i % classes, id=str(i), unit=f"p{i:05d}") for i in range(count)]


def label_skew(examples: list[Example], sites: dict[str, list[int]], classes: int) -> float:
    """Mean total variation distance of the sites' label shares from the overall ones."""
    distances = []
    for rows in sites.values():
        counts = Counter(examples[index].label for index in rows)
        shares = np.array([counts[label] for label in range(classes)]) / len(rows)
        distances.append(0.5 * np.abs(shares - 1 / classes).sum())
    return float(np.mean(distances))


def test_label_skew_falls_with_alpha() -> None:
    """Each step of alpha is a clear step of skew, from one class a site to nearly equal shares."""
    examples = rows_of(2000, 5)
    skews = [
        np.mean(
            [
                label_skew(examples, split("dirichlet", examples, seed, sites=10, alpha=alpha), 5)
                for seed in range(5)
            ]
        )
        for alpha in (0.05, 0.5, 5.0, 500.0)
    ]
    assert skews[0] > 0.6 > skews[1] > 0.3 > skews[2] > 0.08 > skews[3]


def test_sizes_are_skewed_and_labels_are_not() -> None:
    """Quantity: the largest site outgrows the smallest by far; a small alpha more than a large one."""
    examples = rows_of(4000, 2)
    ratios = {}
    for alpha in (0.3, 3.0, 3000.0):
        found = split("quantity", examples, 1, sites=8, alpha=alpha, least_rows=20)
        sizes = sorted(map(len, found.values()))
        ratios[alpha] = sizes[-1] / sizes[0]
        large = {site: rows for site, rows in found.items() if len(rows) > 200}
        assert label_skew(examples, large, 2) < 0.1
    assert ratios[0.3] > 10 > ratios[3.0] > 2
    assert ratios[3000.0] < 1.2


def test_equal_shares_are_equal() -> None:
    """IID: sizes differ by one row, labels by chance."""
    examples = rows_of(2003, 4)
    found = split("iid", examples, sites=10)
    assert {len(rows) for rows in found.values()} == {200, 201}
    assert label_skew(examples, found, 4) < 0.08


def test_seeds_give_other_partitions() -> None:
    """Of every kind."""
    examples = rows_of(60, 3)
    for name in DRAWN:
        assert len({str(split(name, examples, seed, sites=3)) for seed in range(5)}) == 5


@settings(max_examples=100, deadline=None)
@given(
    examples=tables(),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
def test_the_validation_part_holds_whole_units(
    examples: list[Example], fraction: float, seed: int, order: Any
) -> None:
    """Both parts cover the rows once, share no unit, and are the same units whatever the order of rows."""
    training, validation = split_validation(examples, fraction, seed, "a", apart=False)
    assert sorted(training + validation) == list(range(len(examples)))
    kept, held = ({examples[index].unit for index in part} for part in (training, validation))
    assert kept
    assert not kept & held
    units = len(kept) + len(held)
    assert abs(len(held) - fraction * units) <= 0.5 + 1e-9 or len(held) == units - 1
    shuffled = list(examples)
    order.shuffle(shuffled)
    again = split_validation(shuffled, fraction, seed, "a", apart=False)[1]
    assert {shuffled[index].unit for index in again} == held


def test_no_rows_have_no_parts() -> None:
    """An empty site."""
    assert split_validation([], 0.5, 0, "a", apart=False) == ([], [])
    assert split_validation([], 0.5, 0, "a", apart=True) == ([], [])


@settings(max_examples=100, deadline=None)
@given(
    examples=tables(),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 99),
    taken=st.integers(0, 1000),
    order=st.randoms(use_true_random=False),
)
def test_who_leaves_moves_nobody_else_where_units_stand_apart(
    examples: list[Example], fraction: float, seed: int, taken: int, order: Any
) -> None:
    """One patient fewer: every other one stays where it was, in whatever order the rows come."""

    def parts(rows: list[Example]) -> list[set[str]]:
        split_rows = split_validation(rows, fraction, seed, "a", apart=True)
        assert sorted(chain(*split_rows)) == list(range(len(rows)))
        return [{rows[index].unit for index in part} for part in split_rows]

    units = sorted({example.unit for example in examples})
    gone = units[taken % len(units)]
    fewer = [example for example in examples if example.unit != gone]
    order.shuffle(fewer)
    assert parts(fewer) == [part - {gone} for part in parts(examples)]


def test_apart_a_tenth_is_held_back_in_the_mean() -> None:
    """Of 5,000 units, to four standard deviations."""
    examples = [Example(number, {}, unit=f"p{number}") for number in range(5000)]
    held = split_validation(examples, 0.1, 3, "a", apart=True)[1]
    assert abs(len(held) - 500) < 4 * (5000 * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("gone", [0, 100, 199])
def test_rows_without_a_name_are_known_by_what_they_say(gone: int) -> None:
    """Their number changes with every row before them; who leaves moves nobody else all the same."""

    def texts(left_out: int | None) -> tuple[set[str], set[str]]:
        said = [f"note {number}" for number in range(200) if number != left_out]
        rows = [Example(place, {"text": text}, unit=str(place)) for place, text in enumerate(said)]
        parts = split_validation(rows, 0.1, 3, "a", apart=True, named=False)
        trained, held = ({str(rows[index].roles["text"]) for index in part} for part in parts)
        return trained, held

    trained, held = texts(None)
    assert 5 < len(held) < 40
    assert texts(gone) == (trained - {f"note {gone}"}, held - {f"note {gone}"})
