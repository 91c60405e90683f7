"""Label skew: each class is spread over the sites in Dirichlet(α) proportions.

Yurochkin et al. 2019 (arXiv:1905.12022): for each class k draw p_k ~ Dir_J(α) and give site j the
share p_kj of its rows; Hsu, Qi and Brown 2019 (arXiv:1909.06335) draw a mixture of classes a site instead.
A small α puts a class at few sites, a large one approaches equal shares.
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
    majority_label,
    named,
    no_draw,
    require_enough,
)
from wardround.training.examples import Example


@final
class Dirichlet:
    """Redrawn until every site has `least_rows`."""

    @final
    class Options(DrawnOptions):
        """`alpha` of the distribution. A unit counts for the class that most of its rows have."""

        alpha: float = Field(default=0.5, gt=0, allow_inf_nan=False)

    def split(self, examples: Sequence[Example], options: Options, *, seed: int) -> dict[str, list[int]]:
        """Sites with skewed labels.

        Raises:
            DataError: A row without a label, too few rows, or no draw gave every site its least rows.
        """
        units = groups(examples, options.by)
        require_enough(examples, len(units), options)
        classes: dict[int, list[int]] = {}
        for number, unit in enumerate(units):
            classes.setdefault(majority_label(examples, unit), []).append(number)
        rng = generator(seed, Purpose.PARTITION)
        for _ in range(DRAWS):
            sites: list[list[int]] = [[] for _ in range(options.sites)]
            for label in sorted(classes):
                members = rng.permutation(classes[label])
                shares = rng.dirichlet(np.full(options.sites, options.alpha))
                cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
                for site, part in zip(sites, np.split(members, cuts), strict=True):
                    site.extend(index for number in part for index in units[number])
            if min(map(len, sites)) >= options.least_rows:
                return named(sites)
        raise no_draw(f"label shares from Dirichlet({options.alpha:g})", options)


PARTITION = Dirichlet()
