"""Rounds that sum over groups: the vote over what each group gave, whatever becomes of some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import PeerError, QuorumError
from wardround.core.packed import Packed
from wardround.core.plan import RoundRules, StrategySpec
from wardround.privacy.sums.contract import EVALUATION, GROUPS, TRAINING
from wardround.runtime.events import Notice, RoundBurnt, RoundFolded, RoundStarted, SumOpened
from wardround.server.rounds import run_rounds
from wardround.strategies import STRATEGIES

MODES = pytest.mark.parametrize("mode", ["off", "accounted", "real"])
SITES = tuple(f"s{i:02}" for i in range(13))
"""Three groups of four, one of them with five."""
ROUNDS = 2


class Votes:
    """Runs over groups, and what has to come of them."""

    def __init__(self, bench: Any, mode: str, **sections: Any) -> None:
        spec = StrategySpec(name="group_median", options={"group_size": 4})
        rounds = RoundRules(rounds=ROUNDS, deadline_s=0.5)
        self.bench = bench
        self.plan = bench.plan_of(mode, **({"strategy": spec, "rounds": rounds} | sections))
        made = STRATEGIES.get("group_median")
        self.strategy = made(made.Options(group_size=4), self.plan.adapter.layout)

    def transport(self, **hooks: Any) -> Any:
        return self.bench.transport(self.plan, **hooks)

    def run(self, transport: Any, sites: Sequence[str] = SITES) -> Any:
        """To the end."""
        run = self.bench.run(transport, sites, strategy=self.strategy)
        return run_rounds(run, self.bench.initial)

    def groups(self, transport: Any) -> tuple[tuple[str, ...], ...]:
        """As the sites know them."""
        found = {grouped.groups for grouped in transport.grouped.values()}
        (groups,) = found
        return groups

    def expected(self, transport: Any, lost: dict[int, set[str]], rounds: int = ROUNDS) -> np.ndarray:
        """The median of the groups' means in float64, of the individuals; a site's update is its own draw."""
        state = self.bench.initial.vector.astype(np.float64)
        for round in range(1, rounds + 1):
            means = []
            for group in self.groups(transport):
                there = [self.bench.drawn(round, site) for site in group if site not in lost.get(round, ())]
                if there:
                    weight = sum(w for _, w in there)
                    means.append(sum(update * w for update, w in there) / weight)
            state = state + np.median(means, axis=0)
        return state


@pytest.fixture(scope="module")
def honest_runs() -> dict[str, Any]:
    """What `honest` has run so far."""
    return {}


@pytest.fixture
def honest(
    bench: Any, honest_runs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """By mode, a run in which nothing goes wrong: made once, to be read only."""

    def run(mode: str) -> Any:
        if mode not in honest_runs:
            own = type(bench)(tmp_path_factory.mktemp("honest"))
            votes = Votes(own, mode)
            transport = votes.transport()
            honest_runs[mode] = SimpleNamespace(
                bench=own, votes=votes, transport=transport, outcome=votes.run(transport)
            )
        return honest_runs[mode]

    return run


def close(found: Packed, expected: np.ndarray, bound: float) -> None:
    """Within the rings' rounding."""
    np.testing.assert_allclose(found.vector, expected, rtol=0, atol=bound + 1e-5)


def rounding(bench: Any) -> float:
    """What the rounds say of their rings, all together."""
    return sum(event.rounding for event in bench.recorder.of(RoundFolded))


@MODES
def test_a_round_is_the_median_of_its_groups_means(honest: Any, mode: str) -> None:
    """One draw; one sum a group and round; everybody is asked for their own group's sum only."""
    run = honest(mode)
    bench, votes, transport = run.bench, run.votes, run.transport
    groups = votes.groups(transport)
    assert sorted(map(len, groups)) == [4, 4, 5]
    close(run.outcome.last.adapter, votes.expected(transport, {}), rounding(bench))
    sums = [(e.round, e.name, e.cohort) for e in bench.recorder.of(SumOpened) if e.name != EVALUATION]
    assert sums == [(r, f"training.{g}", len(groups[g])) for r in (1, 2) for g in range(3)]
    for request in transport.asked:
        if request.round == 0:
            assert set(request.sums) == {GROUPS}
        elif TRAINING in request.sums and (request.broadcast is not None or request.follows):
            offer = bench.offer_in(request, TRAINING)
            assert offer.cohort in groups
            assert request.site in offer.cohort
    assert {e.cohort for e in bench.recorder.of(RoundStarted) if e.round <= ROUNDS} == {SITES}
    (told,) = [e.text for e in bench.recorder.of(Notice) if "summed in groups" in e.text]
    assert all(site in told for site in SITES)


