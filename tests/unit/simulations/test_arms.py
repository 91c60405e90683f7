"""The bounds take the federation's steps; names of arms and sites name folders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.core.errors import ConfigError
from wardround.core.plan import (
    DataContract,
    Encoding,
    LocalWork,
    RoundRules,
    SecureRules,
    StrategySpec,
    TrainingPlan,
)
from wardround.core.seeds import Purpose, generator
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.runtime.events import EventStream
from wardround.server.cohorts import choose_cohort
from wardround.simulations.arms import Arm, policy_of, require_distinct, run_arms, standing_still
from wardround.simulations.bound_arms import (
    bounds_of,
    centralised_arm,
    local_arm,
    steps_a_round,
)
from wardround.simulations.config import BoundsConfig
from wardround.simulations.site_work import site_steps
from wardround.training.batches import plan_batches
from wardround.training.encoded_text import EncodedText
from wardround.training.planning import SLACK
from wardround.training.site_rows import SiteRows


def row(*, target: bool = True) -> EncodedText:
    """One encoded row; without a label it is no row to train on."""
    return EncodedText(np.arange(3, dtype=np.int32), label=0 if target else -1)


EVERY_MODE = SecurePolicy(modes=("real", "accounted", "off"))


def arm_of(
    rows: dict[str, int],
    work: dict[str, Any],
    *,
    mode: Any = "off",
    weighting: Any = "examples",
    **rules: Any,
) -> Arm:
    """A federation whose sites have so many usable rows, and one more that is not."""
    plan = toy_plan(
        seed=3,
        data=DataContract(columns={"text": "t"}, labels=("no", "yes")),
        local=LocalWork(**work),
        encoding=Encoding(largest=0.5, norm=0.7, most_weight=100),
        secure=SecureRules(mode=mode),
        strategy=StrategySpec(name="fedprox", weighting=weighting),
        rounds=RoundRules(**({"rounds": 20} | rules)),
    )
    sites = {name: SiteRows([*(row() for _ in range(n)), row(target=False)], []) for name, n in rows.items()}
    return Arm("federated", plan, sites)


def batches(n: int, plan: TrainingPlan, round: int, site: str) -> int:
    """Batches that a site's training plans in a round."""
    return len(plan_batches(n, plan.local, generator(plan.seed, Purpose.SHUFFLE, round=round, site=site)))


ROWS = {"a": 9, "b": 17, "c": 40, "d": 3}
WORKS = [{"epochs": 3, "batch_size": 8}, {"epochs": 0.4, "batch_size": 8}, {"epochs": 2.5, "batch_size": 16}]


@pytest.mark.parametrize("work", [*WORKS, {"steps": 5, "batch_size": 8}], ids=str)
def test_the_bounds_take_the_steps_that_the_federation_takes(work: dict[str, Any]) -> None:
    """With everybody in every round, to the step: short batches count, rows without a target do not."""
    federated = arm_of(ROWS, work)
    plan, rounds = federated.plan, range(1, 21)
    taken = {site: sum(batches(n, plan, round, site) for round in rounds) for site, n in ROWS.items()}
    centralised = centralised_arm(federated, None)
    assert centralised.plan.local.steps is not None
    assert centralised.plan.local.steps * centralised.plan.rounds.rounds == sum(taken.values())
    for site in ROWS:
        alone = local_arm(federated, site)
        steps = site_steps(alone.plan, alone.sites[site]) * alone.plan.rounds.rounds
        assert steps == taken[site]


@pytest.mark.parametrize("work", [*WORKS, {"steps": 5, "batch_size": 8}], ids=str)
@pytest.mark.parametrize("participation", [0.1, 0.5, 0.7])
def test_with_a_share_of_the_sites_the_bounds_take_the_average_steps(
    work: dict[str, Any], participation: float
) -> None:
    """A site alone trains in as many rounds as on average in the federation; a round's steps are the same."""
    federated = arm_of(ROWS, work, participation=participation)
    plan = federated.plan
    asked = sum(len(choose_cohort(plan, tuple(ROWS), round)) for round in range(1, 21)) / len(ROWS)
    for site, n in ROWS.items():
        alone = local_arm(federated, site)
        assert alone.plan.rounds.rounds == round(asked)
        assert alone.plan.rounds.participation == 1
        assert site_steps(alone.plan, alone.sites[site]) == batches(n, plan, 1, site)
    everybody = sum(batches(n, plan, 1, site) for site, n in ROWS.items())
    assert abs(steps_a_round(federated) - everybody * asked / 20) <= 0.5 or steps_a_round(federated) == 1


def test_a_site_alone_trains_at_least_one_round() -> None:
    """However rare it is asked."""
    federated = arm_of(dict.fromkeys(map(str, range(30)), 4), WORKS[0], rounds=1, participation=0.05)
    assert local_arm(federated, "0").plan.rounds.rounds == 1


def test_names_that_name_one_folder_are_refused() -> None:
    """Case, and an accent written in two ways."""
    require_distinct("arms", ["local/A", "local/B", "federated"])
    for one, other in (("local/A", "local/a"), ("Zu\u0308rich", "Z\u00fcrich"), ("x", "x")):
        with pytest.raises(ConfigError, match="one folder"):
            require_distinct("sites", [one, "between", other])


