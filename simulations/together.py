"""Sites of a simulation that train together, or ahead of their turn: which ones, and what they made.

Who trains in a round stands in the requests that the server sends. They are dealt out by size, so many at a
time, whatever order the messages come in: what they make depends on who is asked and on how many go at a
time, and on nothing else. The first of a lot that is asked has all of it trained, in this process or by other
ones, which work at the next lots meanwhile; each of the others takes its part when it comes to it, where it
would train the very same. What other processes train they score as well: a site's held-back rows go with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol, TypeAlias, cast

import numpy as np

from wardround.client.site import Site
from wardround.client.work import job_ahead, scoring_of
from wardround.core.errors import ConfigError, WardroundError
from wardround.core.messages import Reply, Request
from wardround.core.packed import Counters, Packed
from wardround.core.plan import TrainingPlan
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.server.transport import Transport
from wardround.strategies.contract import Broadcast
from wardround.training.device_memory import out_of_memory
from wardround.training.evaluation import ScoringJob, score
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.together import train_together, why_alone
from wardround.training.workbench import Workbench

LOG = logging.getLogger(__name__)
ROWS_AT_ONCE: Final = 16
"""Up to so many rows a step a CPU is faster with several sites' than with one's (docs/benchmarks.md)."""
LOTS: Final = 4
Job: TypeAlias = LocalJob | ScoringJob
Made: TypeAlias = LocalResult | Counters | Exception
"""What a job gave, or what went wrong with it."""
Key = tuple[str, int, str, type[Job]]
"""Run, round, site, and whether it trains or scores."""


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
    """Whoever trains the sites of a simulation, and scores."""

    @property
    def ahead(self) -> int:
        """So many further lots of sites may be under way while one is waited for."""

    def start(self, jobs: Sequence[Job]) -> Callable[[], Sequence[Made]]:
        """Begin a lot; what is returned waits for what each job made.

        Raises:
            WardroundError: Nobody is there to train them; so may what is returned.
        """


@dataclass
class Trainer:
    """Trains lots of sites at one bench, in this process, and scores what is in them.

    Attributes:
        bench: Model, adapter and device.
        apart: Whether memory does not hold several sites at once.
    """

    bench: Workbench
    apart: bool = False

    def __call__(self, jobs: Sequence[Job]) -> list[Made]:
        """What each job made, or what went wrong with it; one by itself to the bits of `train_locally`."""
        trained = iter(self._trained([job for job in jobs if isinstance(job, LocalJob)]))
        return [next(trained) if isinstance(job, LocalJob) else self._alone(job) for job in jobs]

    def _trained(self, jobs: Sequence[LocalJob]) -> Sequence[Made]:
        if len(jobs) > 1 and not self.apart:
            try:
                return train_together(self.bench, [_copied(job) for job in jobs])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                LOG.warning(
                    "the device's memory does not hold %d sites at once: they train by themselves", len(jobs)
                )
                self.apart = True
        return [self._alone(job) for job in jobs]

    def _alone(self, job: Job) -> Made:
        try:
            return train_locally(self.bench, job) if isinstance(job, LocalJob) else score(self.bench, job)
        except Exception as error:  # noqa: BLE001 - it is the site's, and raised in its turn
            return error


@dataclass(frozen=True)
class Here:
    """A crew of one: this process, which trains a lot when it is begun."""

    train: Callable[[Sequence[Job]], Sequence[Made]]
    ahead: int = 0

    def start(self, jobs: Sequence[Job]) -> Callable[[], Sequence[Made]]:
        """As `Crew`."""
        made = self.train(jobs)
        return lambda: made


@dataclass(frozen=True)
class Lot:
    """Sites that were begun together.

    Attributes:
        jobs: Of the sites.
        wait: Gives what they made, in this order.
    """

    jobs: Mapping[Key, Job]
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
    _training: frozenset[str] = frozenset()
    _scoring: frozenset[str] = frozenset()
    _begun: dict[int, Lot | None] = field(default_factory=dict, repr=False)
    _made: dict[Key, tuple[Job, Made]] = field(default_factory=dict, repr=False)

    @property
    def used(self) -> bool:
        """Whether sites have anything of it."""
        return self.size > 1 or self.crew.ahead > 0

    def announce(self, requests: Sequence[Request]) -> Sequence[Request]:
        """These are on their way to the sites; gives them in the order in which they should go."""
        first = [request for request in requests if (request.exchange, request.stage) == (0, 0)]
        training = frozenset(request.site for request in first if TRAINING in request.sums)
        scoring = frozenset(request.site for request in first if EVALUATION in request.sums)
        if not self.crew.ahead:
            scoring = frozenset()  # each site scores in its turn as well as this process would ahead of it
        if not training | scoring or not self.used:
            return requests
        # Those of like size together, the largest first: a site with fewer steps leaves the others' pass
        # sooner, and no worker is left with a large one at the end.
        order = sorted(requests, key=lambda request: (-len(self.sites[request.site].training), request.site))
        names = [request.site for request in order]
        # Who trains together does not depend on who else scores.
        self._asked = tuple(
            [name for name in names if name in training]
            + [name for name in names if name in scoring - training]
        )
        self._training, self._scoring = training, scoring
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
        if not self.used or site.name not in self._training or not self._goes(job):
            return None
        return cast("LocalResult | None", self._taken(request, broadcast, site, job))

    def scored(self, request: Request, broadcast: Broadcast, site: Site, job: ScoringJob) -> Counters | None:
        """What the job counts, where a worker does it: with the site's training, if it trains as well.

        Raises:
            Exception: What went wrong with it.
        """
        if site.name not in self._scoring:
            return None
        return cast("Counters | None", self._taken(request, broadcast, site, job))

    def _taken(
        self, request: Request, broadcast: Broadcast, site: Site, job: Job
    ) -> LocalResult | Counters | None:
        """What was made of this very job; None where it was another one, or has been taken."""
        key = _key(request, site, job)
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
        if self.size == 1 or job.private is None:
            return True
        # Gradients of single rows are recorded at one rank.
        return job.rest is None and self.sites[job.site].rank is None

    def _finish(self, request: Request, broadcast: Broadcast, site: Site, job: Job) -> None:
        """Wait for this site's lot, once the next ones are under way as well."""
        own = self._asked.index(site.name) // self.size
        for number in range(own, min(own + self.crew.ahead + 1, -(-len(self._asked) // self.size))):
            if number not in self._begun:
                known = {_key(request, site, job): job}
                self._begun[number] = self._begin(number, request, broadcast, known)
        lot, self._begun[own] = self._begun[own], None
        if lot is not None:
            for (key, begun), result in zip(lot.jobs.items(), lot.wait(), strict=True):
                self._made[key] = begun, result

    def _begin(
        self, number: int, request: Request, broadcast: Broadcast, known: Mapping[Key, Job]
    ) -> Lot | None:
        jobs: dict[Key, Job] = {}
        for name in self._asked[number * self.size : (number + 1) * self.size]:
            site = self.sites[name]
            try:
                for job in self._ahead(request, broadcast, site):
                    key = _key(request, site, job)
                    jobs[key] = known.get(key, job)
            except WardroundError:
                continue  # it says so itself when it comes to it
        return Lot(jobs, self.crew.start(list(jobs.values()))) if jobs else None

    def _ahead(self, request: Request, broadcast: Broadcast, site: Site) -> Iterator[Job]:
        """What a site of the round will be asked for."""
        if site.name in self._scoring and site.validation:
            yield scoring_of(request.round, broadcast, site)
        if site.name in self._training and self._goes(job := job_ahead(request, broadcast, site)):
            yield job


def _copied(job: LocalJob) -> LocalJob:
    """The job once more: where this one fails, the other can be done from the start."""
    return job if job.private is None else replace(job, private=job.private.copied())


def _key(request: Request, site: Site, job: Job) -> Key:
    return site.run_id, request.round, site.name, type(job)


def same(one: Job, other: Job) -> bool:
    """Whether two jobs of a site train, or score, the same."""
    if isinstance(one, ScoringJob) and isinstance(other, ScoringJob):
        return one.encoded is other.encoded and one.adapter.digest == other.adapter.digest
    if isinstance(one, ScoringJob) or isinstance(other, ScoringJob):
        return False
    return (
        (one.round, one.site, one.work) == (other.round, other.site, other.work)
        and one.encoded is other.encoded
        and (one.before.digest, _digest(one.rest)) == (other.before.digest, _digest(other.rest))
        and (one.rules.proximal, one.rules.frozen, one.rules.mean_gradient)
        == (other.rules.proximal, other.rules.frozen, other.rules.mean_gradient)
        and _noise(one) == _noise(other)
        and _digest(one.rules.gradient_offset) == _digest(other.rules.gradient_offset)
        and _same_state(one.optimiser_state or {}, other.optimiser_state or {})
    )


def _noise(job: LocalJob) -> tuple[object, ...]:
    """What its privacy is made of; the words for batches and noise follow from round and site."""
    private = job.private
    if private is None:
        return ()
    state = private.state
    stand = None if state is None else (state.key, state.done, state.kept.tobytes())
    return private.rules, private.cost, private.clip_norm, private.done, stand


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
