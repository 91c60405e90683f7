"""Equal shares at random: every site sees the same distribution."""

from __future__ import annotations

from collections.abc import Sequence

from wardround.core.seeds import Purpose, generator
from wardround.simulations.partitions.groups import DrawnOptions, groups, named, require_enough
from wardround.training.examples import Example


class Iid:
    """Shuffled units, each to the site that has the fewest rows so far."""

    Options = DrawnOptions

    def split(self, examples: Sequence[Example], options: DrawnOptions, *, seed: int) -> dict[str, list[int]]:
        """Sites whose sizes differ by at most the largest unit."""
        units = groups(examples, options.by)
        require_enough(examples, len(units), options)
        sites: list[list[int]] = [[] for _ in range(options.sites)]
        for position in generator(seed, Purpose.PARTITION).permutation(len(units)):
            min(sites, key=len).extend(units[position])
        return named(sites)


PARTITION = Iid()
