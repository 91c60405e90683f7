"""What the simulator costs beside a bare PyTorch loop that does the same steps on the same batches.

    python benchmarks/overhead.py [ROUNDS] [REPEATS]

One arm of the demo (MiniLM, four hospitals), validation off, once through Flower's engine, the round loop
and the site's handler (A), once through `simulations/twin.py`, which is the bare loop (B). First both have
to end with the identical adapter; then they are timed A B A B in this process. Goal: median A/B ≤ 1.10.

Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from wardround.core.packed import Adapter
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.runtime.events import EventStream
from wardround.simulations.arms import Arm, run_arms
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import encode_all, prepare
from wardround.simulations.twin import run_twin
from wardround.training.workbench import Workbench

POLICY = SecurePolicy(modes=("real", "off"), least_cohort=4)


def demo(rounds: int) -> tuple[Arm, Workbench, Adapter]:
    """The demo's federation without a validation part."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = compose(
            "config",
            overrides=[
                "experiment=demo",
                "strategy=fedavg",  # what the bare loop does
                f"rounds.rounds={rounds}",
                "data.validation_fraction=0",
                "machine.microbatch_size=null",  # the bare loop cuts no batch
            ],
        )
    config = RunConfig.parse(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]  # a mapping
    prepared = prepare(config)
    return encode_all(prepared, EventStream())[0], prepared.bench, prepared.initial


def simulated(arm: Arm, bench: Workbench, initial: Adapter) -> str:
    """Digest of the last adapter, through the engine."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_arms(
            [arm], bench, initial, lambda name: Path(folder) / name, EventStream(),
            run_id="benchmark", lanes=8, policy=POLICY,
            each=lambda _, train: train(lambda _: None),
        )  # fmt: skip
    return outcomes[0].last.adapter.digest


def main(rounds: int = 3, repeats: int = 3) -> None:
    """Assert equality, then time."""
    arm, bench, initial = demo(rounds)
    times: dict[str, list[float]] = {"simulated": [], "bare": []}
    digests = set()
    for _ in range(repeats):
        for name, run in (
            ("simulated", lambda: simulated(arm, bench, initial)),
            ("bare", lambda: run_twin(arm, bench, initial).digest),
        ):
            started = time.perf_counter()
            digests.add(run())
            times[name].append(time.perf_counter() - started)
        assert len(digests) == 1, "the contenders do not do the same work"
    ratios = [a / b for a, b in zip(times["simulated"], times["bare"], strict=True)]
    for name, values in times.items():
        print(f"{name:10} median {statistics.median(values):7.2f} s  of {[round(v, 2) for v in values]}")
    print(f"ratio      median {statistics.median(ratios):7.3f}    of {[round(r, 3) for r in ratios]}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
