"""Blocks of units in turn: who is in which step of a run with correlated noise.

Every unit is in one block of b, by a keyed hash of its own id; step t of the run takes block t mod b, whole.
So a unit is in every b-th step and in no other, and one unit more or less moves nobody else: neighbours under
adding or removing one differ in that unit's steps alone. Blocks are of uneven size, and an empty one is noise
alone; what a sum is divided by is a constant of the plan. The pattern is what `accounting/banded.py` counts
on, in place of chance: it need not be secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from wardround.core.errors import ConfigError, InternalError
from wardround.privacy.noise.source import RandomSource
from wardround.training.private.sampling import rows_by_unit, some_rows

_HASH_BYTES = 8


@dataclass(frozen=True, eq=False, repr=False)
class BlockBatch:
    """The block of one step; made by `BlockSampler` alone, and good for that step.

    Attributes:
        indices: Rows, those of a unit side by side.
        units: The unit of each, as a number from 0.
        step: Of the whole run, from 0.
        bands: b.
        population: Rows that there are.
        repeatable: Its rows, or the key, came from a seed.
    """

    indices: tuple[int, ...]
    units: tuple[int, ...]
    step: int
    bands: int
    population: int
    repeatable: bool


@final
class Pattern:
    """Which block each row is in.

    Args:
        units: The unit of each row.
        bands: b.
        key: Of the run.
    """

    def __init__(self, units: Sequence[str], bands: int, key: bytes) -> None:
        self.bands = bands
        self._units = units
        self._blocks = {unit: block_of(unit, bands, key) for unit in set(units)}

    def block(self, row: int) -> int:
        """Of a row, which is its unit's."""
        return self._blocks[self._units[row]]

    def require(self, batch: object, step: int) -> None:
        """A batch is of this step, has units of its block alone, and none of them twice.

        Raises:
            InternalError: It is another one.
        """
        if not isinstance(batch, BlockBatch):
            raise InternalError(
                "the account says blocks in turn, and the batch is none", found=type(batch).__name__,
                expected="what BlockSampler draws",
            )  # fmt: skip
        if (batch.step, batch.bands, batch.population) != (step, self.bands, len(self._units)):
            raise InternalError(
                "a block was drawn for another step than the noise is for",
                found=f"step {batch.step} of {batch.bands} bands, {batch.population} rows",
                expected=f"step {step} of {self.bands} bands, {len(self._units)} rows",
            )  # fmt: skip
        # By the units of the rows themselves: what the batch calls them decides what is clipped together.
        numbers = {(self._units[row], number) for row, number in zip(batch.indices, batch.units, strict=True)}
        apart = len({unit for unit, _ in numbers}) == len({number for _, number in numbers}) == len(numbers)
        once = len(set(batch.indices)) == len(batch.indices)
        if not (apart and once) or any(self.block(row) != step % self.bands for row in batch.indices):
            raise InternalError(
                "a batch does not follow the pattern that the account counts on",
                found="units of another block, or one of them twice",
                expected=f"units of block {step % self.bands}, each once",
                remedy="take what BlockSampler draws",
            )


def block_of(unit: str, bands: int, key: bytes) -> int:
    """The block of a unit, from its id and the run's key alone; from 0.

    Some blocks are likelier than others by up to b 2⁻⁶⁴, which costs nobody privacy.
    """
    found = hashlib.blake2b(
        unit.encode(errors="surrogatepass"), digest_size=_HASH_BYTES, key=key, person=b"wardround block"
    )
    return int.from_bytes(found.digest(), "big") % bands


@final
class BlockSampler:
    """Gives the blocks of a run's steps, one after the other.

    Of a unit with more rows than `most_examples` some are chosen anew in each of its steps, from words that
    say nothing of other units, as `PoissonSampler` does.

    Args:
        pattern: Who is where.
        units: The unit of each row, as of the pattern.
        first: The run's step that comes next, from 0.
        source: Words for the choice of rows.
        most_examples: Most rows of a unit in a batch; None takes all.

    Raises:
        ConfigError: The bound on rows is none.
    """

    def __init__(
        self,
        pattern: Pattern,
        units: Sequence[str],
        first: int,
        source: RandomSource,
        most_examples: int | None = None,
    ) -> None:
        if most_examples is not None and most_examples < 1:
            raise ConfigError(
                "the bound on a unit's rows leaves none", found=most_examples, expected="at least 1"
            )
        self._pattern, self._next, self._source, self._most = pattern, first, source, most_examples
        self._population = len(units)
        self._members: dict[int, list[list[int]]] = {}
        for rows in rows_by_unit(units):
            self._members.setdefault(pattern.block(rows[0]), []).append(rows)

    def draw(self) -> BlockBatch:
        """The next step's block; empty ones really come.

        Raises:
            InternalError: The source gave another number of words than was asked for.
        """
        step, bands = self._next, self._pattern.bands
        self._next += 1
        chosen = [some_rows(rows, self._most, self._source) for rows in self._members.get(step % bands, [])]
        return BlockBatch(
            indices=tuple(row for rows in chosen for row in rows),
            units=tuple(unit for unit, rows in enumerate(chosen) for _ in rows),
            step=step,
            bands=bands,
            population=self._population,
            repeatable=self._source.repeatable,
        )