def test_the_modes_agree_to_the_bit(honest: Any) -> None:
    """Groups come from the seed tree here, sums from one ring."""
    found = {honest(mode).outcome.last.adapter.digest for mode in ("off", "accounted", "real")}
    assert len(found) == 1


@MODES
def test_one_hostile_site_is_outvoted(bench: Any, honest: Any, mode: str) -> None:
    """It sends as much as the ring takes, in every round; the result stays in the honest groups' range."""
    votes = Votes(bench, mode)

    def tamper(name: str, request: Any, lanes: Any) -> Any:
        if name != TRAINING or request.site != "s05":
            return lanes
        return replace(lanes, coordinates=np.full_like(lanes.coordinates, 1500))

    last = votes.run(votes.transport(tamper=tamper)).last.adapter.vector.astype(np.float64)
    low = high = bench.initial.vector.astype(np.float64)
    for round in range(1, ROUNDS + 1):
        means = []
        for group in votes.groups(honest(mode).transport):
            if "s05" not in group:
                there = [bench.drawn(round, site) for site in group]
                means.append(sum(u * w for u, w in there) / sum(w for _, w in there))
        low, high = low + np.min(means, axis=0), high + np.max(means, axis=0)
    slack = rounding(bench) + 1e-5
    assert (last >= low - slack).all()
    assert (last <= high + slack).all()


def vanished(sites: Any, *, exchange: int, round: int) -> Any:
    """These sites give no contribution from one exchange of a round on, in all attempts."""

    def fault(request: Any, reply: Any) -> Any:
        if request.round != round or request.exchange < exchange or request.site not in sites():
            return [reply]
        kept = {name: message for name, message in reply.sums.items() if name != TRAINING}
        return [replace(reply, status="failed", code="internal", reason="KeyError", sums=kept)]

    return fault


@pytest.mark.parametrize("mode", ["accounted", "real"])
@pytest.mark.parametrize("exchange", [0, 4])
def test_a_round_survives_the_loss_of_a_group(bench: Any, mode: str, exchange: int) -> None:
    """Sixteen sites in four groups: one whose sum is never opened is left out, and told."""
    votes = Votes(bench, mode)
    sites = tuple(f"s{i:02}" for i in range(16))
    gone: set[str] = set()
    transport = votes.transport()

    def choose() -> set[str]:
        if not gone and transport.grouped["s00"].groups:
            gone.update(transport.grouped["s00"].groups[1][:2])
        return gone

    transport.fault = vanished(choose, exchange=exchange, round=1)
    outcome = votes.run(transport, sites)
    groups = votes.groups(transport)
    lost = {1: set(groups[1])}
    close(outcome.last.adapter, votes.expected(transport, lost), rounding(bench))
    assert bench.recorder.of(RoundBurnt) == []
    first = bench.recorder.of(RoundFolded)[0]
    assert set(first.missing) == set(groups[1])
    assert any("without the sum of a group" in e.text for e in bench.recorder.of(Notice))


@pytest.mark.parametrize("mode", ["accounted", "real"])
def test_too_few_groups_burn_the_round(bench: Any, mode: str) -> None:
    """Three groups are the least for one attacker; where one is lost, the others' sums are spent."""
    votes = Votes(bench, mode)
    transport = votes.transport()
    transport.fault = vanished(
        lambda: set(transport.grouped["s00"].groups[2][:3]) if transport.grouped["s00"].groups else set(),
        exchange=0,
        round=1,
    )
    outcome = votes.run(transport)
    (burnt,) = bench.recorder.of(RoundBurnt)
    assert burnt.round == 1
    assert "too few groups are left" in burnt.reason
    expected = bench.initial.vector + (votes.expected(transport, {}, 2) - votes.expected(transport, {}, 1))
    close(outcome.last.adapter, expected, rounding(bench))


