"""The slow, plain twin of a simulated run: no Flower, round loop, handler, strategy, ring or codec.

FedAvg as in McMahan et al. 2017, Algorithm 1, written out over PyTorch: the same rows in the same
batches from the same seeds. tests/integration/test_simulation.py holds that the engine ends with the very
same adapter, bit for bit; benchmarks/overhead.py uses it as the bare loop.

It takes what decides *which* work is done from the code that it is compared with: `choose_cohort`,
`plan_batches`, `rate`, the seed tree, the task's `collate` and `example_losses`. A fault in one of these
would be in both; they have tests of their own. Written out a second time here are the training step,
the optimiser's groups, the weighting, the rounding and the fold.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel

from wardround.core.errors import ConfigError
from wardround.core.packed import Adapter
from wardround.core.plan import TrainingPlan
from wardround.core.schedules import rate
from wardround.core.seeds import Purpose, generator, seed_for
from wardround.server.cohorts import choose_cohort
from wardround.simulations.arms import Arm
from wardround.simulations.twin_central import Central
from wardround.training.batches import plan_batches
from wardround.training.site_rows import SiteRows
from wardround.training.workbench import Workbench


def run_twin(
    arm: Arm, bench: Workbench, initial: Adapter, *, on_round: Callable[[int, Adapter], None] | None = None
) -> Adapter:
    """The adapter after the plan's last round.

    Raises:
        ConfigError: The plan asks for more than the twin writes out (FedAvg, AdamW, a reset optimiser, whole
            batches where there is dropout, no noise of sites).
    """
    _check(arm, bench)
    plan, state, central = arm.plan, initial.vector.copy(), Central.of(arm.plan)
    for round in range(1, plan.rounds.rounds + 1):
        total, weight = np.zeros(1, dtype=np.int64), 0
        cohort = choose_cohort(plan, tuple(arm.sites), round)
        for site in cohort:
            trained, examples = _train(arm, bench, initial.with_vector(state), site, arm.sites[site], round)
            share = {"examples": examples, "uniform": 1}[plan.strategy.weighting]
            delta = trained.astype(np.float64) - state.astype(np.float64)
            total = total + _quantised(plan, round, site, delta, share, sites=len(cohort), central=central)
            weight += share
        scale = _scale(plan, len(cohort))
        if central is not None:
            total += central.noise(plan.seed, round, scale, total.size)
        summed = total.astype(np.float64) * (1 / scale)
        mean = (summed if central is None else central.folded(summed, len(cohort))) / weight
        state = (state.astype(np.float64) + mean).astype(np.float32)
        if on_round is not None:
            on_round(round, initial.with_vector(state))
    return initial.with_vector(state)


def _scale(plan: TrainingPlan, sites: int) -> float:
    """Ring integers for one unit of weight · value: as many as leave the sum and its rounding in the ring."""
    room = 2.0 ** (plan.encoding.bits - 1) / sites * (1 - 2.0**-40) - 2.0
    return room / (plan.encoding.most_weight * plan.encoding.largest)


def _quantised(
    plan: TrainingPlan,
    round: int,
    site: str,
    delta: np.ndarray,
    weight: int,
    *,
    sites: int,
    central: Central | None,
) -> np.ndarray:
    """⌊clip(δ) · w · s + u⌋ as int64, with one u in [0, 1) a coordinate from the seed tree."""
    scale, largest, factor = _scale(plan, sites), plan.encoding.largest, 1.0
    if central is not None:
        delta, factor = central.sent(delta)
        room = 9 * math.sqrt(central.variance(scale, delta.size))  # for the tail of the noise
        largest -= (room / sites + 1) / scale
    bound = weight * largest * scale
    scaled = np.clip(delta * (factor * weight * scale), -bound, bound)
    rng = generator(plan.seed, Purpose.ROUNDING, round=round, site=site)
    return np.floor(scaled + rng.random(delta.size)).astype(np.int64)


def _train(
    arm: Arm, bench: Workbench, before: Adapter, site: str, rows: SiteRows, round: int
) -> tuple[np.ndarray, int]:
    """One local round in plain PyTorch: (flat adapter after, distinct rows)."""
    plan, work, model = arm.plan, arm.plan.local, bench.model
    bench.load_adapter(before)
    model.train()
    torch.manual_seed(seed_for(plan.seed, Purpose.DROPOUT, round=round, site=site))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": work.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=work.learning_rate,
        betas=work.betas,
        eps=work.epsilon,
        fused=bench.device.type == "cpu" or None,
    )
    usable = [row for row in rows.training if bench.task.targets(row) > 0]
    batches = plan_batches(len(usable), work, generator(plan.seed, Purpose.SHUFFLE, round=round, site=site))
    for step, indices in enumerate(batches):
        chosen = [usable[index] for index in indices]
        for group in optimiser.param_groups:
            group["lr"] = rate(
                work.schedule,
                work.learning_rate,
                round=round,
                rounds=plan.rounds.rounds,
                fraction=(step + 0.5) / len(batches),
            )
        batch = {key: value.to(bench.device) for key, value in bench.task.collate(chosen, plan.data).items()}
        optimiser.zero_grad()
        with bench.padding.of(batch):
            loss = bench.task.example_losses(model, batch).sum() / sum(map(bench.task.targets, chosen))
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        if work.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, work.max_grad_norm)
        optimiser.step()
    return bench.read_adapter().vector.copy(), sum(row.rows for row in usable)


def _check(arm: Arm, bench: Workbench) -> None:
    plan, microbatch = arm.plan, bench.machine.microbatch_size
    unsupported = {
        "strategy.name": plan.strategy.name != "fedavg",
        "strategy.weighting": plan.strategy.weighting == "targets",
        "local.optimiser": plan.local.optimiser != "adamw",
        "local.optimiser_state": plan.local.optimiser_state != "reset",
        "release.patience": plan.release.patience is not None,
        "encoding.compression": plan.encoding.compression is not None,
        "encoding.norm": plan.encoding.norm is not None and plan.privacy is None,
        "privacy.unit": plan.privacy is not None and plan.privacy.trains_privately,
        # Dropout draws one mask a microbatch; the twin draws one a batch.
        "machine.microbatch_size": microbatch is not None
        and microbatch < plan.local.batch_size
        and drops(bench.base.model),
    }
    found = [name for name, wrong in unsupported.items() if wrong]
    if found:
        raise ConfigError(
            "the twin does not write this out",
            found=", ".join(found),
            expected="FedAvg with AdamW, reset every round, no early stopping, no batch cut under dropout, "
            "no noise but the server's",
            remedy="compare such a plan with tests of its own part instead",
        )


def drops(model: PreTrainedModel) -> bool:
    """Whether training may draw dropout masks: by a module, or by a probability in the configuration."""
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    settings = model.config.to_dict()
    return any("drop" in name and isinstance(p, int | float) and p > 0 for name, p in settings.items())
