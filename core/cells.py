"""Small cells: counts leave a site as multiples of a smallest one, so that none tells of a few patients.

Counts are rounded at random to a neighbouring multiple, as offices of statistics do with tables (random
rounding, e.g. Statistics Canada's to base 5): the expected value is the count. The chance is one secret
number of a site for good, so that the same count leaves as the same one, and asking again averages nothing
away. One walk along all cells of a table (systematic sampling, Madow 1944) keeps each of its sums over
neighbouring cells within one multiple of the truth. Positions, such as scores of single rows, leave as the
mean of a group of so many rows (microaggregation, Domingo-Ferrer and Mateo-Sanz 2002).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from wardround.core.packed import Array


@dataclass(frozen=True, repr=False)
class Cells:
    """How the counts of one part of a site's rows leave it.

    Attributes:
        smallest: Rows; every count leaves as a multiple of it. 1 leaves all counts as they are.
        offset: The site's secret, 0 to smallest − 1, drawn once.
    """

    smallest: int = 1
    offset: int = 0

    def rows(self, count: int) -> int:
        """A number of rows as it leaves: a multiple less than one `smallest` away, 0 for fewer than that."""
        return 0 if count < self.smallest else self._edge(count)

    def table(self, counts: Array) -> Array:
        """Cells of one table, (…,) int64, as they leave.

        In the order of the array the sum over any run of cells is less than `smallest` off, and that over all
        is `rows` of it. Where all of it is below `smallest`, nothing is left.
        """
        ends = np.cumsum(counts.reshape(-1))
        if self.rows(int(ends[-1]) if ends.size else 0) == 0:
            return np.zeros_like(counts)
        lattice = (ends + self.offset) // self.smallest
        return (np.diff(lattice, prepend=0) * self.smallest).reshape(counts.shape)

    def grouped(self, histogram: Array) -> Array:
        """A histogram, (bins,) int64, of groups of at least `smallest` rows that lie beside one another.

        Each group counts as `smallest` rows in the bin of its mean; no bin says where a single row lies.
        """
        if self.smallest == 1:
            return histogram
        found = np.zeros_like(histogram)
        rows = int(histogram.sum())
        groups = rows // self.smallest
        if groups:
            places = np.repeat(np.arange(histogram.size), histogram)
            starts = np.arange(groups) * rows // groups
            sizes = np.diff(starts, append=rows)
            means = np.add.reduceat(places, starts) / sizes
            np.add.at(found, np.rint(means).astype(np.int64), self.smallest)
        return found

    def scaled(self, total: int, count: int) -> int:
        """A sum over so many rows as it leaves beside `rows(count)`: their mean is kept, nothing else."""
        return total * self.rows(count) // count if count else 0

    def _edge(self, count: int) -> int:
        return (count + self.offset) // self.smallest * self.smallest


EXACT: Final = Cells()
"""Counts as they are: of a simulation."""
