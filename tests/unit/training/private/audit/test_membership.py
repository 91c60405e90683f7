"""Membership inference finds what was memorised, and nothing where noise hides it; AUC and its interval."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import DataError
from wardround.core.plan import LocalWork
from wardround.strategies.contract import LocalRules
from wardround.training.local_round import LocalJob, train_locally
from wardround.training.private.audit import membership as module
from wardround.training.private.audit.membership import Asked, membership
from wardround.training.private.audit.roc import separation


@pytest.fixture
def trained(toys: Any, folders: Any, private_round: Any) -> Any:
    """`trained(family, sigma)`: a bench, the rows that were trained on, others, and both adapters."""

    def make(family: str, sigma: float | None) -> Any:
        task = toys.classifier if family == "bert" else toys.causal
        bench = toys.bench(folders[family], task, r=8, base_dropout="off")
        every = toys.rows(80, seed=3, longest=14)
        every = [row for row in every if task.targets(row)]
        if family == "bert":  # labels that only memory can tell
            labels = np.random.default_rng(4).integers(0, 3, len(every))
            every = [replace(row, label=int(label)) for row, label in zip(every, labels, strict=True)]
        rows, others = every[: len(every) // 2], every[len(every) // 2 :]
        work = LocalWork(steps=60, batch_size=len(rows), learning_rate=1e-2)
        private = None
        if sigma is not None:
            made = private_round(sigma=sigma, bound=1.0)
            cost = replace(made.cost, steps=25, sample_rate=1.0)
            private = replace(made, cost=cost, units=[str(row) for row in range(len(rows))])
        result = train_locally(
            bench,
            LocalJob(
                rows,
                bench.initial_adapter(),
                work,
                LocalRules(),
                round=1,
                rounds=1,
                seed_root=1,
                site="s",
                private=private,
            ),
        )
        return bench, rows, others, result.adapter

    return make


def asked(rows: list[Any], name: str) -> Asked:
    """Each row a unit."""
    return Asked(rows, [f"{name}{number}" for number in range(len(rows))])


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_what_was_memorised_is_found(family: str, trained: Any) -> None:
    """Without privacy the loss falls on the rows of the training and nowhere else."""
    bench, rows, others, adapter = trained(family, None)
    before = bench.initial_adapter()
    bench.load_adapter(before)
    found = membership(bench, adapter, before, asked(rows, "a"), asked(others, "b"))
    assert set(found) == {"calibrated", "loss", "control"} | ({"min-k"} if family == "llama" else set())
    assert found["calibrated"].auc > 0.75
    assert found["calibrated"].low > 0.6
    assert found["control"].low < 0.5 < found["control"].high  # the rows are alike
    assert bench.read_adapter().digest == before.digest
    if family == "llama":
        assert found["min-k"].low > 0.6
        assert found["calibrated"].auc >= found["loss"].auc  # the base knows which rows are hard


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_strong_noise_hides_the_members(family: str, trained: Any) -> None:
    """The interval holds 0.5."""
    bench, rows, others, adapter = trained(family, 60.0)
    found = membership(bench, adapter, bench.initial_adapter(), asked(rows, "a"), asked(others, "b"))
    assert found["calibrated"].low < 0.5 < found["calibrated"].high


def test_scores_are_of_units_and_a_unit_of_both_sides_is_a_member(trained: Any) -> None:
    """Rows of one patient are no independent witnesses; who was trained on is no stranger."""
    bench, rows, others, adapter = trained("bert", 60.0)
    members = Asked(rows, [str(number // 2) for number in range(len(rows))])
    strangers = Asked(others, ["0", "1", *[f"x{number // 3}" for number in range(len(others) - 2)]])
    found = membership(bench, adapter, bench.initial_adapter(), members, strangers)["loss"]
    assert found.members == math.ceil(len(rows) / 2)
    assert found.others == math.ceil((len(others) - 2) / 3)


def test_the_reference_takes_away_how_hard_a_row_is(toys: Any, tiny_bert: Any, monkeypatch: Any) -> None:
    """Members have lost a tenth of a nat, which shows in the difference and not in the loss."""
    rng = np.random.default_rng(0)
    bench = toys.bench(tiny_bert, toys.classifier)
    hard = {"a": rng.normal(5, 3, 60), "b": rng.normal(5, 3, 60)}
    released = bench.initial_adapter().with_vector(bench.initial_adapter().vector + 1)

    def losses(_: Any, adapter: Any, side: Asked) -> tuple[np.ndarray, np.ndarray]:
        name = side.units[0][0]
        learned = 0.1 if adapter is released and name == "a" else 0.0
        return hard[name] - learned, hard[name]

    monkeypatch.setattr(module, "_losses", losses)
    rows = toys.rows(60)
    found = membership(bench, released, bench.initial_adapter(), asked(rows, "a"), asked(rows, "b"))
    assert found["calibrated"].auc == 1.0
    assert found["loss"].low < 0.5 < found["loss"].high


def test_auc_and_interval_are_those_of_the_slow_way() -> None:
    """Every pair looked at; DeLong's variance from its definition."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.7, 1, 40).round(1), rng.normal(0, 1, 55).round(1)
    pairs = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    found = separation(a, b)
    assert found.auc == pytest.approx(pairs.mean())
    spread = math.sqrt(pairs.mean(1).var(ddof=1) / 40 + pairs.mean(0).var(ddof=1) / 55)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * spread, rel=1e-5)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Normal scores a standard deviation apart: AUC = Φ(1/√2)."""
    rng, truth, inside = np.random.default_rng(1), 0.76025, 0
    for _ in range(400):
        found = separation(rng.normal(1, 1, 60), rng.normal(0, 1, 60))
        inside += found.low < truth < found.high
    assert 0.91 < inside / 400 < 0.98


def test_hits_count_no_more_false_alarms_than_allowed() -> None:
    """Ten of a thousand others may be above the threshold, and one of them; of fifty, none."""
    others, members = np.arange(1000.0), np.array([989.0, 989.5, 995.5, 998.5, 999.5])
    percent, tenth = separation(members, others).hits
    assert (percent.allowed, percent.found) == (10, 4)
    assert (tenth.allowed, tenth.found, tenth.rate) == (1, 2, 0.4)
    assert separation(members, np.arange(50.0)).hits[0].allowed == 0


def test_a_perfect_separation_is_no_certainty() -> None:
    """Five against five in order: an AUC below one half is not shown to be impossible by more than that."""
    found = separation(np.arange(5.0) + 10, np.arange(5.0))
    assert (found.auc, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 5))


@pytest.mark.parametrize("scores", [[1.0], [1.0, math.nan]])
def test_too_few_scores_are_refused(scores: list[float]) -> None:
    """Or such that are none."""
    with pytest.raises(DataError, match="too few scores"):
        separation(np.array(scores), np.arange(5.0))
