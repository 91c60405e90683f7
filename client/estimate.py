"""How long a round will take here, roughly: what a site may say of its machine before it trains."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from wardround.client.own_figures import on_grid
from wardround.client.site import Site
from wardround.training.batches import plan_batches
from wardround.training.evaluation import evaluate

STEP_OVER_FORWARD: Final = 3.0
"""A step over a pass forward: the pass back costs about twice as much as the one forward."""


def seconds_a_round(site: Site) -> float | None:
    """Seconds of one round's training, from one batch scored; a power of two, no less. None without rows.

    The fresh adapter is scored, so that nothing depends on what was trained before.
    """
    batches = plan_batches(len(site.training), site.plan.local, np.random.default_rng(0))
    if not batches:
        return None
    bench, part = site.bench, [site.training[row] for row in batches[0]]
    bench.load_adapter(bench.initial_adapter())
    started = time.perf_counter()
    evaluate(
        bench.model, bench.task, site.plan.task, site.plan.data, part,
        batch_size=bench.machine.microbatch_size or len(part), device=bench.device, tokenizer=bench.tokenizer,
    )  # fmt: skip
    return on_grid(STEP_OVER_FORWARD * len(batches) * (time.perf_counter() - started))
