"""Sites of a simulation trained and scored by workers on Ray, each of which holds the base model once.

The process that began the run plays server and sites as ever: it checks, masks, folds, and keeps what sites
keep. What it sends to a worker is a local round (`LocalJob`), or what is to be scored (`ScoringJob`); what
comes back is what that gave. Both depend on the seed tree alone, so that what a lost worker had is done again
elsewhere and gives the same.

Ray pickles what travels, between processes of one researcher's cluster; none of it is a file, and no site's
or server's message is ever read that way. Every import of Ray stands in this file, and so does what it needs
of Ray's internals; tests/contract/test_ray_internals.py fails loudly when that moves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from wardround.core.errors import ConfigError, InternalError, ModelError, TrainingError, WardroundError
from wardround.core.plan import TrainingPlan
from wardround.simulations.config import RayConfig, RunConfig
from wardround.simulations.together import Job, Made, Trainer
from wardround.training.plan_making import choices_of
from wardround.training.workbench import Workbench, open_workbench

LOG = logging.getLogger(__name__)
LOOPBACK: Final = "127.0.0.1"
CARRIED: Final = ("WARDROUND_DATA", "HF_HUB_OFFLINE", "HF_HOME", "TRANSFORMERS_OFFLINE", "PYTHONPATH")
"""Variables of the environment that a worker has from the process that began the run."""
AGAIN: Final = 3
"""So often Ray begins a worker anew that was lost."""
TRIES: Final = 3
"""So often a lot of sites is begun whose worker was lost over it."""
LOOK_S: Final = 1.0


@dataclass(frozen=True)
class Recipe:
    """What a worker makes its bench from.

    Attributes:
        config: Of the run, JSON.
        plan: Its plan, JSON.
        base: Digest of the base model.
        folder: The run was begun in it: relative paths are read from there where it exists.
        paths: Places that code is imported from.
        threads: Of torch, where the run says none.
    """

    config: str
    plan: str
    base: str
    folder: str
    paths: tuple[str, ...]
    threads: int

    @staticmethod
    def of(config: RunConfig, plan: TrainingPlan, bench: Workbench) -> Recipe:
        """Of a prepared run."""
        return Recipe(
            config.model_dump_json(), plan.model_dump_json(), bench.base.digest, str(Path.cwd()),
            tuple(sys.path), config.simulation.ray.cpus,
        )  # fmt: skip

    def bench(self) -> Workbench:
        """The base model with the plan's adapter on it.

        Raises:
            ModelError: It is not the one that the run was begun with.
            WardroundError: As `open_workbench`.
        """
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path[:] = [*sys.path, *(place for place in self.paths if place not in sys.path)]
        config = RunConfig.model_validate_json(self.config)
        plan = TrainingPlan.model_validate_json(self.plan)
        choices = choices_of(config, allow_dotted=True)
        machine = config.machine
        if machine.threads is None:
            machine = machine.model_copy(update={"threads": self.threads})
        bench = open_workbench(
            config.model, choices.task, plan.data, choices.method, choices.options, machine, seed=config.seed
        )
        if (bench.base.digest, bench.layout.digest) != (self.base, plan.adapter.layout.digest):
            raise ModelError(
                "a worker has another base model than the process that began the run",
                found=bench.base.digest[:12], expected=self.base[:12],
                remedy="bring model.path up to date on every machine of the cluster",
            )  # fmt: skip
        return bench


class Worker:
    """One process: its bench, and what it is asked to train."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    @cached_property
    def _train(self) -> Trainer:
        """Not in the constructor: what fails there ends the process, and is told by Ray in its own words."""
        return Trainer(self._recipe.bench())

    def ready(self) -> WardroundError | None:
        """Once the bench stands; what keeps it from standing."""
        try:
            self._train.apart = False
        except WardroundError as error:
            return error
        return None

    def train(self, jobs: Sequence[Job], *rows: Sequence[Any]) -> Sequence[Made]:
        """What each job gives, or what went wrong with it.

        Args:
            jobs: Without their rows.
            rows: Of each job.
        """
        return self._train([replace(job, encoded=own) for job, own in zip(jobs, rows, strict=True)])


