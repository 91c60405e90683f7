"""Who is who in a ledger: units, what they share, and whom a charge may have met.

A *class* is a set of units with one history: in the same sources, arrived together. A *batch* is what one
source brought that no earlier source had. Ids of one export are distinct patients; but an id that the ledger
does not know may be anybody whom it knows under another one (exports carry fresh pseudonyms). So a patient
has at most one unit in each batch, and may have one in every batch, with one exception: a batch that a person
declared to be new patients shares none with those before it. (A batch that came later, undeclared, may
repeat it.)

A *world* is one way in which that can be true of the worst-off patient behind a class: the earliest batch
that she is in, and every later undeclared one. Whatever she really is, she is in one of these worlds, or in
part of one. One reservation meets a patient once, whichever of her units it names.

Units of different ids that have a content in common are taken for one patient: where a declaration says
otherwise, it does not cover them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wardround.client.ledger.keys import HASHES
from wardround.client.ledger.units import PAIRS, UnitList, halves
from wardround.core.packed import Array


@dataclass(frozen=True)
class Batch:
    """Units that arrived together.

    Attributes:
        source: Number of the source that brought them.
        declared: Somebody signed that they are nobody known before; the first batch has nobody before it.
        contested: They have contents of units with other ids: no declaration covers them.
    """

    source: int
    declared: bool
    contested: bool = False


@dataclass(frozen=True)
class Arrival:
    """What a list of units would bring.

    Attributes:
        unknown: How many ids no earlier list had.
        contested: How many units have the content of one that has another id, so that a declaration could
            not cover them, or no longer does.
    """

    unknown: int
    contested: int


@dataclass
class Population:
    """All units that a ledger knows.

    Attributes:
        ids: (units,) `HASHES`, sorted.
        class_of: (units,) class of each.
        contents: (pairs,) `PAIRS`, sorted.
        batch_of: Batch of each class.
        members: For each class, the sources that it is in.
        batches: In order of arrival.
        sources: How many there are.
    """

    ids: Array = field(default_factory=lambda: np.zeros(0, HASHES))
    class_of: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    contents: Array = field(default_factory=lambda: np.zeros(0, PAIRS))
    batch_of: list[int] = field(default_factory=list)
    members: list[set[int]] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    sources: int = 0

    @property
    def size(self) -> int:
        """How many units."""
        return len(self.ids)

    def sizes(self) -> Array:
        """How many units each class has, (classes,)."""
        return np.bincount(self.class_of, minlength=len(self.batch_of))

    def arrival(self, units: UnitList) -> Arrival:
        """What a list would bring, without taking it."""
        _, known = self._found(units.ids)
        return Arrival(int((~known).sum()), len(self._contested(units)))

    def add(self, units: UnitList) -> int:
        """Take a list as one more source; returns its number."""
        source = self.sources
        contested = self._contested(units)
        _, known = self._found(units.ids)
        new = units.ids[~known]
        self._insert(new)
        doubtful = np.isin(new, contested)
        for ids, mark in ((new[~doubtful], False), (contested, True)):
            if len(ids):
                first = not self.batches
                self.batches.append(Batch(source, declared=first and not mark, contested=mark))
                self._move(ids, len(self.batches) - 1)
        for number in self._split(units.ids):
            self.members[number].add(source)
        self.contents = np.union1d(self.contents, units.contents)
        self.sources += 1
        return source

    def declare(self, source: int) -> bool:
        """Take what a source brought for patients whom nobody knew; False where it brought nobody."""
        found = False
        for number, batch in enumerate(self.batches):
            if batch.source == source and not batch.contested:
                self.batches[number] = Batch(source, declared=True)
                found = True
        return found

    def classes_of(self, source: int) -> list[int]:
        """The classes that make a source up."""
        return [number for number, sources in enumerate(self.members) if source in sources]

    def worlds(self) -> Worlds:
        """Whom a charge may have met, as it is now."""
        count, batches = len(self.members), len(self.batches)
        member = np.zeros((count, self.sources), bool)
        for number, sources in enumerate(self.members):
            member[number, list(sources)] = True
        batch_of = np.array(self.batch_of, np.int64)
        touched = np.zeros((batches, self.sources), bool)
        np.logical_or.at(touched, batch_of, member)
        declared = np.array([batch.declared for batch in self.batches], bool)
        owner, hits, others = [], [], []
        for number, own in enumerate(self.batch_of):
            # An undeclared first batch of a world would only be part of a world that begins earlier.
            for first in [own] if declared[own] else np.flatnonzero(declared[:own]):
                world = ~declared
                world[:first] = False
                world[first] = True
                world[own] = False
                owner.append(number)
                others.append(world)
                hits.append(member[number] | touched[world].any(axis=0))
        return Worlds(
            np.array(owner, np.int64), np.array(hits, bool).reshape(len(owner), self.sources),
            np.array(others, bool).reshape(len(owner), batches), member, batch_of,
        )  # fmt: skip

    def _found(self, ids: Array) -> tuple[Array, Array]:
        """Where each id is, and whether it is there."""
        place = np.searchsorted(self.ids, ids)
        known = place < self.size
        known[known] = self.ids[place[known]] == ids[known]
        return place, known

    def _insert(self, new: Array) -> None:
        place = np.searchsorted(self.ids, new)
        self.ids = np.insert(self.ids, place, new)
        self.class_of = np.insert(self.class_of, place, -1)

    def _move(self, ids: Array, batch: int) -> None:
        """Put units into a batch; those that had a class keep its history."""
        for number in self._split(ids):
            self.batch_of[number] = batch

    def _split(self, ids: Array) -> list[int]:
        """Classes that together hold exactly these known units; a class of which they are a part is cut."""
        place, _ = self._found(ids)
        found, counts = np.unique(self.class_of[place], return_counts=True)
        sizes = self.sizes_of(found)
        whole = []
        for number, count, size in zip(found.tolist(), counts.tolist(), sizes.tolist(), strict=True):
            if number >= 0 and count == size:
                whole.append(number)
                continue
            self.class_of[place[self.class_of[place] == number]] = len(self.members)
            whole.append(len(self.members))
            self.members.append(set(self.members[number]) if number >= 0 else set())
            self.batch_of.append(self.batch_of[number] if number >= 0 else -1)
        return whole

    def sizes_of(self, classes: Array) -> Array:
        """How many units these classes have; -1 stands for units that have none yet."""
        counts: Array = np.bincount(self.class_of + 1, minlength=len(self.members) + 1)
        return np.asarray(counts[classes + 1])

    def _contested(self, units: UnitList) -> Array:
        """Ids of the list that have a content of another id, which is not taken for one patient already."""
        if not (len(units.contents) and len(self.contents)):
            return np.zeros(0, HASHES)
        held = halves(self.contents)
        content, owner = units.content_of_pairs, units.owner_of_pairs
        start = np.searchsorted(held[:, 0], content, side="left")
        end = np.searchsorted(held[:, 0], content, side="right")
        foreign = (end > start) & ~np.isin(units.contents, self.contents)
        doubtful = {
            owner[pair]
            for pair in np.flatnonzero(foreign)
            if any(self._apart(owner[pair], held[at, 1]) for at in range(start[pair], end[pair]))
        }
        return np.array(sorted(doubtful), HASHES)

    def _apart(self, one: bytes, other: bytes) -> bool:
        """Whether the ledger does not, or may come not to, take these two ids for one patient."""
        found = np.array([one, other], HASHES)
        place, known = self._found(found)
        if not known[0]:
            return True
        ours, theirs = (self.batch_of[int(self.class_of[at])] for at in place)
        # Undeclared is not enough: somebody may yet declare it, but for a contested batch.
        return ours != theirs and not self.batches[max(ours, theirs)].contested


@dataclass(frozen=True)
class Worlds:
    """For each class, the worlds in which its worst-off patient may be; computed anew when a source arrives.

    Attributes:
        owner: (worlds,) class.
        hits: (worlds, sources) whether a charge on the source may have met that patient.
        others: (worlds, batches) batches beside her own in which she may have a unit.
        member: (classes, sources) whether the class is in the source.
        batch_of: (classes,) batch.
    """

    owner: Array
    hits: Array
    others: Array
    member: Array
    batch_of: Array

    def spent(self, charges: Array, worlds: Array | None = None) -> Array:
        """The most that the patient of each world can have been charged.

        The smaller of two upper bounds: every charge that may have met her, counted once; and what was
        charged to her own unit, with the most that was charged to any one unit of each other batch.

        Args:
            charges: (sources, orders) charged on each, not negative.
            worlds: Only these, by number.

        Returns:
            (worlds, orders).
        """
        owner, hits, others = self.owner, self.hits, self.others
        if worlds is not None:
            owner, hits, others = owner[worlds], hits[worlds], others[worlds]
        own = _summed(self.member, charges)
        most = np.zeros((others.shape[1], charges.shape[1]))
        np.maximum.at(most, self.batch_of, own)
        return np.asarray(np.minimum(_summed(hits, charges), own[owner] + _summed(others, most)))


def _summed(chosen: Array, values: Array) -> Array:
    """`chosen @ values`, where zero times infinity is zero."""
    endless = ~np.isfinite(values)
    if not endless.any():
        return np.asarray(chosen.astype(float) @ values)
    total = chosen.astype(float) @ np.where(endless, 0.0, values)
    total[chosen.astype(float) @ endless.astype(float) > 0] = np.inf
    return np.asarray(total)
