"""Size skew: labels alike everywhere, but sites of very different sizes, drawn from Dirichlet(α)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from wardround.core.errors import DataError
from wardround.core.seeds import Purpose, generator
from wardround.simulations.partitions.groups import DrawnOptions, groups, named, require_enough
from wardround.training.examples import Example

DRAWS = 1000


class _Options(DrawnOptions):
    """Options; the smaller alpha, the more unequal the sizes."""

    alpha: float = Field(default=0.5, gt=0)


class Quantity:
    """Shuffled units, cut in Dirichlet(α) proportions; redrawn until every site has `least_rows`."""

    Options = _Options

    def split(self, examples: Sequence[Example], options: _Options, *, seed: int) -> dict[str, list[int]]:
        """Sites with skewed sizes.

        Raises:
            DataError: No draw out of 1,000 gave every site its least rows.
        """
        units = groups(examples, options.by)
        require_enough(examples, len(units), options)
        rng = generator(seed, Purpose.PARTITION)
        order = rng.permutation(len(units))
        for _ in range(DRAWS):
            shares = rng.dirichlet(np.full(options.sites, options.alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(units)).astype(int)
            sites = [[i for number in part for i in units[number]] for part in np.split(order, cuts)]
            if min(map(len, sites)) >= options.least_rows:
                return named(sites)
        raise DataError(
            f"no draw of sizes gave every site {options.least_rows} rows",
            found=f"{DRAWS} draws at alpha {options.alpha}",
            remedy="raise alpha, or lower sites or least_rows",
        )


PARTITION = Quantity()