@dataclass
class RayCrew:
    """Workers on Ray.

    Attributes:
        ray: The package.
        workers: Their handles.
    """

    ray: Any
    workers: Sequence[Any]
    _busy: list[int] = field(default_factory=list, repr=False)
    _away: dict[int, Any] = field(default_factory=dict, repr=False)
    """Workers that were lost, by what says that they are there again."""
    _gone: set[int] = field(default_factory=set, repr=False)
    _rows: dict[int, tuple[Sequence[Any], Any]] = field(default_factory=dict, repr=False)
    """Rows by their identity → themselves, so that the identity stays theirs, and where Ray has them."""

    def __post_init__(self) -> None:
        self._busy = [0] * len(self.workers)

    @property
    def ahead(self) -> int:
        """A lot for each worker, and one that waits at each."""
        return 2 * len(self.workers) - 1

    def start(self, jobs: Sequence[Job]) -> Callable[[], Sequence[Made]]:
        """As `Crew`: at the worker that has least to do, and at another one if that is lost."""
        rows = [self._put(job.encoded) for job in jobs]
        light = [replace(job, encoded=()) for job in jobs]
        index, found = self._sent(light, rows)

        def wait() -> Sequence[Made]:
            nonlocal index, found
            for tried in range(TRIES):
                try:
                    made: Sequence[Made] = self.ray.get(found)
                except self.ray.exceptions.RayActorError as error:
                    self._busy[index] -= 1
                    self._lose(index)
                    if tried + 1 == TRIES:
                        raise lost(f"{TRIES} of them over one lot of sites") from error
                    index, found = self._sent(light, rows)
                else:
                    self._busy[index] -= 1
                    return made
            raise InternalError("a lot is tried at least once")

        return wait

    def _sent(self, jobs: Sequence[Job], rows: Sequence[Any]) -> tuple[int, Any]:
        index = min(self._there(), key=self._busy.__getitem__)
        self._busy[index] += 1
        return index, self.workers[index].train.remote(jobs, *rows)

    def _there(self) -> list[int]:
        """Workers that are there; where there is none, once one is there again.

        Raises:
            TrainingError: `worker_lost`: none comes again.
        """
        while True:
            self._look()
            missing = self._away.keys() | self._gone
            there = [index for index in range(len(self.workers)) if index not in missing]
            if there:
                return there
            if not self._away:
                raise lost("no worker is left")
            self.ray.wait(list(self._away.values()), timeout=LOOK_S)

    def _look(self) -> None:
        """Who was lost and is there again is used again; who was begun anew too often is not."""
        if not self._away:
            return
        said, _ = self.ray.wait(list(self._away.values()), num_returns=len(self._away), timeout=0)
        for index, again in list(self._away.items()):
            if again not in said:
                continue
            del self._away[index]
            try:
                self.ray.get(again)
            except self.ray.exceptions.RayActorError:
                self._gone.add(index)

    def _lose(self, index: int) -> None:
        if index not in self._away.keys() | self._gone:
            LOG.warning("worker %d of the simulation was lost: others do its part", index)
            self._away[index] = self.workers[index].ready.options(max_task_retries=-1).remote()

    def _put(self, rows: Sequence[Any]) -> Any:
        if id(rows) not in self._rows:
            self._rows[id(rows)] = rows, self.ray.put(rows)
        return self._rows[id(rows)][1]


def lost(found: str) -> TrainingError:
    """Workers that ended over the same work, or all of them."""
    return TrainingError(
        "worker_lost", "workers of the simulation were lost", found=found, expected="processes that live",
        remedy="see Ray's logs (/tmp/ray/session_latest/logs): a full memory is what ends workers as a rule; "
        "take fewer simulation.ray.workers, then resume the run",
    )  # fmt: skip


