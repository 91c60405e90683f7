"""Label skew: each class is spread over the sites in Dirichlet(α) proportions.

Hsu, Qi and Brown 2019 (arXiv:1909.06335) and Yurochkin et al. 2019 (arXiv:1905.12022): small α puts a
class at few sites, large α approaches equal shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from wardround.core.errors import DataError
from wardround.core.seeds import Purpose, generator
from wardround.simulations.partitions.groups import DrawnOptions, groups, majority_label, named, require_enough
from wardround.training.examples import Example

DRAWS = 1000


class _Options(DrawnOptions):
    """Options; a unit counts for the class that most of its rows have."""

    alpha: float = Field(default=0.5, gt=0)


class Dirichlet:
    """Redrawn until every site has `least_rows`."""

    Options = _Options

    def split(self, examples: Sequence[Example], options: _Options, *, seed: int) -> dict[str, list[int]]:
        """Sites with skewed labels.

        Raises:
            DataError: No draw out of 1,000 gave every site its least rows.
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
                    for number in part:
                        site.extend(units[number])
            if min(map(len, sites)) >= options.least_rows:
                return named(sites)
        raise DataError(
            f"no draw of Dirichlet({options.alpha}) gave every site {options.least_rows} rows",
            found=f"{DRAWS} draws",
            remedy="raise alpha, or lower sites or least_rows",
        )


PARTITION = Dirichlet()
