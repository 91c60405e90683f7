"""Sites of a simulation that train together, or ahead of their turn: which ones, and what they made.

Who trains in a round stands in the requests that the server sends. They are dealt out by size, so many at a
time, whatever order the messages come in: what they make depends on who is asked and on how many go at a
time, and on nothing else. The first of a lot that is asked has all of it trained, in this process or by other
ones, which work at the next lots meanwhile; each of the others takes its part when it comes to it, where it
would train the very same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np

from wardround.client.site import Site
from wardround.client.work import job_ahead
from wardround.core.errors import ConfigError, StorageError
from wardround.core.messages import Reply, Request
from wardround.core.packed import Packed
from wardround.core.plan import TrainingPlan
from wardround.privacy.sums.contract import TRAINING
from wardround.server.transport import Transport
from wardround.strategies.contract import Broadcast
from wardround.training.device_memory import out_of_memory
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.together import train_together, why_alone
from wardround.training.workbench import Workbench

LOG = logging.getLogger(__name__)
ROWS_AT_ONCE: Final = 16
"""Up to so many rows a step a CPU is faster with several sites' than with one's (docs/benchmarks.md)."""
LOTS: Final = 4
Key = tuple[str, int, str]
"""Run, round, site."""
Made: TypeAlias = LocalResult | Exception
"""What a job gave, or what went wrong with it."""


def sites_at_once(wanted: int | Literal["auto"], plan: TrainingPlan, bench: Workbench, *, sites: int) -> int:
    """So many sites train together under a plan.

    `auto` leaves at least `LOTS` of them to a round, whoever trains: workers have something to do then, and
    what comes out does not depend on how many they are. A private batch is as many rows as it has patients
    in the mean.

    Args:
        wanted: So many, or `auto`.
        plan: Of the run.
        bench: What it trains on.
        sites: That train in a round.

    Raises:
        ConfigError: More than one are asked for, and these cannot.
    """
    if wanted == 1:
        return 1
    private = plan.privacy is not None and plan.privacy.trains_privately
    banded = plan.privacy is not None and plan.privacy.mechanism == "banded"
    reason = "correlated noise goes on from where a site's last round left it" if banded else why_alone(bench)
    if reason:
        if wanted == "auto":
            return 1
        raise ConfigError(
            "these sites cannot train together", found=reason, expected="simulation.together=1",
            remedy="leave simulation.together at 1; dropout goes with model.dropout=off and "
            "adapter.options.dropout=0",
        )  # fmt: skip
    batch, most = plan.local.batch_size, bench.machine.microbatch_size
    if wanted == "auto":
        several = ROWS_AT_ONCE // batch if bench.device.type == "cpu" else 1  # measured on CPUs alone
        several = min(several, sites // LOTS)
    else:
        several = wanted
    if most is None or (private and wanted != "auto"):  # microbatches of a private step hold anybody's rows
        return max(1, several)
    return max(1, min(several, most // batch))


class Crew(Protocol):
    """Whoever trains the sites of a simulation."""

    @property
    def ahead(self) -> int:
        """So many further lots of sites may be under way while one is waited for."""

    def start(self, jobs: Sequence[LocalJob]) -> Callable[[], Sequence[Made]]:
        """Begin a lot; what is returned waits for what each job made.

        Raises:
            WardroundError: Nobody is there to train them; so may what is returned.
        """


@dataclass
class Trainer:
    """Trains lots of sites at one bench, in this process.

    Attributes:
        bench: Model, adapter and device.
        apart: Whether memory does not hold several sites at once.
    """

    bench: Workbench
    apart: bool = False

    def __call__(self, jobs: Sequence[LocalJob]) -> list[Made]:
        """What each job made, or what went wrong with it; one by itself to the bits of `train_locally`."""
        if len(jobs) > 1 and not self.apart:
            try:
                return train_together(self.bench, jobs)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                LOG.warning(
                    "the device's memory does not hold %d sites at once: they train by themselves", len(jobs)
                )
                self.apart = True
        return [self._alone(job) for job in jobs]

    def _alone(self, job: LocalJob) -> Made:
        try:
            return train_locally(self.bench, job)
        except Exception as error:  # noqa: BLE001 - it is the site's, and raised in its turn
            return error


@dataclass(frozen=True)
class Here:
    """A crew of one: this process, which trains a lot when it is begun."""

    train: Callable[[Sequence[LocalJob]], Sequence[Made]]
    ahead: int = 0

    def start(self, jobs: Sequence[LocalJob]) -> Callable[[], Sequence[Made]]:
        """As `Crew`."""
        made = self.train(jobs)
        return lambda: made


@dataclass(frozen=True)
class Lot:
    """Sites that were begun together.

    Attributes:
        jobs: Site → its job.
        wait: Gives what they made, in this order.
    """

    jobs: Mapping[str, LocalJob]
    wait: Callable[[], Sequence[Made]]


@dataclass
class SharedPasses:
    """The sites of one arm, so many at a time.

    Attributes:
        crew: Trains them.
        size: So many at a time.
        sites: By name.
    """

    crew: Crew
    size: int
    sites: Mapping[str, Site] = field(default_factory=dict)
    _asked: tuple[str, ...] = ()
    _begun: dict[int, Lot | None] = field(default_factory=dict, repr=False)
    _made: dict[Key, tuple[LocalJob, Made]] = field(default_factory=dict, repr=False)

    @property
    def used(self) -> bool:
        """Whether sites have anything of it."""
        return self.size > 1 or self.crew.ahead > 0

    def announce(self, requests: Sequence[Request]) -> Sequence[Request]:
        """These are on their way to the sites; gives them in the order in which they should go."""
        training = {
            request.site
            for request in requests
            if request.exchange == 0 and request.stage == 0 and TRAINING in request.sums
        }
        if not training or not self.used:
            return requests
        # Those of like size together, the largest first: a site with fewer steps leaves the others' pass
        # sooner, and no worker is left with a large one at the end.
        order = sorted(requests, key=lambda request: (-len(self.sites[request.site].training), request.site))
        self._asked = tuple(
            request.site
            for request in order
            if request.site in training and (self.size == 1 or self.sites[request.site].rank is None)
        )
        self._begun.clear()
        self._made.clear()
        return order

    def __call__(
        self, request: Request, broadcast: Broadcast, site: Site, job: LocalJob
    ) -> LocalResult | None:
        """What the job gives; all who go with this site train where none of them has yet.

        Raises:
            Exception: What went wrong with this site's part.
        """
        if not self.used or site.name not in self._asked or not self._goes(job):
            return None
        key = (site.run_id, request.round, site.name)
        if key not in self._made:
            self._finish(request, broadcast, site, job)
        made = self._made.pop(key, None)
        if made is None or not same(made[0], job):
            return None
        if isinstance(made[1], Exception):
            raise made[1]
        return made[1]

    def _goes(self, job: LocalJob) -> bool:
        """Whether a job may go with others, or to another process."""
        if job.checkpoints is not None or job.resumed is not None:
            return False
        if job.private is not None and job.private.cost.bands:
            return False  # its noise goes on from where the last round left it, which is known in its turn
        return self.size == 1 or job.private is None or self.sites[job.site].rank is None

    def _finish(self, request: Request, broadcast: Broadcast, site: Site, job: LocalJob) -> None:
        """Wait for this site's lot, once the next ones are under way as well."""
        own = self._asked.index(site.name) // self.size
        for number in range(own, min(own + self.crew.ahead + 1, -(-len(self._asked) // self.size))):
            if number not in self._begun:
                self._begun[number] = self._begin(number, request, broadcast, {site.name: job})
        lot, self._begun[own] = self._begun[own], None
        if lot is None or site.name not in lot.jobs:
            return
        for (name, begun), result in zip(lot.jobs.items(), lot.wait(), strict=True):
            self._made[site.run_id, request.round, name] = begun, result

    def _begin(
        self, number: int, request: Request, broadcast: Broadcast, known: Mapping[str, LocalJob]
    ) -> Lot | None:
        jobs: dict[str, LocalJob] = {}
        for name in self._asked[number * self.size : (number + 1) * self.size]:
            try:
                found = known.get(name) or job_ahead(request, broadcast, self.sites[name])
            except StorageError:
                continue  # it says so itself when it comes to it
            if self._goes(found):
                jobs[name] = found
        return Lot(jobs, self.crew.start(list(jobs.values()))) if jobs else None


def same(one: LocalJob, other: LocalJob) -> bool:
    """Whether two jobs of a site train the same."""
    return (
        (one.round, one.site, one.work) == (other.round, other.site, other.work)
        and one.encoded is other.encoded
        and one.before.digest == other.before.digest
        and (one.rules.proximal, one.rules.frozen, one.rules.mean_gradient)
        == (other.rules.proximal, other.rules.frozen, other.rules.mean_gradient)
        and _noise(one) == _noise(other)
        and _digest(one.rules.gradient_offset) == _digest(other.rules.gradient_offset)
        and _same_state(one.optimiser_state or {}, other.optimiser_state or {})
    )


def _noise(job: LocalJob) -> tuple[object, ...]:
    """What its privacy is made of; the words for batches and noise follow from round and site."""
    private = job.private
    return () if private is None else (private.rules, private.cost, private.clip_norm, private.done)


def _digest(packed: Packed | None) -> str:
    return "" if packed is None else packed.digest


def _same_state(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(np.asarray(one[name]), np.asarray(other[name])) for name in one
    )


@dataclass
class Announcing:
    """A transport that tells what it sends.

    Attributes:
        inner: Sends it.
        announce: Is told before, and gives them in the order in which they go.
    """

    inner: Transport
    announce: Callable[[Sequence[Request]], Sequence[Request]]

    def send(self, requests: Sequence[Request]) -> Mapping[str, int]:
        """As `Transport`."""
        return self.inner.send(self.announce(requests))

    def send_more(self, request: Request) -> int:
        """As `Transport`."""
        return self.inner.send_more(request)

    def receive(self, timeout_s: float) -> Sequence[tuple[Reply, int]]:
        """As `Transport`."""
        return self.inner.receive(timeout_s)
