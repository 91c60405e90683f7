"""What it costs to train several sites: one after another or together, padded or not, in float32 or bfloat16.

    python benchmarks/together.py [--models minilm med_llama] [--batches 1 4 16] [--groups 2 4 8]

Eight sites with adapters of their own, rows of real, ragged lengths (pqa_sections, medquad_qa), one gradient
of each. First every site's gradient from the grouped pass has to be the one that it has alone; then all ways
are timed in turn on the same rows, and shown as a ratio to one site after another, padded, in float32.
One thread unless OMP_NUM_THREADS says otherwise; the base's dropout is off.

Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from quality import Bench, parsed

from wardround.runtime.events import EventStream
from wardround.simulations.rows import gather
from wardround.training.gradients import accumulate_gradient
from wardround.training.plan_making import task_of
from wardround.training.together import Share, gradients_together, linear_layers
from wardround.training.workbench import Workbench

SITES = 8
MODELS = {
    "minilm": [
        "model=minilm", "data=pqa_sections", "adapter.options.targets=[query,value]",
        "partition.kind=dirichlet", "~partition.options",
        "+partition.options={sites: 8, alpha: 100, by: unit}",
    ],
    "med_llama": [
        "model=med_llama", "data=medquad_qa", "adapter.options.targets=[q_proj,v_proj]", "data.max_length=96",
        "release.metric=bits_per_byte", "release.direction=min",
    ],
}  # fmt: skip
COMMON = ["data.limit=400", "model.dropout='off'", "secure.mode='off'"]
NEAR = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest relative difference of a gradient: another order of sums, of rounded products."""


def bench_of(model: str, precision: str) -> tuple[Workbench, list[Any]]:
    """A bench in training mode, and the rows of everybody."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    config = parsed([*MODELS[model], *COMMON, f"machine.precision={precision}", f"machine.threads={threads}"])
    task, spec = task_of(config)
    opened = Bench.open(config, gather(config, task, spec), EventStream())
    bench = opened.prepared.bench
    bench.load_adapter(opened.prepared.initial)
    bench.model.train()
    return bench, [row for _, rows in sorted(opened.federated.sites.items()) for row in rows.training]


def seats_of(bench: Workbench) -> list[dict[str, torch.nn.Parameter]]:
    """An adapter a site, each moved a little."""
    torch.manual_seed(0)
    return [
        {
            name: torch.nn.Parameter(parameter.detach() + 0.01 * torch.randn_like(parameter))
            for name, parameter in bench.parameters().items()
        }
        for _ in range(SITES)
    ]


def in_turn(
    bench: Workbench, rows: list[Any], seats: list[dict[str, torch.nn.Parameter]], batches: list[Any]
) -> None:
    """One site after another, each in the model itself."""
    for seat, batch in zip(seats, batches, strict=True):
        with torch.no_grad():
            for name, parameter in bench.parameters().items():
                parameter.copy_(seat[name])
                parameter.grad = None
        accumulate_gradient(bench, rows, batch)
        for name, parameter in bench.parameters().items():
            assert parameter.grad is not None
            seat[name].grad = parameter.grad.clone()


def together(
    bench: Workbench,
    rows: list[Any],
    seats: list[dict[str, torch.nn.Parameter]],
    batches: list[Any],
    group: int,
) -> None:
    """So many at a time."""
    layers = linear_layers(bench)
    for first in range(0, SITES, group):
        own = slice(first, first + group)
        shares = [Share(seat, rows, batch) for seat, batch in zip(seats[own], batches[own], strict=True)]
        for seat in seats[own]:
            for parameter in seat.values():
                parameter.grad = None
        gradients_together(bench, shares, layers)


def lengths(seats: list[dict[str, torch.nn.Parameter]]) -> list[torch.Tensor]:
    """Each site's gradient, flat."""
    return [torch.cat([p.grad.flatten() for p in seat.values() if p.grad is not None]) for seat in seats]


def measure(model: str, batch: int, groups: list[int], repeats: int) -> None:
    """One line of the table a way."""
    ways: dict[str, Callable[[list[Any]], None]] = {}
    found: dict[str, list[torch.Tensor]] = {}
    rng = np.random.default_rng(0)
    opened = {precision: bench_of(model, precision) for precision in ("fp32", "bf16")}
    draws = [
        [rng.integers(0, len(opened["fp32"][1]), batch) for _ in range(SITES)] for _ in range(repeats + 1)
    ]
    for precision, (bench, rows) in opened.items():
        seats = seats_of(bench)
        for group, free in product((1, *groups), (False, True)):
            name = f"{precision}, {group} at a time, {'without padding' if free else 'padded'}"

            def way(
                batches: list[Any],
                bench: Workbench = bench,
                rows: list[Any] = rows,
                seats: list[dict[str, torch.nn.Parameter]] = seats,
                group: int = group,
                free: bool = free,
            ) -> None:
                bench.padding.wanted = free
                if group == 1:
                    in_turn(bench, rows, seats, batches)
                else:
                    together(bench, rows, seats, batches, group)

            ways[name] = way
            way(draws[0])
            found[name] = lengths(seats)
            for own, expected in zip(found[name], found[f"{precision}, 1 at a time, padded"], strict=True):
                apart = float((own - expected).norm() / expected.norm())
                assert apart < NEAR[precision], f"{name}: gradients differ by {apart:.2g}"
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for batches in draws[1:]:
        for name, way in ways.items():
            started = time.perf_counter()
            way(batches)
            taken[name].append(time.perf_counter() - started)
    base = taken["fp32, 1 at a time, padded"]
    for name, seconds in taken.items():
        ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
        spread = statistics.median(seconds) / SITES * 1e3
        print(f"| {model} | {batch} | {name} | {spread:.1f} ms | {ratio:.2f} |", flush=True)


def main() -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--groups", nargs="*", type=int, default=[2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print("| model | batch | way | a site's step | times as fast |\n|---|---|---|---|---|")
    for model in args.models:
        for batch in args.batches:
            measure(model, batch, args.groups, args.repeats)


if __name__ == "__main__":
    main()