@pytest.mark.parametrize("sites", [("A", "a"), ("A", "b")])
def test_arms_that_share_a_folder_are_refused_before_anything_runs(
    sites: tuple[str, str], tmp_path: Path
) -> None:
    """Two arms of one name, or two such sites in one arm."""
    arm = arm_of(dict.fromkeys(sites, 4), WORKS[0])
    arms = [arm] if sites == ("A", "a") else [arm, arm]
    nothing: Any = None
    with pytest.raises(ConfigError, match="one folder"):
        run_arms(
            arms, nothing, nothing, lambda name: tmp_path, EventStream(), run_id="r", lanes=1,
            policy=EVERY_MODE, each=lambda *_: pytest.fail("an arm was run"),
        )  # fmt: skip


def test_an_arm_of_one_site_has_nothing_to_hide_from_itself() -> None:
    """Off, in a wide ring, whatever the federation does; and its sites ask for no more."""
    federated = arm_of(ROWS, WORKS[0], mode="real", participation=0.5)
    for arm in (local_arm(federated, "a"), centralised_arm(federated, None)):
        assert arm.plan.secure == SecureRules(mode="off")
        assert (arm.plan.encoding.bits, arm.plan.strategy.name) == (32, "fedavg")
        assert policy_of(arm, SecurePolicy()).modes == ("off",)
    assert policy_of(federated, SecurePolicy()) == SecurePolicy()
    assert federated.plan.secure.mode == "real"


@pytest.mark.parametrize(("weighting", "most"), [("examples", 73), ("targets", 240 * 128), ("uniform", 1)])
def test_the_bounds_of_the_centralised_arm_are_those_of_its_own_work(weighting: str, most: int) -> None:
    """As many steps as the whole cohort takes, over all rows; a length bound is a site's, and goes."""
    federated = arm_of(ROWS, {"steps": 6, "batch_size": 10, "learning_rate": 0.01}, weighting=weighting)
    plan = centralised_arm(federated, 0.02).plan
    assert plan.local.steps == 24
    assert plan.encoding.largest == pytest.approx(0.02 * 24 * SLACK)
    assert (plan.encoding.most_weight, plan.encoding.norm) == (most, None)
    assert plan.strategy.weighting == weighting
    alone = local_arm(federated, "a").plan
    assert (alone.encoding.largest, alone.encoding.most_weight) == (0.5, 100)


def test_a_bound_trains_with_an_optimiser_and_a_rate_of_its_own() -> None:
    """Where the federation's sites take plain gradient steps; how much work is done stays the same."""
    work = {"epochs": 0.4, "batch_size": 8, "optimiser": "sgd", "learning_rate": 1.0, "max_grad_norm": 10.0}
    federated = arm_of(ROWS, work)
    alone, pooled = local_arm(federated, "a", 3e-3, "adamw"), centralised_arm(federated, 2e-3, "adamw")
    for arm, rate, steps in ((alone, 3e-3, 1), (pooled, 2e-3, steps_a_round(federated))):
        assert (arm.plan.local.optimiser, arm.plan.local.learning_rate) == ("adamw", rate)
        assert arm.plan.local.max_grad_norm == 10.0
        assert arm.plan.encoding.largest == pytest.approx(rate * steps * SLACK)
        assert arm.plan.encoding.norm is None
    assert site_steps(alone.plan, alone.sites["a"]) == site_steps(federated.plan, federated.sites["a"])
    assert alone.plan.encoding.most_weight == len(federated.sites["a"].training)
    only_rate = local_arm(federated, "a", 0.5).plan.local
    assert (only_rate.optimiser, only_rate.learning_rate) == ("sgd", 0.5)
    assert local_arm(federated, "a") == local_arm(federated, "a", None, None)
    assert local_arm(federated, "a").plan.local == federated.plan.local.model_copy(
        update={"optimiser_state": "keep"}
    )


def test_a_configured_bound_gets_its_optimiser_and_rate() -> None:
    """Both kinds, in the order in which they are run."""
    federated = arm_of(ROWS, {"steps": 2, "batch_size": 8, "optimiser": "sgd", "learning_rate": 1.0})
    bounds = BoundsConfig(
        local_only=True,
        centralised=True,
        optimiser="adam",
        local_learning_rate=0.1,
        centralised_learning_rate=0.2,
    )
    config: Any = SimpleNamespace(bounds=bounds)
    arms = bounds_of(config, federated)
    assert [arm.name for arm in arms] == [*(f"local/{site}" for site in sorted(ROWS)), "centralised"]
    assert {arm.plan.local.optimiser for arm in arms} == {"adam"}
    assert [arm.plan.local.learning_rate for arm in arms] == [0.1] * len(ROWS) + [0.2]
    assert bounds_of(SimpleNamespace(bounds=BoundsConfig()), federated) == []  # type: ignore[arg-type]  # all it reads


def test_no_time_passes_in_a_simulation() -> None:
    """So that no deadline is ever reached."""
    assert standing_still() == standing_still()
