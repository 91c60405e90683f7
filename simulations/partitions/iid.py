"""Equal shares at random: every site sees the same distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from wardround.core.errors import DataError
from wardround.core.seeds import Purpose, generator
from wardround.simulations.partitions._groups import DrawnOptions, groups, named, require_enough
from wardround.training.examples import Example


@final
class Iid:
    """Shuffled units, each to the site that has the fewest rows so far."""

    @final
    class Options(DrawnOptions):
        """None beyond those of every drawn partition."""

    def split(self, examples: Sequence[Example], options: Options, *, seed: int) -> dict[str, list[int]]:
        """Sites whose sizes differ by at most the largest unit.

        Raises:
            DataError: Too few rows or units, or units too large for `least_rows`.
        """
        units = groups(examples, options.by)
        require_enough(examples, len(units), options)
        sites: list[list[int]] = [[] for _ in range(options.sites)]
        for position in generator(seed, Purpose.PARTITION).permutation(len(units)):
            min(sites, key=len).extend(units[position])
        if min(map(len, sites)) < options.least_rows:
            # Large units can leave a site short although the rows suffice in sum.
            raise DataError(
                f"equal shares of whole units do not give every site {options.least_rows} rows",
                found=f"{min(map(len, sites))} at the smallest of {options.sites} sites",
                remedy="lower sites or least_rows, or set by: row",
            )
        return named(sites)


PARTITION = Iid()
