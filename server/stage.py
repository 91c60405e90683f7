"""What a stage of a round is asked by, asked for, and what came of it: values of `exchange.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wardround.core.errors import PeerError
from wardround.core.packed import Layout, Packed
from wardround.core.plan import TrainingPlan
from wardround.privacy.noise.source import RandomSource
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.aggregation import Aggregation
from wardround.runtime.events import EventStream
from wardround.server.attempts import Attempts
from wardround.server.relay_journals import RelayJournals
from wardround.server.round_control import RoundControl, Unasked
from wardround.server.transport import Transport

POLL_S = 0.2


@dataclass(frozen=True)
class Channel:
    """How the loop speaks with the sites.

    Attributes:
        run_id: Identifies the run in every message.
        arm: For the events.
        plan: What is trained.
        transport: Reaches the sites.
        aggregation: How contributions become sums.
        events: Where the run tells what happens.
        clock: Seconds by which deadlines are kept.
        noise: Round → words for the noise that the server adds.
        simulation: Says "not private": these words may come from a seed.
        grace_s: So long an exchange still waits for the others once as many have answered as every one of its
            sums needs; None waits until the deadline.
        control: Whether somebody wants the run to stop.
        attempts: How often each round was asked for, where sites outlive the server; a simulation's do not.
        journals: Of the sums' relays, likewise.
        following: Sites that answered to the last broadcast: they can make the next one themselves, of the
            opened sums. It is a guess: a site that cannot says so, and is sent it.
        poll_s: The loop looks at what it is asked at least so often while it waits for replies.
    """

    run_id: str
    arm: str
    plan: TrainingPlan
    transport: Transport
    aggregation: Aggregation
    events: EventStream
    clock: Callable[[], float]
    noise: Callable[[int], RandomSource]
    simulation: bool
    grace_s: float | None = None
    control: RoundControl = field(default_factory=Unasked)
    attempts: Attempts | None = None
    journals: RelayJournals | None = None
    following: set[str] = field(default_factory=set)
    poll_s: float = POLL_S


def look_s(channel: Channel, deadline: float) -> float:
    """Seconds of one look for replies: never beyond the deadline."""
    return min(channel.poll_s, max(0.0, deadline - channel.clock()))


@dataclass(frozen=True)
class Stage:
    """What one stage of a round asks for.

    Attributes:
        round: Counts from 1.
        stage: Counts from 0.
        broadcast: What everybody is sent.
        statistics: Layout of the contributions.
        asked: Name of a sum → the sites that are asked for it, sorted. A sum of nobody is not asked for.
            A site is in one of the sums that differ by their group only.
        quorum: Name of a sum → contributions that it needs at least.
        absent: Sites that are not asked although they are in the cohort.
        opened: The sums of the round before, for the sites to check; in a later stage the round's own so far.
        alone: Of a strategy that sees individuals, where each of its sums is one site's: so many of them are
            enough, and no site can make the broadcast that follows. 0: sums of several sites, each of which
            is needed.
    """

    round: int
    stage: int
    broadcast: Packed
    statistics: Layout
    asked: Mapping[str, tuple[str, ...]]
    quorum: Mapping[str, int]
    absent: frozenset[str] = frozenset()
    opened: tuple[bytes, ...] = ()
    alone: int = 0


@dataclass
class Collected:
    """What came of a stage.

    Attributes:
        sums: Name → what was opened.
        lost: Name → why a sum was not.
        burnt: Sums that sites may have helped to open, and that cannot be opened any more.
        liars: Sites that were caught.
        bytes_up: Of all replies.
        up: Site → bytes of its replies.
        down: Site → bytes of what it was sent.
        epsilon: Site → what it says to have spent in this run, where it trains privately.
        late: Sites that let a deadline pass: a further attempt takes their answers and hardly waits for them.
    """

    sums: dict[str, Sum] = field(default_factory=dict)
    lost: dict[str, PeerError] = field(default_factory=dict)
    burnt: set[str] = field(default_factory=set)
    liars: set[str] = field(default_factory=set)
    bytes_up: int = 0
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    epsilon: dict[str, float] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
