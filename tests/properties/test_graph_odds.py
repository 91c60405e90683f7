"""The regular graph and its odds, beside simulation: what is stated is not exceeded."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.core.errors import InternalError
from wardround.privacy.secagg.graph import complete, regular
from wardround.privacy.secagg.odds import exposure, failure


def openings(sites: list[str]) -> dict[str, bytes]:
    """Fresh ones."""
    return {site: secrets.token_bytes(32) for site in sites}


@given(st.integers(3, 30), st.data())
def test_every_site_has_as_many_neighbours_and_they_are_mutual(size: int, data: st.DataObject) -> None:
    """No loops, no double edges, symmetric, connected."""
    sites = [f"s{i}" for i in range(size)]
    degree = 2 * data.draw(st.integers(1, (size - 1) // 2))
    graph = regular(sites, degree, openings(sites))
    for site, others in graph.neighbours.items():
        assert len(set(others)) == len(others) == degree
        assert site not in others
        assert all(site in graph.neighbours[other] for other in others)
        assert graph.holders(site) == tuple(sorted((site, *others)))
    reached, front = {sites[0]}, [sites[0]]
    while front:
        front = [
            o for site in front for o in graph.neighbours[site] if o not in reached and not reached.add(o)
        ]
    assert reached == set(sites)


def test_everybody_knows_everybody_in_the_complete_graph() -> None:
    """As its name says."""
    graph = complete(["a", "b", "c"])
    assert graph.neighbours == {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b")}


@pytest.mark.parametrize("degree", [0, 1, 3, 6])
def test_there_is_no_odd_or_too_wide_graph(degree: int) -> None:
    """Six sites: 2 and 4 exist."""
    sites = [f"s{i}" for i in range(6)]
    with pytest.raises(InternalError, match="no such graph"):
        regular(sites, degree, openings(sites))


def test_one_opening_changes_the_whole_order() -> None:
    """So that nobody who has committed can steer it."""
    sites = [f"s{i}" for i in range(40)]
    drawn = openings(sites)
    before = regular(sites, 4, drawn)
    after = regular(sites, 4, {**drawn, "s7": secrets.token_bytes(32)})
    same = sum(before.neighbours[site] == after.neighbours[site] for site in sites)
    assert same < 5


def test_the_published_odds_of_a_thousand_sites() -> None:
    """With n = 1000, k = 100, local t = 60: a third colluding, a fifth lost; union over all sites."""
    assert exposure(1000, 100, 60, 333) < 1e-5
    assert failure(1000, 100, 60, 200) < 3e-4
    assert exposure(1000, 100, 50, 333) > 1e-5


@pytest.mark.parametrize(
    ("sites", "degree", "threshold", "marked"), [(60, 8, 5, 15), (60, 10, 6, 20), (40, 6, 4, 8)]
)
def test_the_odds_bound_what_happens(sites: int, degree: int, threshold: int, marked: int) -> None:
    """Four hundred drawn graphs: how often some site is exposed, or fails, against the stated bound."""
    names = [f"s{i}" for i in range(sites)]
    rng = np.random.default_rng(3)
    exposed = failed = 0
    draws = 400
    for _ in range(draws):
        graph = regular(names, degree, openings(names))
        bad = set(rng.choice(names, size=marked, replace=False).tolist())
        counts = {name: len(bad & set(graph.neighbours[name])) for name in names}
        exposed += any(counts[name] >= threshold for name in names if name not in bad)
        failed += any(counts[name] > degree - threshold for name in names)
    for seen, bound in (
        (exposed / draws, exposure(sites, degree, threshold, marked)),
        (failed / draws, failure(sites, degree, threshold, marked)),
    ):
        assert seen <= bound + 3 * (max(bound * (1 - bound), 1 / draws) / draws) ** 0.5
    assert exposed + failed > 0, "the case is too easy to say anything"
