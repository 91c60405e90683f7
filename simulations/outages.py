"""Sites of a simulation that are lost in a round: a site that a deployment would not hear from any more.

Whether, and from which exchange of the round on, is drawn from the run's seed for each round and site: the
same in every attempt at the round and in a resumed run, and independent of what the site would have answered.
A site that is lost before the first exchange neither sees the broadcast nor trains. Under secure aggregation
it may be lost in any later phase as well, its vector sent or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from wardround.core.messages import Reply, Request, reply_to
from wardround.core.plan import TrainingPlan
from wardround.core.seeds import Purpose, generator
from wardround.server.transport import Transport

CODE: Final = "simulated_outage"
PHASES: Final = {"real": 5, "accounted": 5}
"""Mode → exchanges of a round in which a site may be lost; elsewhere there is one."""


@dataclass
class Outages:
    """A transport that loses sites.

    Attributes:
        inner: Carries the others' messages.
        plan: Of the run: its seed and its mode.
        share: Probability that a site is lost in a round.
    """

    inner: Transport
    plan: TrainingPlan
    share: float
    _lost: deque[Reply] = field(default_factory=deque, repr=False)

    def send(self, requests: Sequence[Request]) -> Mapping[str, int]:
        """As `Transport`; those who are lost are sent nothing, and answer that they are."""
        self._lost.clear()
        gone = [request for request in requests if self._is_lost(request)]
        self._lost.extend(
            reply_to(
                request, status="failed", code=CODE, reason="the simulation took this site out of the round"
            )
            for request in gone
        )
        names = {request.site for request in gone}
        return self.inner.send([request for request in requests if request.site not in names])

    def send_more(self, request: Request) -> int:
        """As `Transport`."""
        return self.inner.send_more(request)

    def receive(self, timeout_s: float) -> Sequence[tuple[Reply, int]]:
        """As `Transport`; of the lost sites first."""
        if self._lost:
            lost = [(reply, 0) for reply in self._lost]
            self._lost.clear()
            return lost
        return self.inner.receive(timeout_s)

    def _is_lost(self, request: Request) -> bool:
        if request.round < 1:  # whoever is not in the draw of groups is not in the run
            return False
        draw = generator(self.plan.seed, Purpose.OUTAGE, round=request.round, site=request.site)
        lost, phase = draw.random() < self.share, int(draw.integers(PHASES.get(self.plan.secure.mode, 1)))
        return bool(lost) and (request.exchange >= phase or request.stage > 0)
