"""The arms of a simulated run: the federation, each site alone, and all rows in one place.

An arm is a plan and the rows of its sites; every arm goes through the same round loop and handler.

A simulation has no deadline. Its sites work one after another, so that an exchange takes the sum over the
sites, on whatever machine; the clock by which the loop keeps the deadline therefore stands still, every site
is waited for, and nothing of the result depends on the machine's speed. What a site that does not answer does
to a run is simulated by one that fails. With `simulation.realism` it has one, by a virtual clock.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from flwr.serverapp import Grid

from wardround.client.flower_app import client_app
from wardround.client.fold_check import FoldCheck
from wardround.client.memory import SiteStore
from wardround.client.parties import Contributions
from wardround.client.site import Site
from wardround.core.errors import ConfigError, unknown_name
from wardround.core.packed import Adapter
from wardround.core.plan import TrainingPlan, cohort_size
from wardround.core.seeds import Purpose
from wardround.privacy.noise.source import RepeatableSource
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.runtime.events import EventStream
from wardround.server.grid_transport import GridTransport
from wardround.server.journal import Journal
from wardround.server.outcome import Outcome
from wardround.server.rounds import run_rounds
from wardround.server.run import Run
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.consortium import Consortium
from wardround.simulations.flower_engine import simulate
from wardround.simulations.last_fold import LastFold
from wardround.simulations.outages import Outages
from wardround.simulations.privacy import simulated_privacy
from wardround.simulations.shared_objects import SharedObjects
from wardround.simulations.together import Announcing, Crew, Here, SharedPasses, Trainer, sites_at_once
from wardround.simulations.virtual.settings import PLAIN, Realism
from wardround.simulations.virtual.timed import timed
from wardround.simulations.waiting import contributions_of
from wardround.strategies.contract import ServerState, SumStrategy
from wardround.training.plan_strategy import bind_strategy, check_rank
from wardround.training.site_rows import SiteRows, bounded_site
from wardround.training.workbench import Workbench

SIMULATOR_POLL_S = 0.01
SIMULATOR_LIFE_S = 365 * 24 * 3600.0
"""Flower drops messages that are older; its own 12 hours would be a deadline."""

T = TypeVar("T")
Train: TypeAlias = Callable[[Callable[[ServerState], None]], Outcome]
"""Trains an arm; takes what is called with each new state."""


@dataclass(frozen=True)
class Arm:
    """One training run of the simulation.

    Attributes:
        name: `federated`, `centralised` or `local/SITE`.
        plan: What is trained.
        sites: Site → its rows.
    """

    name: str
    plan: TrainingPlan
    sites: dict[str, SiteRows]


def standing_still() -> float:
    """The clock of a simulation: no time passes while sites work in turn, so that none is ever late."""
    return 0.0


def ranks_of(arm: Arm, ranks: Sequence[int] | Mapping[str, int], strategy: SumStrategy) -> dict[str, int]:
    """Site → its own rank, of those sites that have one; a site alone trains at the plan's.

    Raises:
        ConfigError: A site that there is not, or as `check_rank`.
    """
    if len(arm.sites) == 1:
        return {}
    if isinstance(ranks, Mapping):
        for name in ranks:
            if name not in arm.sites:
                raise unknown_name("site in simulation.ranks", name, arm.sites)
        own = dict(ranks)
    else:
        own = dict(zip(sorted(arm.sites), cycle(ranks), strict=False))
    for rank in sorted(set(own.values())):
        check_rank(arm.plan, strategy, rank)
    return own


def run_arms(
    arms: Sequence[Arm],
    bench: Workbench,
    initial: Adapter,
    folder_of: Callable[[str], Path],
    events: EventStream,
    *,
    run_id: str,
    lanes: int,
    policy: SecurePolicy,
    each: Callable[[Arm, Train], T],
    privacy_cap: float | None = None,
    ranks: Sequence[int] | Mapping[str, int] = (),
    together: int | Literal["auto"] = 1,
    outage: float = 0.0,
    crew: Crew | None = None,
    realism: Realism = PLAIN,
) -> list[T]:
    """Run arms one after another on Flower's engine, in this process.

    Args:
        arms: In order.
        bench: Base model that all sites of all arms share.
        initial: Adapter that every arm starts from.
        folder_of: Arm's name → its folder, for journal and what its sites keep.
        events: Where the run tells what happens.
        run_id: Of the simulation; an arm's own is derived from it.
        lanes: Flower nodes over which messages are delivered.
        policy: What every site demands of secure aggregation.
        each: Called with an arm and the function that trains it; what it returns is collected.
        privacy_cap: As `simulated_privacy`.
        ranks: Sites' own ranks, in turn or by name; none: the plan's.
        together: So many sites of an arm train together.
        outage: Probability that a site of the federation is lost in a round.
        crew: Trains the sites; None: this process.
        realism: How slow, far or away the federation's sites are.

    Raises:
        BudgetError: As `simulated_privacy`.
        ConfigError: As `sites_at_once`; or two arms, or two sites of one, have the same name: they would
            share folder and run id.
        PolicyError: The policy does not allow the plan's kind of aggregation.
    """
    require_distinct("arms", [arm.name for arm in arms])
    for arm in arms:
        require_distinct(f"sites of {arm.name}", arm.sites)
    consortia = {arm.name: Consortium.of(arm.sites, policy_of(arm, policy)) for arm in arms}
    strategies = {arm.name: bind_strategy(arm.plan, allow_dotted=True) for arm in arms}
    folds = {name: LastFold(strategy) for name, strategy in strategies.items()}
    arms = [bounded(arm) for arm in arms]
    crew = Here(Trainer(bench)) if crew is None else crew
    at_once = {
        arm.name: sites_at_once(together, arm.plan, bench, sites=cohort_size(arm.plan.rounds, len(arm.sites)))
        for arm in arms
    }
    shared = {arm.name: SharedPasses(crew, at_once[arm.name]) for arm in arms}
    own_ranks = {arm.name: ranks_of(arm, ranks, strategies[arm.name]) for arm in arms}
    sites = {
        (run_of(run_id, arm), name): Site(
            name,
            run_of(run_id, arm),
            arm.plan,
            strategies[arm.name],
            bench,
            rows.training,
            rows.validation,
            site_store(folder_of(arm.name), name),
            consortia[arm.name].parties(
                name, arm.plan, run_of(run_id, arm), kept_by(arm, strategies[arm.name], folder_of, name)
            ),
            FoldCheck(arm.plan, strategies[arm.name], fold=folds[arm.name]),
            consortia[arm.name].grouped(name, arm.plan, run_of(run_id, arm), strategies[arm.name]),
            simulated_privacy(
                arm.plan, name, rows, folder_of(arm.name) / "sites" / name, privacy_cap, run_of(run_id, arm)
            ),
            figures=None,
            rank=own_ranks[arm.name].get(name),
            together=shared[arm.name] if shared[arm.name].used else None,
        )
        for arm in arms
        for name, rows in arm.sites.items()
    }
    for arm in arms:
        shared[arm.name].sites = {name: sites[run_of(run_id, arm), name] for name in arm.sites}
    collected: list[T] = []

    def server(grid: Grid, nodes: list[int]) -> None:
        collected.extend(each(arm, trainer(arm, grid, nodes)) for arm in arms)

    def trainer(arm: Arm, grid: Grid, nodes: list[int]) -> Train:
        names = tuple(sorted(arm.sites))
        lane = {name: nodes[index % len(nodes)] for index, name in enumerate(names)}
        carried = Announcing(
            GridTransport(
                grid, lane.__getitem__, SIMULATOR_POLL_S, SIMULATOR_LIFE_S, most_out=len(nodes) + 1
            ),
            shared[arm.name].announce,
        )
        transport = Outages(carried, arm.plan, outage if arm.name == FEDERATED else 0.0)
        consortium = consortia[arm.name]
        aggregation = consortium.aggregation(arm.plan)

        def train(on_state: Callable[[ServerState], None]) -> Outcome:
            journal = Journal(folder_of(arm.name) / "journal", arm.plan)
            if (at := journal.resume()) is not None:
                for name in names:
                    sites[run_of(run_id, arm), name].folds.resumed_after = at.state.round
            run = Run(
                run_of(run_id, arm),
                arm.name,
                arm.plan,
                strategies[arm.name],
                names,
                transport,
                aggregation,
                journal,
                events,
                on_state,
                standing_still,
                lambda round: RepeatableSource(arm.plan.seed, Purpose.NOISE, round=round, site=""),
                simulation=True,
            )
            if arm.name == FEDERATED and realism.on:
                where = journal.folder.parent
                with timed(run, realism, arm.sites, policy.least_cohort, where) as own:
                    outcome = run_rounds(own, initial)
            else:
                outcome = run_rounds(run, initial)
            for name in names:
                sites[run.run_id, name].parties.kept.forget(round=outcome.last.round + 1)
            return outcome

        return train

    simulate(
        server,
        client_app(sites, shared=SharedObjects()),
        lanes=min(lanes, max(len(arm.sites) for arm in arms)),
    )
    return collected


def kept_by(arm: Arm, strategy: SumStrategy, folder_of: Callable[[str], Path], site: str) -> Contributions:
    """What a site contributed last, in memory or in the arm's folder."""
    folder = folder_of(arm.name) / "sites" / site
    return contributions_of(strategy, arm.plan.encoding, len(arm.sites), folder)


def site_store(folder: Path, site: str) -> SiteStore:
    """What a site of an arm keeps, in the arm's folder."""
    return SiteStore(folder / "sites" / site)


def bounded(arm: Arm) -> Arm:
    """The arm with no more rows of a patient than its privacy of single rows counts on."""
    sites = {name: bounded_site(arm.plan, name, rows) for name, rows in arm.sites.items()}
    return replace(arm, sites=sites)


def policy_of(arm: Arm, policy: SecurePolicy) -> SecurePolicy:
    """What the sites of an arm demand: one that trains alone has nobody to hide from."""
    return policy if arm.name == FEDERATED else SecurePolicy(modes=("off",))


def require_distinct(what: str, names: Iterable[str]) -> None:
    """Refuse names that are one on a file system which knows no case or writes accents in another way.

    Raises:
        ConfigError: Names the first two.
    """
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            raise ConfigError(
                f"two {what} have names that name one folder",
                found=f"{seen[folded]!r} and {name!r}",
                remedy="rename one of them",
            )
        seen[folded] = name


def run_of(run_id: str, arm: Arm) -> str:
    """Run id of one arm: a site answers only for the arm whose plan it follows."""
    return f"{run_id}/{arm.name}"
