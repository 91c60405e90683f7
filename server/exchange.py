"""One stage of a round: what everybody is sent, and the sums that come of it.

    offer, with the broadcast → every phase of the sums (each answer checked as it comes) → open

Where too few answered, another attempt sums what the sites have kept, as long as that is safe.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from wardround.core.errors import PeerError, QuorumError
from wardround.core.messages import BEHIND, SECONDS, SPENT, Reply, Request, answers
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.sums.contract import TRAINING, Collector, plain_name
from wardround.privacy.sums.offers import offer_of
from wardround.privacy.sums.phased import PhasedCollector
from wardround.runtime.events import BytesMoved, Notice, RoundStarted, SiteReplied, SumOpened
from wardround.server.round_control import stopped
from wardround.server.stage import Channel, Collected, Stage, look_s

LATE_S = 5.0
"""So long a further attempt waits for sites that let a deadline pass, once everybody else has answered."""

LATER = 8
"""Number of the first exchange by which a restarted server goes on; no attempt has so many before."""


def collect(channel: Channel, stage: Stage) -> Collected:
    """Ask for the sums of a stage until they are opened, or no other attempt would be safe, or allowed.

    Raises:
        ConfigError: The ring is too narrow for so many sites.
        RunStoppedError: Somebody asked for it. What sites have sent by then is dropped, as if the server had
            died.
    """
    collected = Collected()
    asked = {name: sites for name, sites in stage.asked.items() if sites}
    first = 0 if channel.attempts is None else channel.attempts.first(stage.round, stage.stage)
    if first and channel.journals is not None:
        _finish(channel, stage, first - 1, asked, collected)
    for number in range(channel.plan.secure.attempts):
        pending = {name for name in asked if name not in collected.sums and name not in collected.burnt}
        if stage.alone and _alone(collected) >= stage.alone:
            pending = {name for name in pending if plain_name(name) != TRAINING}
        if not pending:
            break
        attempt = first + number
        if channel.attempts is not None:
            channel.attempts.begin(stage.round, stage.stage, attempt)
        sums = {name: asked[name] for name in pending}
        _Attempt(channel, stage, attempt, sums, collected, broadcasts=number == 0).run()
    up, down = dict(sorted(collected.up.items())), dict(sorted(collected.down.items()))
    channel.events.emit(BytesMoved(channel.arm, stage.round, up, down, stage.stage))
    return collected


def _alone(collected: Collected) -> int:
    """Contributions that were opened, where each is a sum."""
    return sum(
        bool(total.survivors) for name, total in collected.sums.items() if plain_name(name) == TRAINING
    )


def _finish(
    channel: Channel, stage: Stage, attempt: int, asked: Mapping[str, tuple[str, ...]], collected: Collected
) -> None:
    """Open the sums that sites were helping to open when the server ended."""
    assert channel.journals is not None  # noqa: S101 - the caller looked
    found = {
        name: collector
        for name in asked
        if (collector := channel.journals.opening(name, round=stage.round, stage=stage.stage)) is not None
    }
    if found:
        sites = {name: asked[name] for name in found}
        _Attempt(channel, stage, attempt, sites, collected, found, broadcasts=False).finish()


@dataclass
class _Cost:
    bytes_down: int = 0
    bytes_up: int = 0
    exchanges: int = 0
    server_s: float = 0.0
    site_s: float = 0.0


class _Attempt:
    """One attempt at the pending sums of a stage."""

    def __init__(
        self,
        channel: Channel,
        stage: Stage,
        attempt: int,
        asked: Mapping[str, tuple[str, ...]],
        collected: Collected,
        collectors: Mapping[str, PhasedCollector] | None = None,
        *,
        broadcasts: bool,
    ) -> None:
        self.broadcasts = broadcasts
        self.channel, self.stage, self.attempt, self.collected = channel, stage, attempt, collected
        self.restored = dict(collectors or {})
        self.collectors: dict[str, Collector] = dict(self.restored) or {
            name: self._collector(name, sites) for name, sites in sorted(asked.items())
        }
        self.costs = {name: _Cost() for name in asked}
        self.taken: Counter[str] = Counter()
        self.names = {(site, plain_name(name)): name for name, sites in asked.items() for site in sites}

    def _collector(self, name: str, sites: Sequence[str]) -> Collector:
        channel, stage = self.channel, self.stage
        offer = offer_of(
            channel.plan,
            name=plain_name(name),
            run_id=channel.run_id,
            round=stage.round,
            stage=stage.stage,
            attempt=self.attempt,
            cohort=sites,
            roster=channel.aggregation.roster.digest,
            broadcast=bytes.fromhex(stage.broadcast.digest),
            statistics=stage.statistics,
        )
        if channel.journals is not None and channel.plan.secure.mode == "real":
            signed = SignedOffer.by(channel.aggregation.signer, offer)
            return channel.journals.begin(name, signed, stage.quorum[name])
        return channel.aggregation.collector(plain_name(name), offer, quorum=stage.quorum[name])

    def run(self) -> None:
        """Every phase, then open what can be opened."""
        messages = {name: collector.begin() for name, collector in self.collectors.items()}
        for name, collector in self.collectors.items():
            for site in self.collected.liars | self.stage.absent:  # counts as dropped out
                collector.leave(site)
            messages[name] = {
                site: message for site, message in messages[name].items() if site in collector.waiting
            }
        self._go_on(0, messages)

    def finish(self) -> None:
        """Ask whoever was not heard of the sums that were being opened, then open them."""
        self._go_on(LATER, {name: found.asked_again() for name, found in self.restored.items()})

    def _go_on(self, exchange: int, messages: Mapping[str, Mapping[str, bytes]]) -> None:
        journalled = self.channel.journals is not None and self.channel.plan.secure.mode == "real"
        while any(messages.values()):
            self._exchange(exchange, messages)
            messages = {name: self._close(name) for name, of_sum in messages.items() if of_sum}
            burning = any(collector.burning for collector in self.collectors.values())
            if self.channel.attempts is not None and burning and not journalled:
                self.channel.attempts.opening()
            exchange += 1
        for name, collector in list(self.collectors.items()):
            self._open(name, collector)

    def _exchange(self, exchange: int, messages: Mapping[str, Mapping[str, bytes]]) -> None:
        channel, stage = self.channel, self.stage
        first = exchange == 0 and self.broadcasts
        following = self._following() if first else frozenset()
        requests = {
            site: Request(
                run_id=channel.run_id,
                plan_digest=channel.plan.digest,
                round=stage.round,
                site=site,
                sums={plain_name(name): of_sum[site] for name, of_sum in messages.items() if site in of_sum},
                broadcast=stage.broadcast if first and site not in following else None,
                follows=stage.broadcast.digest if site in following else "",
                opened=stage.opened if first else (),
                stage=stage.stage,
                attempt=self.attempt,
                exchange=exchange,
            )
            for site in sorted({site for of_sum in messages.values() for site in of_sum})
        }
        for name, of_sum in messages.items():
            self.costs[name].bytes_down += sum(map(len, of_sum.values()))
            self.costs[name].exchanges += bool(of_sum)
        sizes = channel.transport.send(list(requests.values()))
        self.collected.down.update(sizes)
        bytes_down = sum(sizes.values())
        if first:
            training = (sites for name, sites in stage.asked.items() if plain_name(name) == TRAINING)
            trains = tuple(sorted({site for sites in training for site in sites} - stage.absent))
            channel.events.emit(RoundStarted(channel.arm, stage.round, trains, bytes_down, stage.stage))
        self.taken.clear()
        waiting, deadline = dict(requests), channel.clock() + channel.plan.rounds.deadline_s
        self._wait(exchange, waiting)
        while waiting and channel.clock() < deadline:
            if self._enough(messages):  # a later look moves no deadline further away
                deadline = min(deadline, channel.clock() + self._grace_s(waiting.keys()))
            if channel.control.stop_requested:
                raise stopped()
            for reply, size in channel.transport.receive(look_s(channel, deadline)):
                self.collected.bytes_up += size
                if reply.site in requests:
                    self.collected.up[reply.site] += size
                request = waiting.get(reply.site)
                if request is not None and answers(reply, request):
                    if request.follows and reply.code == BEHIND:
                        waiting[reply.site] = self._send_whole(request)
                        continue
                    del waiting[reply.site]
                    self._settle(request, reply, size)
                    self._wait(exchange, waiting)
        channel.control.waiting_for("")
        self.collected.late |= waiting.keys()
        for request in waiting.values():
            self._leave(request, {})
            self._tell(request, status="late", code="deadline", reason="no answer before the deadline")

    def _grace_s(self, waiting: Iterable[str]) -> float:
        """Seconds for whoever is still waited for, once enough have answered."""
        grace_s = math.inf if self.channel.grace_s is None else self.channel.grace_s
        return min(grace_s, LATE_S) if self.collected.late.issuperset(waiting) else grace_s

    def _following(self) -> frozenset[str]:
        """Sites that need no broadcast; from here on those of this one count."""
        if self.stage.stage:
            return frozenset()
        found = frozenset(self.channel.following)
        self.channel.following.clear()
        return found

    def _send_whole(self, request: Request) -> Request:
        """The same request with its broadcast."""
        whole = replace(request, broadcast=self.stage.broadcast, follows="")
        self.collected.down[whole.site] += self.channel.transport.send_more(whole)
        return whole

    def _wait(self, exchange: int, waiting: Mapping[str, Request]) -> None:
        what = "the answers" if exchange == 0 else f"step {exchange + 1} of the sums"
        text = f"waits for {what} of round {self.stage.round}" if waiting else ""
        self.channel.control.waiting_for(text, waiting)

    def _settle(self, request: Request, reply: Reply, size: int) -> None:
        """Hand each sum its part of a reply; a site whose part is not right is quarantined by name."""
        wrong = self._not_asked(request, reply)
        answered = {} if wrong else reply.sums
        for name, message in answered.items():
            try:
                self._take(name, reply, message)
            except PeerError as error:  # the other sum counts all the same
                wrong = wrong or error.what
        self._leave(request, answered)
        if wrong:
            self._tell(request, status="quarantined", code="malformed_reply", reason=wrong, bytes_up=size)
            return
        checks = self.stage.stage == 0 and not self.stage.alone
        if request.exchange == 0 and checks and reply.status == "ok":
            self.channel.following.add(reply.site)
        if SPENT in reply.local:
            self.collected.epsilon[reply.site] = reply.local[SPENT]
        if request.exchange == 0 or reply.status != "ok":
            self._tell(
                request,
                status=reply.status,
                code=reply.code,
                reason=reply.reason,
                bytes_up=size,
                local=reply.local,
            )

    def _enough(self, messages: Mapping[str, Mapping[str, bytes]]) -> bool:
        """Whether every sum of this exchange can go on with what has come."""
        waited = [name for name, of_sum in messages.items() if of_sum and name in self.collectors]
        if self.stage.alone:
            alone = [name for name in waited if plain_name(name) == TRAINING]
            if _alone(self.collected) + sum(self.taken[name] for name in alone) < self.stage.alone:
                return False
            waited = [name for name in waited if name not in alone]
        return all(self.taken[name] >= self._least(name) for name in waited)

    def _least(self, name: str) -> int:
        hides = self.channel.plan.secure.mode in ("real", "accounted")
        return max(self.stage.quorum[name], self.collectors[name].offer.threshold if hides else 1)

    def _not_asked(self, request: Request, reply: Reply) -> str:
        """What makes the whole reply unusable; empty where nothing does."""
        if reply.plan_digest != self.channel.plan.digest:
            return "the reply follows another plan"
        if not reply.sums.keys() <= request.sums.keys():
            return "the reply carries a sum that was not asked for"
        if reply.status == "ok" and reply.sums.keys() != request.sums.keys():
            return "the reply lacks a sum that was asked for"
        return ""

    def _take(self, name: str, reply: Reply, message: bytes) -> None:
        own = self.names[reply.site, name]
        collector, cost = self.collectors.get(own), self.costs[own]
        if collector is None:
            return  # this sum is lost already
        cost.bytes_up += len(message)
        cost.site_s += max(0.0, reply.local.get(f"{SECONDS}.{name}", 0.0))
        started = time.perf_counter()
        try:
            collector.take(reply.site, message)
            self.taken[own] += 1
        finally:
            cost.server_s += time.perf_counter() - started

    def _leave(self, request: Request, answered: Mapping[str, bytes]) -> None:
        for name in request.sums:
            collector = self.collectors.get(self.names[request.site, name])
            if name not in answered and collector is not None:
                collector.leave(request.site)

    def _tell(self, request: Request, **fields: object) -> None:
        event = SiteReplied(
            self.channel.arm, request.round, request.site, "ok", stage=request.stage,
            attempt=request.attempt, exchange=request.exchange,
        )  # fmt: skip
        self.channel.events.emit(replace(event, **fields))  # type: ignore[arg-type]  # the event's own fields

    def _close(self, name: str) -> Mapping[str, bytes]:
        collector, started = self.collectors[name], time.perf_counter()
        try:
            return collector.close()
        except QuorumError as error:
            self._lose(name, error)
            return {}
        finally:
            self.costs[name].server_s += time.perf_counter() - started

    def _open(self, name: str, collector: Collector) -> None:
        started, cost = time.perf_counter(), self.costs[name]
        try:
            total = collector.open()
        except PeerError as error:
            self._lose(name, error)
            return
        self.collected.sums[name] = total
        self.collected.lost.pop(name, None)
        self._catch(collector)
        channel, stage = self.channel, self.stage
        channel.events.emit(
            SumOpened(
                channel.arm,
                stage.round,
                name,
                channel.plan.secure.mode,
                len(collector.offer.cohort),
                len(total.survivors),
                cost.exchanges,
                cost.bytes_down,
                cost.bytes_up,
                cost.site_s,
                cost.server_s + time.perf_counter() - started,
                stage.stage,
                self.attempt,
            )
        )

    def _lose(self, name: str, error: PeerError) -> None:
        collector = self.collectors.pop(name)
        self.collected.lost[name] = error
        self._catch(collector)
        if collector.burning:
            self.collected.burnt.add(name)

    def _catch(self, collector: Collector) -> None:
        for site in sorted(collector.liars - self.collected.liars):
            text = (
                f"{site} dealt or gave a wrong share in round {self.stage.round}: it is left out from here on"
            )
            self.channel.events.emit(Notice(self.channel.arm, "warning", text))
        self.collected.liars |= collector.liars
