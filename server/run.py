"""Everything that one run of the round loop needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wardround.core.plan import TrainingPlan
from wardround.privacy.noise.source import RandomSource, SystemSource
from wardround.privacy.sums.aggregation import Aggregation
from wardround.runtime.events import EventStream
from wardround.server.attempts import Attempts
from wardround.server.folded import BetweenStages
from wardround.server.journal import Journal
from wardround.server.relay_journals import RelayJournals
from wardround.server.round_control import RoundControl, Unasked
from wardround.server.stage import POLL_S, Channel
from wardround.server.transport import Transport
from wardround.strategies.contract import ServerState, SumStrategy


@dataclass(frozen=True)
class Run:
    """Everything one run of the loop needs.

    Attributes:
        run_id: Identifies the run in every message.
        arm: `federated`, `centralised` or `local/SITE`, for the events.
        plan: What is trained.
        strategy: How contributions become the next state.
        sites: Every site of the run, sorted.
        transport: Reaches the sites.
        aggregation: How contributions become sums.
        journal: Makes each round durable.
        events: Where the run tells what happens.
        on_state: Called with each new state (and the one it starts from) before the next request is sent.
        clock: Seconds by which the deadline of an exchange is kept. How long things took is always told in
            the wall clock's seconds.
        noise: Round → words for the noise that the server adds; from the operating system, but in a
            simulation.
        simulation: Says "not private": the noise may come from a seed.
        grace_s: So long an exchange waits for the others once enough have answered; None: until the deadline.
        control: What people ask of the run while it trains.
        attempts: How often each round was asked for, where sites outlive the server; a simulation's do not.
        journals: Of the sums' relays, likewise.
        between: What a round's first stage gave, likewise.
        following: As of `Channel`.
        poll_s: As of `Channel`.
        away: Round → sites that cannot be reached as it begins: they are asked for nothing in it. Called
            once, and it may take its time.
    """

    run_id: str
    arm: str
    plan: TrainingPlan
    strategy: SumStrategy
    sites: tuple[str, ...]
    transport: Transport
    aggregation: Aggregation
    journal: Journal
    events: EventStream
    on_state: Callable[[ServerState], None] = field(default=lambda _: None)
    clock: Callable[[], float] = time.monotonic
    noise: Callable[[int], RandomSource] = field(default=lambda _: SystemSource("noise of a sum"))
    simulation: bool = False
    grace_s: float | None = None
    control: RoundControl = field(default_factory=Unasked)
    attempts: Attempts | None = None
    journals: RelayJournals | None = None
    between: BetweenStages | None = None
    following: set[str] = field(default_factory=set)
    poll_s: float = POLL_S
    away: Callable[[int], frozenset[str]] = field(default=lambda _: frozenset())

    @property
    def channel(self) -> Channel:
        """What `exchange.py` needs of it."""
        return Channel(
            self.run_id,
            self.arm,
            self.plan,
            self.transport,
            self.aggregation,
            self.events,
            self.clock,
            self.noise,
            self.simulation,
            self.grace_s,
            self.control,
            self.attempts,
            self.journals,
            self.following,
            self.poll_s,
        )
