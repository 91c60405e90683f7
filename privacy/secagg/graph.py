"""Who masks with whom: everybody with everybody, or in large cohorts each site with k others.

As Bell et al. 2020 do (a Harary graph on a random order): the cohort stands in a random order on a circle,
and each site masks with the k/2 before and the k/2 behind it. The order comes from randomness that all sites
committed to before any of it was opened, so that nobody, the relay included, chooses who stands beside whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wardround.core.errors import InternalError
from wardround.privacy.secagg.hashing import digest


@dataclass(frozen=True)
class Graph:
    """Undirected, by name.

    Attributes:
        neighbours: Site → the sites that it masks and shares with, sorted.
    """

    neighbours: Mapping[str, tuple[str, ...]]

    def holders(self, site: str) -> tuple[str, ...]:
        """Who holds a share of the site's secrets: its neighbours and itself, sorted."""
        return tuple(sorted((site, *self.neighbours[site])))


def complete(sites: Sequence[str]) -> Graph:
    """Everybody with everybody."""
    return Graph({site: tuple(sorted(set(sites) - {site})) for site in sites})


def regular(sites: Sequence[str], degree: int, openings: Mapping[str, bytes]) -> Graph:
    """Each with `degree` others, in an order drawn from everybody's openings.

    Args:
        sites: Different names.
        degree: k, even, 2 to len(sites) − 1.
        openings: Site → the randomness that it had committed to.

    Raises:
        InternalError: The degree or the openings do not fit the sites.
    """
    if degree % 2 or not 0 < degree < len(sites) or set(openings) != set(sites):
        raise InternalError(
            "there is no such graph", found=f"degree {degree}, {len(sites)} sites, {len(openings)} openings",
            expected="an even degree below the number of sites, and one opening a site",
        )  # fmt: skip
    seed = digest("graph seed", *(part for site in sorted(sites) for part in (site, openings[site])))
    circle = sorted(sites, key=lambda site: digest("graph place", seed, site))
    size = len(circle)
    steps = [step for distance in range(1, degree // 2 + 1) for step in (distance, -distance)]
    return Graph(
        {
            site: tuple(sorted({circle[(place + step) % size] for step in steps}))
            for place, site in enumerate(circle)
        }
    )
