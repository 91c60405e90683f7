"""Sites that answer at once, under a virtual clock (`pythonpath` in pyproject.toml finds this folder)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toy_plans import toy_plan

from wardround.core.messages import Reply, Request, reply_to
from wardround.simulations.virtual.clock import VirtualClock
from wardround.simulations.virtual.settings import Realism
from wardround.simulations.virtual.sites import VirtualSites, Work


@dataclass
class Instant:
    """A transport whose sites answer when they are asked, the last one first; a request is `down` bytes."""

    up: Mapping[str, int] = field(default_factory=dict)
    down: int = 1000
    change: Callable[[Request, Reply], Reply] = field(default=lambda _, reply: reply)
    asked: list[Request] = field(default_factory=list)
    answered: list[Request] = field(default_factory=list)

    def send(self, requests: Sequence[Request]) -> dict[str, int]:
        """So many bytes each."""
        self.asked = list(requests)
        return {request.site: self.down for request in requests}

    def send_more(self, request: Request) -> int:
        """Ten times as many."""
        self.asked.append(request)
        return 10 * self.down

    def receive(self, timeout_s: float) -> list[tuple[Reply, int]]:
        """One of them."""
        if not self.asked:
            return []
        request = self.asked.pop()
        self.answered.append(request)
        size = self.up.get(request.site, 500)
        sums = {"training": bytes([len(request.site)]) * size}
        return [(self.change(request, reply_to(request, sums=sums)), size)]


def virtual_clock(
    inner: Instant, names: Sequence[str], *, steps: float = 10.0, held_out: float = 4.0, **realism: Any
) -> VirtualClock:
    """A clock over sites of equal work; keyword arguments are the realism's."""
    work = {name: Work(steps, held_out) for name in names}
    return VirtualClock(inner, VirtualSites.of(Realism(**realism), toy_plan(), work, 1))


def asking(site: str, **more: Any) -> Request:
    """What a site is asked."""
    given: dict[str, Any] = {"round": 1, "sums": {"training": b"", "evaluation": b""}} | more
    return Request(run_id="run", plan_digest="", site=site, **given)


def heard(clock: VirtualClock, until: float) -> list[tuple[str, float]]:
    """Sites in the order in which they are heard until then, with the clock."""
    found: list[tuple[str, float]] = []
    while clock.clock() < until:
        found += [(reply.site, clock.clock()) for reply, _ in clock.receive(until - clock.clock())]
    return found
