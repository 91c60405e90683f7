"""The arms of a simulated run: the federation, each site alone, and all rows in one place.

An arm is a plan and the rows of its sites; every arm goes through the same round loop and handler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wardround.client.flower_app import client_app
from wardround.client.memory import SiteStore
from wardround.client.site import Site
from wardround.core.counting import reply_layout
from wardround.core.packed import Adapter
from wardround.core.plan import StrategySpec, TrainingPlan
from wardround.runtime.events import EventStream
from wardround.server.grid_transport import GridTransport
from wardround.server.journal import Journal
from wardround.server.rounds import Outcome, Run, run_rounds
from wardround.simulations.flower_engine import Grid, simulate
from wardround.strategies.contract import ServerState
from wardround.training.planning import bind_strategy
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench

FEDERATED = "federated"
CENTRALISED = "centralised"
POOL = "everybody"
SIMULATOR_POLL_S = 0.01


@dataclass(frozen=True)
class SiteRows:
    """Encoded rows of one site."""

    training: list[Encoded]
    validation: list[Encoded]


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


def local_arm(federated: Arm, site: str) -> Arm:
    """One site alone, as many rounds and steps as it has in the federation, its optimiser kept."""
    return Arm(f"local/{site}", _alone(federated.plan), {site: federated.sites[site]})


def centralised_arm(federated: Arm, learning_rate: float | None) -> Arm:
    """All rows in one place, as many steps a round as the cohort has together, the optimiser kept."""
    pooled = SiteRows(
        [row for rows in federated.sites.values() for row in rows.training],
        [row for rows in federated.sites.values() for row in rows.validation],
    )
    plan = _alone(federated.plan)
    local = plan.local.model_copy(
        update={
            "epochs": None,
            "steps": steps_a_round(federated),
            "learning_rate": learning_rate or plan.local.learning_rate,
        }
    )
    return Arm(CENTRALISED, plan.model_copy(update={"local": local}), {POOL: pooled})


def steps_a_round(arm: Arm) -> int:
    """Optimiser steps that all sites of an average cohort take together in one round."""
    work = arm.plan.local
    if work.steps is not None:
        total = work.steps * len(arm.sites)
    else:
        total = sum(
            math.ceil((work.epochs or 1) * len(rows.training) / work.batch_size)
            for rows in arm.sites.values()
        )
    return max(1, round(total * arm.plan.rounds.participation))


def _alone(plan: TrainingPlan) -> TrainingPlan:
    return plan.model_copy(
        update={
            "strategy": StrategySpec(name="fedavg", weighting=plan.strategy.weighting),
            "local": plan.local.model_copy(update={"optimiser_state": "keep"}),
            "rounds": plan.rounds.model_copy(update={"participation": 1.0, "quorum": 1.0}),
        }
    )


def run_arm(
    arm: Arm,
    bench: Workbench,
    initial: Adapter,
    folder: Path,
    events: EventStream,
    *,
    run_id: str,
    lanes: int,
    on_state: Callable[[ServerState], None] = lambda state: None,
) -> Outcome:
    """Run one arm on Flower's engine, in this process.

    Args:
        folder: The arm's own: journal and what its sites keep.
    """
    strategy = bind_strategy(arm.plan, allow_dotted=True)
    sites = {
        name: Site(
            name, run_id, arm.plan, strategy, bench, rows.training, rows.validation,
            SiteStore(folder / "sites" / name),
        )
        for name, rows in arm.sites.items()
    }  # fmt: skip
    outcome: list[Outcome] = []

    def server(grid: Grid, nodes: list[int]) -> None:
        lane = {name: nodes[index % len(nodes)] for index, name in enumerate(sorted(sites))}
        transport = GridTransport(grid, lane.__getitem__, reply_layout(arm.plan), SIMULATOR_POLL_S)
        run = Run(
            run_id, arm.name, arm.plan, strategy, tuple(sorted(sites)), transport,
            Journal(folder / "journal", arm.plan), events, on_state,
        )  # fmt: skip
        outcome.append(run_rounds(run, initial))

    simulate(server, client_app(sites), lanes=min(lanes, len(sites)))
    return outcome[0]
