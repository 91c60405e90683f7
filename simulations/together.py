"""Sites of a simulation that train together: which ones, and what they made for each other.

Who trains in a round stands in the requests that the server sends. They are dealt out by size, so many at a
time, whatever order the messages come in: what they make depends on who is asked and on how many go at a
time, and on nothing else. The first of them that is asked trains all; each of the others takes its part
when it comes to it, where it would train the very same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

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
from wardround.training.local_round import LocalJob, LocalResult
from wardround.training.together import train_together, why_alone
from wardround.training.workbench import Workbench

LOG = logging.getLogger(__name__)
ROWS_AT_ONCE: Final = 8
"""Up to so many rows a step a CPU is faster with several sites' than with one's (docs/benchmarks.md)."""
Key = tuple[str, int, str]
"""Run, round, site."""


def sites_at_once(wanted: int | Literal["auto"], plan: TrainingPlan, bench: Workbench) -> int:
    """So many sites train together under a plan.

    Raises:
        ConfigError: More than one are asked for, and these cannot.
    """
    if wanted == 1:
        return 1
    reason = "the run is private" if plan.privacy is not None and plan.privacy.trains_privately else ""
    reason = reason or why_alone(bench)
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
        wanted = ROWS_AT_ONCE // batch if bench.device.type == "cpu" else 1  # measured on CPUs alone
    return max(1, wanted if most is None else min(wanted, most // batch))


@dataclass
class SharedPasses:
    """The sites of one arm, so many at a time.

    Attributes:
        bench: Which all of them share.
        size: So many at a time.
        sites: By name.
    """

    bench: Workbench
    size: int
    sites: Mapping[str, Site] = field(default_factory=dict)
    _asked: tuple[str, ...] = ()
    _made: dict[Key, tuple[LocalJob, LocalResult | Exception]] = field(default_factory=dict, repr=False)

    def announce(self, requests: Sequence[Request]) -> None:
        """These are on their way to the sites."""
        training = sorted(
            request.site
            for request in requests
            if request.exchange == 0 and request.stage == 0 and TRAINING in request.sums
        )
        if training:
            asked = [site for site in training if self.sites[site].rank is None]
            # Those of like size together: a site with fewer steps leaves the others' pass sooner.
            self._asked = tuple(sorted(asked, key=lambda site: (-len(self.sites[site].training), site)))
            self._made.clear()

    def __call__(
        self, request: Request, broadcast: Broadcast, site: Site, job: LocalJob
    ) -> LocalResult | None:
        """What the job gives; all who go with this site train where none of them has yet.

        Raises:
            Exception: What went wrong with this site's part.
        """
        if self.size == 1 or site.name not in self._asked or job.rest is not None or job.private is not None:
            return None
        key = (site.run_id, request.round, site.name)
        if key not in self._made:
            self._train(request, broadcast, site, job)
        made = self._made.pop(key, None)
        if made is None or not same(made[0], job):
            return None
        if isinstance(made[1], Exception):
            raise made[1]
        return made[1]

    def _train(self, request: Request, broadcast: Broadcast, site: Site, job: LocalJob) -> None:
        first = self._asked.index(site.name) // self.size * self.size
        jobs: dict[str, LocalJob] = {}
        for name in self._asked[first : first + self.size]:
            try:
                found = job if name == site.name else job_ahead(request, broadcast, self.sites[name])
            except StorageError:
                continue  # it says so itself when it comes to it
            if found.rest is None and found.before.layout.digest == self.bench.layout.digest:
                jobs[name] = found
        if site.name not in jobs or len(jobs) == 1:
            return  # to the bits of a site by itself
        try:
            results = train_together(self.bench, list(jobs.values()))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            LOG.warning(
                "the device's memory does not hold %d sites at once: they train by themselves", self.size
            )
            self.size = 1
            return
        for (name, own), result in zip(jobs.items(), results, strict=True):
            self._made[site.run_id, request.round, name] = own, result


def same(one: LocalJob, other: LocalJob) -> bool:
    """Whether two jobs of a site train the same."""
    return (
        (one.round, one.site, one.work) == (other.round, other.site, other.work)
        and one.encoded is other.encoded
        and one.before.digest == other.before.digest
        and (one.rules.proximal, one.rules.frozen, one.rules.mean_gradient)
        == (other.rules.proximal, other.rules.frozen, other.rules.mean_gradient)
        and _digest(one.rules.gradient_offset) == _digest(other.rules.gradient_offset)
        and _same_state(one.optimiser_state or {}, other.optimiser_state or {})
    )


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
        announce: Is told before.
    """

    inner: Transport
    announce: Callable[[Sequence[Request]], None]

    def send(self, requests: Sequence[Request]) -> Mapping[str, int]:
        """As `Transport`."""
        self.announce(requests)
        return self.inner.send(requests)

    def send_more(self, request: Request) -> int:
        """As `Transport`."""
        return self.inner.send_more(request)

    def receive(self, timeout_s: float) -> Sequence[tuple[Reply, int]]:
        """As `Transport`."""
        return self.inner.receive(timeout_s)