@contextlib.contextmanager
def ray_crew(config: RunConfig, plan: TrainingPlan, bench: Workbench) -> Iterator[RayCrew]:
    """Workers for a run, for as long as it lasts.

    Args:
        config: Of the run.
        plan: Its plan.
        bench: What it was prepared with.

    Raises:
        ConfigError: Ray is not installed, the cluster is not there, or has no room for a worker.
        WardroundError: What keeps a worker from loading the base model.
    """
    asked = config.simulation.ray
    ray = imported()
    with connected(ray, asked):
        count = room(ray.cluster_resources(), asked)
        kind = ray.remote(Worker).options(
            num_cpus=asked.cpus, num_gpus=asked.gpus, max_restarts=AGAIN,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {name: os.environ[name] for name in CARRIED if name in os.environ}},
        )  # fmt: skip
        recipe = Recipe.of(config, plan, bench)  # by value: a restart needs nobody's memory
        workers = [kind.remote(recipe) for _ in range(count)]
        try:
            for fault in ray.get([worker.ready.remote() for worker in workers]):
                if fault is not None:
                    raise fault
            yield RayCrew(ray, workers)
        except ray.exceptions.RayActorError as error:
            raise lost("a worker that was to load the base model") from error
        finally:
            for worker in workers:
                ray.kill(worker)


def imported() -> Any:
    """Ray, which reports nothing to its makers.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "simulation.backend=ray needs Ray", found="it is not installed",
            remedy="pip install 'wardround[ray]', or set simulation.backend=inline",
        ) from error  # fmt: skip
    return ray


@contextlib.contextmanager
def connected(ray: Any, asked: RayConfig) -> Iterator[None]:
    """A connection to the cluster that was named, or a Ray of this run's own.

    Raises:
        ConfigError: There is no cluster at that address.
    """
    if ray.is_initialized():  # whoever calls from Python may have connected already, as he wants it
        yield
        return
    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        if asked.address is None:
            with alone_on_this_machine():
                ray.init(include_dashboard=False, _node_ip_address=LOOPBACK, **quiet)
        else:
            ray.init(address=asked.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ConfigError(
            "Ray cannot be reached, or not begun",
            found=f"{type(error).__name__} at {asked.address or LOOPBACK}",
            expected="a cluster that runs the same versions of Ray and Python",
            remedy="look with `ray status --address ADDRESS`; correct simulation.ray.address, or leave it "
            "out",
        ) from error  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def alone_on_this_machine() -> Iterator[None]:
    """Let Ray take the loopback address for its own: it would listen to the whole network otherwise.

    Ray replaces 127.0.0.1 by an address that others reach, since a cluster needs one; a Ray of one machine
    does not.
    """
    from ray._private import services

    kept = services.resolve_ip_for_localhost, services.get_node_ip_address
    services.resolve_ip_for_localhost = lambda host: LOOPBACK if host == "localhost" else host
    services.get_node_ip_address = lambda *_, **__: LOOPBACK
    try:
        yield
    finally:
        services.resolve_ip_for_localhost, services.get_node_ip_address = kept


def room(resources: Mapping[str, float], asked: RayConfig) -> int:
    """So many workers.

    Raises:
        ConfigError: More are asked for than the cluster has room for, or it has room for none.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    most = int(cpus // asked.cpus)
    if asked.gpus:
        most = min(most, int(gpus / asked.gpus + 1e-9))
    wanted = most if asked.workers is None else asked.workers
    if not 0 < wanted <= most:
        raise ConfigError(
            "the Ray cluster has no room for the workers",
            found=f"{cpus:g} CPUs and {gpus:g} GPUs: {most} workers",
            expected=f"{max(1, wanted)} workers of {asked.cpus} CPUs and {asked.gpus:g} GPUs",
            remedy="set simulation.ray.workers, simulation.ray.cpus or simulation.ray.gpus to less",
        )  # fmt: skip
    return wanted
