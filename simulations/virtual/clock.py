"""The virtual clock: a transport under which messages and work take the time that they would take.

What sites do is done for real, by whatever runs below; when their answers come is reckoned:

    sent → latency + bytes ÷ bandwidth → [busy? wait] → compute → bytes ÷ bandwidth + latency → there

The round loop keeps its deadlines by this clock, and hears the answers in its order, so that who is late,
what is asked again and what is given up is decided by the very code of a deployment. Nothing of it depends on
how fast this machine is, nor on the order in which it does the work.

A site does one thing after the other: what it has begun for an exchange that no longer waits for it, it ends
first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from tempfile import TemporaryFile
from typing import IO, Final, Self

from wardround.core.messages import BEHIND, Reply, Request
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.server.transport import Transport
from wardround.simulations.outages import CODE
from wardround.simulations.virtual.sites import VirtualSites

LOOK_S: Final = 1.0
IN_MEMORY: Final = 2**26
"""Bytes of answers that wait for their moment in memory; more of them wait on disk."""
JUMPS: Final = 10_000
"""So often a round waits for another site before it goes on with whom it has."""


@dataclass
class RoundTimes:
    """What a round took so far.

    Attributes:
        began: When it began to wait for sites, or to ask them.
        waited_s: Until enough were there.
        late: Sites that let a deadline pass.
        work_s: Site → seconds that its messages and its work took.
    """

    began: float = 0.0
    waited_s: float = 0.0
    late: set[str] = field(default_factory=set)
    work_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sent:
    request: Request
    at: float
    size: int


class _Held:
    """Answers that wait for their moment: in memory, and on disk what is beyond `IN_MEMORY`."""

    def __init__(self) -> None:
        self._here: dict[str, tuple[Reply, int]] = {}
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._places: dict[str, list[tuple[str, int, int]]] = {}

    def put(self, reply: Reply, size: int) -> None:
        if self._bytes + reply.size > IN_MEMORY:
            self._places[reply.site] = [
                (name, self._write(message), len(message)) for name, message in reply.sums.items()
            ]
            reply = replace(reply, sums={})
        self._here[reply.site] = reply, size
        self._bytes += reply.size

    def take(self, site: str) -> tuple[Reply, int]:
        reply, size = self._here.pop(site)
        self._bytes -= reply.size
        places = self._places.pop(site, None)
        if places is None or self._file is None:
            return reply, size
        sums = {}
        for name, place, length in places:
            self._file.seek(place)
            sums[name] = self._file.read(length)
        return replace(reply, sums=sums), size

    def clear(self) -> None:
        self._here.clear()
        self._places.clear()
        self._bytes = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, message: bytes) -> int:
        if self._file is None:
            self._file = TemporaryFile()  # noqa: SIM115 - closed by `clear`
        place = self._file.seek(0, 2)
        self._file.write(message)
        return place


@dataclass
class VirtualClock:
    """A transport in virtual time; a context, which it holds a temporary file for.

    Before the first round, while groups are drawn, no time passes.

    Attributes:
        inner: Carries the messages, and does the work.
        sites: How long what takes.
        now: Virtual seconds since the run began.
        busy: Site → when what it has begun ends, where nobody waits for it.
        times: Of the round that is under way.
    """

    inner: Transport
    sites: VirtualSites
    now: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    times: RoundTimes = field(default_factory=RoundTimes)
    _sent: dict[str, _Sent] = field(default_factory=dict, repr=False)
    _due: list[tuple[float, str]] = field(default_factory=list, repr=False)
    _held: _Held = field(default_factory=_Held, repr=False)
    _work: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    _followed: dict[str, int] = field(default_factory=dict, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()

    def clock(self) -> float:
        """By which the loop keeps its deadlines."""
        return self.now

    def away(self, round: int) -> frozenset[str]:
        """Sites that are not there as a round begins; it waits until enough are, if that ever is so."""
        names, presence, least = list(self.sites.work), self.sites.presence, self.sites.least
        began = at = self.now
        for _ in range(JUMPS):
            there = {site for site in names if presence.there(site, at, round)}
            if len(there) >= least:
                break
            moments = sorted(presence.next(site, at, round) for site in names)
            if math.isinf(moments[least - 1]):
                at = began
                break
            at = moments[least - 1]  # before that too few can be there
        else:
            at = began
        self.now = at
        self.times.waited_s += at - began
        return frozenset(site for site in names if not presence.there(site, at, round))

    def end_round(self) -> RoundTimes:
        """What the round took that ends now; another one begins."""
        self._give_up()
        ended, self.times = self.times, RoundTimes(began=self.now)
        return ended

    def send(self, requests: Sequence[Request]) -> Mapping[str, int]:
        """As `Transport`. Nobody waits for earlier answers any more."""
        self._give_up()
        sizes = self.inner.send(requests)
        for request in requests:
            self._sent[request.site] = _Sent(request, self.now, sizes.get(request.site, 0))
        return sizes

    def send_more(self, request: Request) -> int:
        """As `Transport`. In time it costs what the first request did.

        Who is sent a broadcast although it was to make it itself is, as a rule, a site of a simulation that
        was resumed; in one that was not it would have made it.
        """
        size = self.inner.send_more(request)
        self._sent[request.site] = _Sent(request, self.now, self._followed.pop(request.site, size))
        return size

    def receive(self, timeout_s: float) -> Sequence[tuple[Reply, int]]:
        """As `Transport`: the answer that comes next, if it comes in time; time passes until then."""
        while self._sent:
            for reply, size in self.inner.receive(LOOK_S):
                sent = self._sent.pop(reply.site, None)
                if sent is not None:
                    self._reckon(sent, reply, size)
        if self._due and self._due[0][0] < self.now + timeout_s:
            at, site = heappop(self._due)
            self.now = max(self.now, at)
            return [self._held.take(site)]
        self.now += timeout_s
        return []

    def _reckon(self, sent: _Sent, reply: Reply, size: int) -> None:
        request, site, round = sent.request, reply.site, sent.request.round
        if round < 1:
            return self._hold(sent.at, reply, size)
        if reply.code == BEHIND:
            self._followed[site] = sent.size
            return self._hold(sent.at, reply, size)
        if reply.code == CODE:
            return None  # never heard again, whatever the loop waits for
        first = (request.stage, request.attempt, request.exchange) == (0, 0, 0) and reply.status != "refused"
        down, up = self.sites.down_s(site, round, sent.size), self.sites.up_s(site, round, size)
        compute = self.sites.compute_s(
            site,
            round,
            trains=first and TRAINING in request.sums,
            scores=first and EVALUATION in request.sums,
        )
        after = self.sites.presence.after
        arrived = after(site, sent.at, down, round)
        began = max(arrived, self.busy.get(site, 0.0))
        ended = after(site, began, compute, round)
        self._work[site] = began, ended
        self.times.work_s[site] = self.times.work_s.get(site, 0.0) + down + compute + up
        return self._hold(after(site, ended, up, round), reply, size)

    def _hold(self, at: float, reply: Reply, size: int) -> None:
        if math.isinf(at):
            self.times.late.add(reply.site)
            return
        self._held.put(reply, size)
        heappush(self._due, (at, reply.site))

    def _give_up(self) -> None:
        """Who has not been heard is late: it ends what it has begun, and never begins the rest."""
        for _, site in self._due:
            self.times.late.add(site)
            began, ended = self._work.get(site, (0.0, 0.0))
            if began < self.now:
                self.busy[site] = ended
        self.busy = {site: until for site, until in self.busy.items() if until > self.now}
        self._due.clear()
        self._held.clear()
        self._work.clear()
        self._followed.clear()
        self._sent.clear()
