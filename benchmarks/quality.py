"""Federated against centralised and against each site alone, on the real sets (needs WARDROUND_DATA).

    python benchmarks/quality.py SET [SEED ...] [--override KEY=VALUE ...]   a finished seed is not run again
    python benchmarks/quality.py --table                                     print what has been run

SET is one of SETS. One line a finished seed goes to benchmarks/results/quality.jsonl. The ratio is that of
macro-F1 (for the causal LM of bits per byte, centralised over federated), with a paired bootstrap over the
test rows for the classifiers. Rates were tuned on nothing but the sites' validation parts.

Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import f1_score

from wardround.simulations.command import run_composed
from wardround.simulations.result_folder import scores_record
from wardround.simulations.simulate import ArmResult, SimulationResult

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
SPLIT = "partition.options.path=data://data/splits/pqa_sections.dir{alpha}.n10.seed{seed}.json.gz"
SETS: dict[str, list[str]] = {
    "pqa_sections_0.5": ["experiment=pqa_sections", SPLIT.replace("{alpha}", "0.5")],
    "pqa_sections_0.1": ["experiment=pqa_sections", SPLIT.replace("{alpha}", "0.1")],
    "heart": ["experiment=demo"],
    "medquad_qtype": ["experiment=medquad_qtype"],
    "medquad_qa": ["experiment=medquad_qa"],
}
LEAST_SUPPORT = 30
DRAWS = 2000


def run(name: str, seed: int, extra: list[str], folder: Path) -> dict[str, Any]:
    """One seed of one set: the figures of every arm and the ratio."""
    overrides = [text.format(seed=seed) for text in SETS[name]] + [
        f"seed={seed}", f"output={folder}", "bounds.local_only=true", "bounds.centralised=true", *extra,
    ]  # fmt: skip
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = compose("config", overrides=overrides)
    result = run_composed(composed, console=Console())
    record: dict[str, Any] = {"set": name, "seed": seed, "overrides": extra}
    for arm, ended in {"federated": result.federated, **result.bounds}.items():
        record[arm] = scores_record(ended.test["test"])
    record |= ratio(result)
    return record


def ratio(result: SimulationResult) -> dict[str, Any]:
    """Federated over centralised."""
    arms = result.federated, result.bounds["centralised"]
    metrics = [arm.test["test"].values for arm in arms]
    if "bits_per_byte" in metrics[0]:
        return {"ratio": metrics[1]["bits_per_byte"] / metrics[0]["bits_per_byte"]}
    truth, answers = labels_of(result, arms)
    counts = np.bincount(truth, minlength=int(truth.max()) + 1)
    counted = np.flatnonzero(counts >= LEAST_SUPPORT)
    draws = np.random.default_rng(0).integers(0, truth.size, size=(DRAWS, truth.size))

    def score(rows: NDArray[Any], guess: NDArray[Any]) -> float:
        return float(f1_score(truth[rows], guess[rows], labels=counted, average="macro", zero_division=0))

    every = np.arange(truth.size)
    drawn = [score(rows, answers[0]) / score(rows, answers[1]) for rows in draws]
    low, high = np.quantile(drawn, [0.025, 0.975])
    macro = [score(every, guess) for guess in answers]
    return {"ratio": macro[0] / macro[1], "interval": [float(low), float(high)], "macro_f1": macro}


def labels_of(
    result: SimulationResult, arms: tuple[ArmResult, ...]
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """True labels of the test rows, and each arm's guesses."""
    from wardround.simulations.after_run import FinishedRun
    from wardround.training.adapters import ADAPTERS
    from wardround.training.workbench import open_workbench

    finished = FinishedRun.open(result.folder)
    config, plan, task = finished.config, finished.plan, finished.task
    assert config.data.test is not None
    examples = finished.examples(config.data.test)
    method = ADAPTERS.get(config.adapter.method)
    options = method.Options.model_validate(config.adapter.options)
    bench = open_workbench(config.model, task, plan.data, method, options, config.machine, seed=config.seed)
    guesses = []
    for arm in arms:
        bench.load_adapter(arm.outcome.released)
        said = task.predict(
            bench.model, bench.tokenizer, examples, plan.data, plan.task, batch_size=64, device=bench.device
        )
        guesses.append(np.array([plan.data.labels.index(answer["label"]) for answer in said]))
    return np.array([example.label for example in examples]), guesses


def table() -> None:
    """Mean over seeds of everything that has been run."""
    records = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    for name in dict.fromkeys(record["set"] for record in records):
        found = [record for record in records if record["set"] == name]
        metric = "bits_per_byte" if "bits_per_byte" in found[0]["federated"]["values"] else "macro_f1"
        local = [
            statistics.mean(arm["values"][metric] for key, arm in record.items() if key.startswith("local/"))
            for record in found
        ]
        print(
            f"{name:20} {len(found)} seeds  {metric}: federated "
            f"{statistics.mean(r['federated']['values'][metric] for r in found):.3f}  centralised "
            f"{statistics.mean(r['centralised']['values'][metric] for r in found):.3f}  "
            f"mean local {statistics.mean(local):.3f}  ratio "
            f"{[round(r['ratio'], 3) for r in found]}  intervals "
            f"{[[round(x, 3) for x in r.get('interval', [])] for r in found]}"
        )


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("set", nargs="?", choices=sorted(SETS))
    parser.add_argument("seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--override", nargs="*", default=[])
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table or arguments.set is None:
        table()
        return
    RESULTS.parent.mkdir(exist_ok=True)
    done = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    known = {(r["set"], r["seed"], tuple(r["overrides"])) for r in map(json.loads, done)}
    for seed in arguments.seeds or [0, 1, 2]:
        if (arguments.set, seed, tuple(arguments.override)) in known:
            continue
        folder = Path("runs") / "quality" / f"{arguments.set}_{seed}_{len(known)}"
        record = run(arguments.set, seed, arguments.override, folder)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    table()


if __name__ == "__main__":
    main()