def test_where_no_group_is_opened_the_run_can_be_resumed(bench: Any, honest: Any) -> None:
    """Nothing was spent: the round is asked for again, over the same groups, though all keys are new."""
    votes = Votes(bench, "real")
    transport = votes.transport(fault=vanished(lambda: set(SITES), exchange=0, round=2))
    with pytest.raises(QuorumError, match="round 2"):
        votes.run(transport)
    groups = votes.groups(transport)
    again = votes.transport()
    outcome = votes.run(again)
    assert votes.groups(again) == groups
    assert honest("real").outcome.last.adapter.digest == outcome.last.adapter.digest


def test_a_restarted_server_shows_the_sites_the_draw_that_it_kept(bench: Any) -> None:
    """Sites that know their draw do not draw again, and find the same groups in it."""
    votes = Votes(bench, "real")
    transport = votes.transport(fault=vanished(lambda: set(SITES), exchange=0, round=2))
    run = bench.run(transport, SITES, strategy=votes.strategy)
    with pytest.raises(QuorumError, match="round 2"):
        run_rounds(run, bench.initial)
    groups, before = votes.groups(transport), len(transport.asked)
    transport.fault = lambda request, reply: [reply]
    for grouped in transport.grouped.values():
        grouped.groups = ()
    with pytest.raises(QuorumError):  # the sites did take part in round 2, and do not a second time
        run_rounds(run, bench.initial)
    assert votes.groups(transport) == groups
    assert {r.exchange for r in transport.asked[before:] if r.round == 0} == {2}


def test_a_site_that_is_not_there_for_the_draw_is_not_in_the_run(bench: Any) -> None:
    """The others draw again without it."""

    def fault(request: Any, reply: Any) -> Any:
        silent = request.site == "s07" and request.round == 0
        return [replace(reply, status="failed", code="gone", reason="gone", sums={})] if silent else [reply]

    votes = Votes(bench, "real")
    transport = votes.transport(fault=fault)
    outcome = votes.run(transport)
    known = {site: grouped.groups for site, grouped in transport.grouped.items() if site != "s07"}
    assert len(set(known.values())) == 1
    assert sorted(s for group in known["s00"] for s in group) == [s for s in SITES if s != "s07"]
    assert outcome.reason == "completed"
    assert all("s07" not in e.cohort for e in bench.recorder.of(RoundStarted) if e.round <= ROUNDS)
    texts = [e.text for e in bench.recorder.of(Notice)]
    assert any("s07 is not in the draw of the groups" in text for text in texts)
    assert any("drawn again" in text and "s07" in text for text in texts)


def test_too_few_sites_for_a_draw_end_the_run(bench: Any) -> None:
    """Eleven do not make three groups of four."""
    votes = Votes(bench, "real")
    with pytest.raises(QuorumError, match="too few sites for the groups"):
        votes.run(votes.transport(), SITES[:11])


def test_a_kept_draw_of_another_run_is_refused(bench: Any) -> None:
    """A journal that was copied from another run is no draw of this one."""
    votes = Votes(bench, "real")
    votes.run(votes.transport())
    other = Votes(bench, "real", seed=8)
    run = bench.run(other.transport(), SITES, strategy=other.strategy)
    (bench.folder / "rounds.jsonl").unlink()
    with pytest.raises(PeerError, match="of another run or plan"):
        run_rounds(run, bench.initial)


@pytest.mark.parametrize("mode", ["accounted", "real"])
def test_a_sum_beyond_the_bounds_costs_its_group_and_no_round(bench: Any, mode: str) -> None:
    """A hostile site that pushes its group's sum out of bounds in every round stops nobody else's."""
    votes = Votes(bench, mode)
    sites = tuple(f"s{i:02}" for i in range(16))

    def huge(name: str, request: Any, lanes: Any) -> Any:
        if name != TRAINING or request.site != "s05":
            return lanes
        return replace(lanes, counters=lanes.counters + np.array([10_000, 0, 0], dtype=np.uint64))

    transport = votes.transport(tamper=huge)
    outcome = votes.run(transport, sites)
    hostile = next(group for group in votes.groups(transport) if "s05" in group)
    lost = {round: set(hostile) for round in (1, 2)}
    close(outcome.last.adapter, votes.expected(transport, lost), rounding(bench))
    assert bench.recorder.of(RoundBurnt) == []
    texts = [e.text for e in bench.recorder.of(Notice) if "without the sum of a group" in e.text]
    assert len(texts) == ROUNDS
    assert "summed weight is not possible" in texts[0]
