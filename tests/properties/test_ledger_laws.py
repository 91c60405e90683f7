"""Whom a charge may have met: what the ledger computes, against every patient that there could be.

The oracle enumerates patients. A patient is a set of units: no two of them stand in one source, and of any
two the later one came undeclared, or shares content with an earlier one under another id. What she has lost
is the sum over the charges that name any of her units, each once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.client.ledger.keys import LedgerKeys
from wardround.client.ledger.population import Population
from wardround.client.ledger.units import UnitList
from wardround.privacy.secagg.secret import Secret

KEYS = LedgerKeys(Secret(bytes(32)))
NAMES = "abcdefg"


@dataclass
class Oracle:
    """The same, one unit and one patient at a time."""

    sources: list[dict[str, str]] = field(default_factory=list)
    """Unit → content ("" is none)."""
    arrived: dict[str, int] = field(default_factory=dict)
    declared: set[int] = field(default_factory=set)
    same: set[frozenset[str]] = field(default_factory=set)
    held: set[tuple[str, str]] = field(default_factory=set)
    only_arrivals: bool = False
    """Two units may be one patient though they stood in one source, if they did not come with it."""

    def add(self, units: dict[str, str]) -> None:
        for unit, content in units.items():
            owners = {owner for owner, text in self.held if content and text == content}
            if unit not in owners:
                self.same |= {frozenset((unit, owner)) for owner in owners}
        self.held |= {(unit, content) for unit, content in units.items() if content}
        for unit in units:
            self.arrived.setdefault(unit, len(self.sources))
        self.sources.append(units)

    def may_be_one(self, one: str, other: str) -> bool:
        if not self.only_arrivals and any({one, other} <= set(units) for units in self.sources):
            return False
        first, last = sorted((self.arrived[one], self.arrived[other]))
        return first != last and (last not in self.declared or frozenset((one, other)) in self.same)

    def patients(self, unit: str) -> Iterator[set[str]]:
        others = [name for name in self.arrived if name != unit and self.may_be_one(unit, name)]
        for size in range(len(others) + 1):
            for chosen in combinations(others, size):
                if all(self.may_be_one(*pair) for pair in combinations(chosen, 2)):
                    yield {unit, *chosen}

    def spent(self, unit: str, charges: list[float]) -> float:
        return max(
            sum(charge for charge, source in zip(charges, self.sources, strict=True) if patient & set(source))
            for patient in self.patients(unit)
        )


Units = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["", "", "p", "q"]), min_size=1, max_size=5)


@dataclass
class Made:
    """Both, built in the same way."""

    population: Population
    oracle: Oracle

    def class_of(self, unit: str) -> int:
        place = int(np.searchsorted(self.population.ids, KEYS.hash_ids([unit]))[0])
        return int(self.population.class_of[place])

    def computed(self, charges: list[list[float]]) -> dict[str, list[float]]:
        """Unit → spent at each order."""
        worlds = self.population.worlds()
        spent = worlds.spent(np.array(charges))
        return {
            unit: spent[worlds.owner == self.class_of(unit)].max(axis=0).tolist()
            for unit in self.oracle.arrived
        }


@st.composite
def populations(draw: st.DrawFn, *, content: bool = True) -> Made:
    """A few sources, some of them declared, at once or later."""
    made = Made(Population(), Oracle())
    for number in range(draw(st.integers(1, 4))):
        units = draw(Units)
        if not content:
            units = dict.fromkeys(units, "")
        ids = [unit for unit, text in units.items() if text]
        listed = UnitList.of(KEYS, list(units), None)
        if ids:
            both = UnitList.of(KEYS, ids, [units[unit].encode() for unit in ids])
            listed = UnitList(listed.ids, both.contents)
        assert made.population.add(listed) == number
        made.oracle.add(units)
        for earlier in draw(st.sets(st.integers(0, number))):
            made.population.declare(earlier)
            made.oracle.declared.add(earlier)
    return made


costs = st.lists(st.integers(0, 5), min_size=4, max_size=4)


@settings(max_examples=300, deadline=None)
@given(populations(), costs)
def test_no_patient_can_have_lost_more_than_is_counted(made: Made, drawn: list[int]) -> None:
    """For every unit, and every way in which units may be one patient."""
    charges = [float(cost) for cost in drawn[: len(made.oracle.sources)]]
    computed = made.computed([[cost] for cost in charges])
    for unit in made.oracle.arrived:
        assert computed[unit][0] >= made.oracle.spent(unit, charges) - 1e-9
        assert computed[unit][0] <= sum(charges) + 1e-9


@settings(max_examples=100, deadline=None)
@given(populations(content=False), costs)
def test_where_everything_is_declared_a_unit_has_its_own_charges(made: Made, drawn: list[int]) -> None:
    """Renames and parts: nobody pays for another one."""
    charges = [float(cost) for cost in drawn[: len(made.oracle.sources)]]
    for number in range(len(charges)):
        made.population.declare(number)
    computed = made.computed([[cost] for cost in charges])
    for unit in made.oracle.arrived:
        named = zip(charges, made.oracle.sources, strict=True)
        assert computed[unit] == [sum(cost for cost, source in named if unit in source)]


@settings(max_examples=100, deadline=None)
@given(st.lists(Units, min_size=1, max_size=4), costs)
def test_growth_is_exact(steps: list[dict[str, str]], drawn: list[int]) -> None:
    """Of a source that only grows, nobody pays for more than could be hers."""
    made, grown = Made(Population(), Oracle(only_arrivals=True)), dict[str, str]()
    for step in steps:
        grown = grown | dict.fromkeys(step, "")
        made.population.add(UnitList.of(KEYS, list(grown), None))
        made.oracle.add(grown)
    charges = [float(cost) for cost in drawn[: len(steps)]]
    computed = made.computed([[cost] for cost in charges])
    assert computed == {unit: [made.oracle.spent(unit, charges)] for unit in grown}


@settings(max_examples=100, deadline=None)
@given(populations(), costs, costs)
def test_orders_do_not_mix(made: Made, one: list[int], other: list[int]) -> None:
    """Two columns at once are each as they are alone; a release in one of them is infinite there."""
    count = len(made.oracle.sources)
    both = [[float(a), float(b)] for a, b in zip(one[:count], other[:count], strict=True)]
    together = made.computed(both)
    for column in (0, 1):
        alone = made.computed([[row[column]] for row in both])
        assert {unit: [values[column]] for unit, values in together.items()} == alone
    both[0][0] = float("inf")
    endless = made.computed(both)
    for unit, (first, second) in endless.items():
        if unit in made.oracle.sources[0]:
            assert first == float("inf")
        assert second == together[unit][1]


@settings(max_examples=100, deadline=None)
@given(populations(), costs, st.integers(0, 3))
def test_a_charge_moves_only_those_whom_it_may_meet(made: Made, drawn: list[int], at: int) -> None:
    """And everybody in the source: the worlds that the filter looks at are all that change."""
    count = len(made.oracle.sources)
    charges = np.array([[float(cost)] for cost in drawn[:count]])
    worlds = made.population.worlds()
    before = worlds.spent(charges)
    charges[at % count] += 1
    after = worlds.spent(charges)
    moved = (after > before).ravel()
    assert not moved[~worlds.hits[:, at % count]].any()
    met = np.flatnonzero(worlds.hits[:, at % count])
    np.testing.assert_array_equal(worlds.spent(charges, met), after[met])
    for unit in made.oracle.sources[at % count]:
        assert moved[worlds.owner == made.class_of(unit)].any()


@settings(max_examples=100, deadline=None)
@given(populations())
def test_classes_share_out_the_units(made: Made) -> None:
    """Every unit is in one class; units of a class are in the same sources, and each source is classes."""
    population, oracle = made.population, made.oracle
    assert population.size == len(oracle.arrived) == population.sizes().sum()
    for unit in oracle.arrived:
        sources = {number for number, units in enumerate(oracle.sources) if unit in units}
        assert population.members[made.class_of(unit)] == sources
    for number, units in enumerate(oracle.sources):
        sizes = population.sizes()[population.classes_of(number)]
        assert sizes.sum() == len(units)


@settings(max_examples=50, deadline=None)
@given(populations(), Units)
def test_an_arrival_is_what_the_list_then_brings(made: Made, units: dict[str, str]) -> None:
    """Asked before it is taken, and nothing changes by asking."""
    listed = UnitList.of(KEYS, list(units), [text.encode() for text in units.values()])
    before = made.population.size
    arrival = made.population.arrival(listed)
    assert made.population.size == before
    made.population.add(listed)
    assert made.population.size == before + arrival.unknown
    assert arrival.unknown == len(set(units) - set(made.oracle.arrived))
