"""Real Poisson samples of units: each taken with probability q, apart from all others and from other steps.

That is what the accountants assume (Mironov, Talwar & Zhang 2019, arXiv:1908.10530, § 3): shuffled epochs and
batches of one size have other, mostly worse, guarantees. So a batch has any size, zero among them, and what
its sum is divided by is a constant of the plan.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from wardround.core.errors import ConfigError, InternalError, PolicyError
from wardround.privacy.noise.source import RandomSource

_WORDS: Final = 2**64


@dataclass(frozen=True, eq=False, repr=False)
class PoissonBatch:
    """One draw; made by `PoissonSampler` alone, and good for one step. Which units it holds is secret.

    Attributes:
        indices: Rows, those of a unit side by side.
        units: The unit of each, as a number from 0.
        rate: q, with which it was drawn.
        population: Rows that it was drawn from.
        repeatable: It came from a seed, which amplifies nothing.
    """

    indices: tuple[int, ...]
    units: tuple[int, ...]
    rate: float
    population: int
    repeatable: bool


@final
class PoissonSampler:
    """Draws units, and of each drawn unit at most so many rows.

    Each unit is taken where a 64-bit word of its own lies below q · 2⁶⁴, in integers: with probability q,
    less by under 2⁻⁶⁴ where q has no such number, never more.

    Guarantee: sampling is the one that `SampledGaussian` (q of units) describes. Where a drawn unit has more
        than `most_examples` rows, some are chosen anew at each draw, from words that say nothing of other
        units. A unit's contribution then is a random function of its own rows, apart from all other units',
        and it is clipped as one afterwards: taking the unit away changes no other contribution, and the sum
        by no more than C, whichever rows were chosen. Choosing at each draw lets every row be used in time.
        Where examples are drawn and clipped apart (`BoundedMixture`), a unit may own no more than K examples
        over the whole run: there `bounded_rows` chooses once, and each example is its own unit here.

    Args:
        units: The unit of each row; rows of a unit anywhere.
        rate: q.
        source: Words for the draw.
        most_examples: Most rows of a unit in a batch; None takes all.

    Raises:
        ConfigError: q is not in (0, 1], or the bound on rows is none.
    """

    def __init__(
        self, units: Sequence[Hashable], rate: float, source: RandomSource, most_examples: int | None = None
    ) -> None:
        if not 0 < rate <= 1:
            raise ConfigError(
                "the sample rate is no probability", found=rate, expected="above 0, at most 1",
                remedy="set the expected batch to no more than the number of units",
            )  # fmt: skip
        if most_examples is not None:
            _require_some(most_examples)
        self.rate = rate
        self._below = math.floor(rate * 2.0**64)  # a power of two: exact
        self._source = source
        self._most = most_examples
        self._rows = rows_by_unit(units)
        self._population = len(units)

    def draw(self) -> PoissonBatch:
        """The next batch; empty ones really come.

        Raises:
            InternalError: The source gave another number of words than was asked for.
        """
        taken = self._taken()
        chosen = [some_rows(self._rows[unit], self._most, self._source) for unit in taken]
        return PoissonBatch(
            indices=tuple(row for rows in chosen for row in rows),
            units=tuple(unit for unit, rows in zip(taken, chosen, strict=True) for _ in rows),
            rate=self.rate,
            population=self._population,
            repeatable=self._source.repeatable,
        )

    def _taken(self) -> list[int]:
        words = self._words(len(self._rows))
        if self._below == _WORDS:  # q = 1, a number that no word holds
            return list(range(len(self._rows)))
        return [int(unit) for unit in np.flatnonzero(words < np.uint64(self._below))]

    def _words(self, count: int) -> NDArray[np.uint64]:
        return words_of(self._source, count)


def some_rows(rows: list[int], most_examples: int | None, source: RandomSource) -> list[int]:
    """At most K of a unit's rows, every K of them alike, in their order.

    Raises:
        InternalError: The source gave another number of words than was asked for.
    """
    if most_examples is None or len(rows) <= most_examples:
        return rows
    order = np.argsort(words_of(source, len(rows)), kind="stable")
    return [rows[place] for place in sorted(order[:most_examples])]


def words_of(source: RandomSource, count: int) -> NDArray[np.uint64]:
    """So many words.

    Raises:
        InternalError: The source gave something else.
    """
    words = source.words(count) if count else np.zeros(0, np.uint64)
    if words.shape != (count,) or words.dtype != np.uint64:
        raise InternalError(
            "a random source gave something else than it was asked for",
            found=f"{words.dtype} {words.shape}", expected=f"uint64 ({count},)",
        )  # fmt: skip
    return words


def bounded_rows(units: Sequence[Hashable], most_examples: int, *, seed: int) -> list[int]:
    """The rows of a run in which no unit owns more than K: what a `BoundedMixture` is drawn from.

    A unit's rows are ranked by a hash of the seed, the unit and the row's place among the unit's own, so that
    equal seeds choose equal rows after a restart as well. The seed may be known: neighbours (one unit with
    all its rows) stay neighbours, since no choice depends on another unit.

    Args:
        units: The unit of each row; their `repr` has to tell them apart (strings and numbers do).
        most_examples: K.
        seed: Of the run and site.

    Returns:
        Indices, rising.

    Raises:
        ConfigError: K is below 1.
    """
    _require_some(most_examples)
    kept: list[int] = []
    for rows in rows_by_unit(units):
        ranks = [_rank(seed, units[row], place) for place, row in enumerate(rows)]
        kept += [row for _, row in sorted(zip(ranks, rows, strict=True))[:most_examples]]
    return sorted(kept)


def _rank(seed: int, unit: Hashable, place: int) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{place}\x1f{unit!r}".encode(), digest_size=16).digest()


def rows_by_unit(units: Iterable[Hashable]) -> list[list[int]]:
    """Rows of each unit, units in the order in which they come."""
    members: dict[Hashable, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    return list(members.values())


def _require_some(most_examples: int) -> None:
    """Refuse a bound that leaves no row.

    Raises:
        ConfigError: It is below 1.
    """
    if most_examples < 1:
        raise ConfigError(
            "the bound on a unit's rows leaves none", found=most_examples, expected="at least 1",
            remedy="raise it, or leave it out",
        )  # fmt: skip


def require_drawn(batch: object, rate: float, population: int) -> None:
    """Refuse what is no draw of the account's sampler from these rows.

    Raises:
        InternalError: No draw, or one at another rate or from another number of rows.
    """
    if not isinstance(batch, PoissonBatch):
        raise InternalError(
            "the account says Poisson, and the batch is none", found=type(batch).__name__,
            expected="what PoissonSampler draws",
        )  # fmt: skip
    if batch.rate != rate or batch.population != population:
        raise InternalError(
            "a batch was drawn in another way than the account says",
            found=f"rate {batch.rate:g}, {batch.population} rows",
            expected=f"rate {rate:g}, {population} rows",
        )  # fmt: skip


def repeatable(what: str) -> PolicyError:
    """That batches or noise of a private step come from a seed."""
    return PolicyError(
        f"the {what} of a private step comes from a seed, and protects nobody",
        found="a repeatable source", expected="words from the operating system",
        remedy="use the system's source, or run a simulation, which says that it is not private",
    )  # fmt: skip
