"""What a regular graph risks: that a site is exposed to colluders, or that a sum cannot be opened.

A site's k neighbours are a uniform draw from the other n − 1 (nobody chooses the order of the graph),
so that the number of marked ones among them is hypergeometric; every figure here is a union bound over all
sites. After Bell et al. 2020, section 3, for a share threshold t that is local to a neighbourhood.
"""

from __future__ import annotations

import math


def exposure(sites: int, degree: int, share_threshold: int, colluding: int) -> float:
    """Probability that colluders learn more than a sum over all honest sites, at most.

    They do where one honest site has at least `share_threshold` of them among its neighbours (its honest ones
    give one kind of share alone), or where they cut the circle of the honest: twice k/2 of them in a row.
    """
    alone = (sites - colluding) * _at_least(share_threshold, sites - 1, colluding, degree)
    row = math.prod((colluding - i) / (sites - i) for i in range(min(degree // 2, colluding + 1)))
    return min(1.0, alone + sites * max(row, 0.0))


def failure(sites: int, degree: int, share_threshold: int, lost: int) -> float:
    """Probability that some site's secret has too few shares once `lost` sites are gone, at most.

    Of a site that is gone itself, at least `share_threshold` of its `degree` neighbours have to be there.
    """
    return min(1.0, sites * _at_least(degree - share_threshold + 1, sites - 1, lost, degree))


def _at_least(least: int, population: int, marked: int, drawn: int) -> float:
    """P(X ≥ least) for a hypergeometric X: `drawn` out of `population`, `marked` of which are marked."""
    marked = min(marked, population)
    total = math.comb(population, drawn)
    ways = sum(
        math.comb(marked, hits) * math.comb(population - marked, drawn - hits)
        for hits in range(max(least, 0), min(marked, drawn) + 1)
    )
    return ways / total
