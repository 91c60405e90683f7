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
from typing import Final, Literal, TypeAlias, TypeVar

from flwr.serverapp import Grid

from wardround.client.flower_app import client_app
from wardround.client.fold_check import FoldCheck
from wardround.client.memory import SiteStore
from wardround.client.site import Site
from wardround.core.errors import ConfigError, unknown_name
from wardround.core.packed import Adapter
from wardround.core.plan import SecureRules, StrategySpec, TrainingPlan, cohort_size
from wardround.core.seeds import Purpose, generator
from wardround.privacy.accounting.of_plan import round_cost
from wardround.privacy.noise.source import RepeatableSource
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.runtime.events import EventStream
from wardround.server.cohorts import round_half_up
from wardround.server.grid_transport import GridTransport
from wardround.server.journal import Journal
from wardround.server.outcome import Outcome
from wardround.server.rounds import Run, run_rounds
from wardround.simulations.arm_names import CENTRALISED, FEDERATED
from wardround.simulations.config import BoundOptimiser
from wardround.simulations.consortium import Consortium
from wardround.simulations.flower_engine import simulate
from wardround.simulations.last_fold import LastFold
from wardround.simulations.outages import Outages
from wardround.simulations.privacy import simulated_privacy
from wardround.simulations.together import Announcing, SharedPasses, sites_at_once
from wardround.simulations.virtual.settings import PLAIN, Realism
from wardround.simulations.virtual.timed import timed
from wardround.strategies.contract import ServerState, SumStrategy
from wardround.training.alone import rounds_alone, work_alone
from wardround.training.batches import plan_batches
from wardround.training.plan_strategy import bind_strategy, check_rank
from wardround.training.planning import PrivateBounds, bounds_of
from wardround.training.site_rows import SiteRows, bounded_site
from wardround.training.tasks import TASKS
from wardround.training.workbench import Workbench

POOL = "everybody"
SIMULATOR_POLL_S = 0.01
ALONE_BITS: Final = 32
"""Of the arms of one site, whose updates nobody has to carry: fine enough not to stand in their way."""
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


def local_arm(
    federated: Arm, site: str, learning_rate: float | None = None, optimiser: BoundOptimiser | None = None
) -> Arm:
    """One site alone, as many rounds as it trains in the federation on average, its optimiser kept.

    A round has the same steps in both, so that the site takes as many in all: with every site in every round
    exactly, with a share of them to the nearest round, at least one.

    Args:
        federated: The federation.
        site: Name of the site.
        learning_rate: Its own; None: that of the federation's sites.
        optimiser: Its own; None: that of the federation's sites.
    """
    plan = _alone(federated.plan)
    rounds = rounds_alone(federated.plan.rounds, len(federated.sites))
    plan = plan.model_copy(update={"rounds": plan.rounds.model_copy(update={"rounds": rounds})})
    own = own_work(learning_rate, optimiser)
    if own:
        local = plan.local.model_copy(update=own)
        plan = _with_bounds(plan.model_copy(update={"local": local}), federated.sites[site])
    return Arm(f"local/{site}", plan, {site: federated.sites[site]})


def own_work(learning_rate: float | None, optimiser: BoundOptimiser | None) -> dict[str, object]:
    """What a bound trains with instead of the settings of the federation's sites."""
    given = {"learning_rate": learning_rate, "optimiser": optimiser}
    return {name: value for name, value in given.items() if value is not None}


def centralised_arm(
    federated: Arm, learning_rate: float | None, optimiser: BoundOptimiser | None = None
) -> Arm:
    """All rows in one place, as many steps a round as an average cohort takes, the optimiser kept.

    Args:
        federated: The federation.
        learning_rate: Its own; None: that of the federation's sites.
        optimiser: Its own; None: that of the federation's sites. Where the federation's optimiser is the
            server's, sites take plain gradient steps, which alone would be a handicap.
    """
    pooled = SiteRows(
        [row for rows in federated.sites.values() for row in rows.training],
        [row for rows in federated.sites.values() for row in rows.validation],
        [f"{site}\x1f{unit}" for site, rows in federated.sites.items() for unit in rows.units],
    )
    plan = _alone(federated.plan)
    privacy, work = federated.plan.privacy, plan.local
    amount: dict[str, object] = {"epochs": None, "steps": steps_a_round(federated)}
    if privacy is not None and privacy.noise == "distributed":  # one step a round along the sum of all sites
        amount = {"steps": 1, "batch_size": work.batch_size * len(federated.sites)}
    local = work.model_copy(update=amount | own_work(learning_rate, optimiser))
    plan = _with_bounds(plan.model_copy(update={"local": local}), pooled)
    return Arm(CENTRALISED, plan, {POOL: pooled})


