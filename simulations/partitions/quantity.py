"""Size skew: labels alike everywhere, but sites of very different sizes, in Dirichlet(α) proportions.

Li et al. 2022 (arXiv:2102.02079): q ~ Dir_N(β), and site j gets the share q_j of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
from pydantic import Field

from wardround.core.seeds import Purpose, generator
from wardround.simulations.partitions._groups import (
    DRAWS,
    DrawnOptions,
    groups,
    named,
    no_draw,
    require_enough,
)
from wardround.training.examples import Example


@final
class Quantity:
    """Shuffled units, cut in Dirichlet(α) proportions; redrawn until every site has `least_rows`."""

    @final
    class Options(DrawnOptions):
        """`alpha` of the distribution: the smaller, the more unequal the sizes."""

        alpha: float = Field(default=0.5, gt=0, allow_inf_nan=False)

    def split(self, examples: Sequence[Example], options: Options, *, seed: int) -> dict[str, list[int]]:
        """Sites with skewed sizes.

        Raises:
            DataError: Too few rows, or no draw gave every site its least rows.
        """
        units = groups(examples, options.by)
        require_enough(examples, len(units), options)
        rng = generator(seed, Purpose.PARTITION)
        order = rng.permutation(len(units))
        for _ in range(DRAWS):
            shares = rng.dirichlet(np.full(options.sites, options.alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(units)).astype(int)
            sites = [[index for number in part for index in units[number]] for part in np.split(order, cuts)]
            if min(map(len, sites)) >= options.least_rows:
                return named(sites)
        raise no_draw(f"sizes from Dirichlet({options.alpha:g})", options)


PARTITION = Quantity()