def _with_bounds(plan: TrainingPlan, rows: SiteRows) -> TrainingPlan:
    """The plan of one site with the encoding's bounds that follow from its own work."""
    encoding = bounds_of(
        plan.local, plan.strategy.weighting, len(rows.training), plan.data.max_length, _bounds(plan, rows)
    )
    return plan.model_copy(update={"encoding": plan.encoding.model_copy(update=encoding | {"norm": None})})


def steps_a_round(arm: Arm) -> int:
    """Optimiser steps that all sites of an average cohort take together in one round, to the nearest step."""
    total = sum(site_steps(arm.plan, rows) for rows in arm.sites.values())
    return max(1, round_half_up(total * cohort_share(arm)))


def site_steps(plan: TrainingPlan, rows: SiteRows) -> int:
    """Optimiser steps that a site with these rows takes in one round: the batches that its training plans."""
    return len(site_batches(plan, rows))


def site_batches(plan: TrainingPlan, rows: SiteRows) -> list[int]:
    """Rows of each of these steps; of private ones as many as are expected."""
    cost = round_cost(plan, units_of(plan, rows))
    if cost is not None:
        return [plan.local.batch_size] * cost.steps
    task = TASKS.get(plan.task.name, allow_dotted=True)
    usable = sum(1 for row in rows.training if task.targets(row) > 0)
    return list(map(len, plan_batches(usable, plan.local, generator(plan.seed, Purpose.SHUFFLE))))


def cohort_share(arm: Arm) -> float:
    """Share of the sites that are asked in a round: `participation`, rounded to whole sites."""
    return cohort_size(arm.plan.rounds, len(arm.sites)) / len(arm.sites)


def units_of(plan: TrainingPlan, rows: SiteRows) -> int:
    """Units that a site trains on, as the plan's privacy counts them."""
    of_rows = plan.privacy is not None and plan.privacy.unit == "example"
    return len(rows.training) if of_rows else len(set(rows.units))


def _bounds(plan: TrainingPlan, rows: SiteRows) -> PrivateBounds | None:
    cost = round_cost(plan, units_of(plan, rows))
    return (
        None
        if cost is None or plan.privacy is None
        else PrivateBounds(plan.privacy, cost.sigma, 1, cost.units)
    )


def _alone(plan: TrainingPlan) -> TrainingPlan:
    """The plan of one site, which has nothing to hide from itself, and no reason for a narrow ring.

    What protects a site's units stays: one site alone draws all of its noise itself. What protects whole
    sites has no meaning for one of them.
    """
    privacy = plan.privacy
    encoding: dict[str, object] = {"bits": ALONE_BITS, "compression": None}
    if privacy is not None and privacy.trains_privately:
        privacy = privacy.model_copy(update={"noise": "local"})
    elif privacy is not None:
        privacy, encoding["norm"] = None, None
    return plan.model_copy(
        update={
            "secure": SecureRules(mode="off"),
            "privacy": privacy,
            "encoding": plan.encoding.model_copy(update=encoding),
            "strategy": StrategySpec(name="fedavg", weighting=plan.strategy.weighting),
            "local": work_alone(plan.local),
            "rounds": plan.rounds.model_copy(update={"participation": 1.0, "quorum": 1.0}),
        }
    )


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
        privacy_cap: ε that every site grants its patients; None: what the plan asks for.
        ranks: Sites' own ranks, in turn or by name; none: the plan's.
        together: So many sites of an arm train together.
        outage: Probability that a site of the federation is lost in a round.
        realism: How slow, far or away the federation's sites are.

    Raises:
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
    shared = {arm.name: SharedPasses(bench, sites_at_once(together, arm.plan, bench)) for arm in arms}
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
            consortia[arm.name].parties(name, arm.plan, run_of(run_id, arm)),
            FoldCheck(arm.plan, strategies[arm.name], fold=folds[arm.name]),
            consortia[arm.name].grouped(name, arm.plan, run_of(run_id, arm), strategies[arm.name]),
            simulated_privacy(arm.plan, name, rows.units, folder_of(arm.name) / "sites" / name, privacy_cap),
            figures=None,
            rank=own_ranks[arm.name].get(name),
            together=shared[arm.name] if shared[arm.name].size > 1 else None,
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
            GridTransport(grid, lane.__getitem__, SIMULATOR_POLL_S, SIMULATOR_LIFE_S),
            shared[arm.name].announce,
        )
        transport = Outages(carried, arm.plan, outage if arm.name == FEDERATED else 0.0)
        consortium = consortia[arm.name]
        aggregation = consortium.aggregation(arm.plan)

        def train(on_state: Callable[[ServerState], None]) -> Outcome:
            journal = Journal(folder_of(arm.name) / "journal", arm.plan)
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
                with timed(run, realism, arm.sites, site_batches, policy.least_cohort, where) as own:
                    return run_rounds(own, initial)
            return run_rounds(run, initial)

        return train

    simulate(server, client_app(sites), lanes=min(lanes, max(len(arm.sites) for arm in arms)))
    return collected


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
