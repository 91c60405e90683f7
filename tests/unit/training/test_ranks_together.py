"""Sites of other ranks than the plan's that train together, against each of them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import InternalError
from wardround.core.packed import Adapter
from wardround.core.plan import LocalWork
from wardround.core.ranks import AtRank, at_rank, fresh_beside
from wardround.strategies.contract import LocalRules
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.settings import Machine
from wardround.training.together import Seat, train_together
from wardround.training.workbench import Workbench

RANK = 3
"""The plan's."""
WORK = LocalWork(steps=4, batch_size=3, learning_rate=5e-3, optimiser="adamw", optimiser_state="keep")
RANKS = (1, 3, 5, 2)
"""Of the sites: with directions frozen beside them, the plan's, more than that, and another smaller one."""


@pytest.fixture(scope="module")
def benches(tiny_llama: Path, tiny_bert: Path, toys: Any) -> dict[str, Workbench]:
    """Without dropout; BERT with a head that trains in full."""
    folders = {"llama": tiny_llama, "bert": tiny_bert}
    return {
        family + kind: toys.bench(
            folder, toys.classifier if family == "bert" else toys.causal, base_dropout="off",
            machine=Machine(device="cpu"), r=RANK, dora=bool(kind),
        )
        for family, folder in folders.items()
        for kind in ("", "-dora")
    }  # fmt: skip


def jobs_of(bench: Workbench, toys: Any, start: Callable[[Adapter, int], AtRank]) -> list[LocalJob]:
    """A site each, whose adapter has something in every direction before it takes the site's rank."""
    jobs = []
    for index, rank in enumerate(RANKS):
        noise = np.random.default_rng(index).standard_normal(bench.layout.size, dtype=np.float32)
        whole = bench.initial_adapter()
        began = start(whole.with_vector(whole.vector + 0.05 * noise), rank)
        jobs.append(
            LocalJob(
                toys.rows((9, 2, 6, 14)[index], seed=index), began.trained, WORK, LocalRules(), round=1,
                rounds=2, seed_root=5, site=f"s{index}", rest=began.rest,
            )
        )  # fmt: skip
    return jobs


def own(adapter: Adapter, rank: int) -> AtRank:
    """As a site of its own rank begins."""
    return at_rank(adapter, rank, np.random.default_rng(7))


def new(adapter: Adapter, rank: int) -> AtRank:
    """As FLoRA's sites begin: the whole adapter stands frozen."""
    return fresh_beside(adapter, rank, np.random.default_rng(7))


def results(bench: Workbench, jobs: list[LocalJob]) -> list[LocalResult]:
    """Together, all of whom succeed."""
    found = train_together(bench, jobs)
    assert all(isinstance(each, LocalResult) for each in found), found
    return [each for each in found if isinstance(each, LocalResult)]


def require_near(jobs: list[LocalJob], alone: list[LocalResult], together: list[LocalResult]) -> None:
    """The same counts, numbers that differ by rounding, and each at its own rank."""
    for job, one, other in zip(jobs, alone, together, strict=True):
        assert (one.steps, one.targets) == (other.steps, other.targets)
        assert other.loss_sum == pytest.approx(one.loss_sum, rel=1e-5)
        assert other.adapter.layout.digest == one.adapter.layout.digest == job.before.layout.digest
        np.testing.assert_allclose(other.adapter.vector, one.adapter.vector, atol=2e-4)
        assert np.abs(one.adapter.vector - job.before.vector).max() > 1e-3


@pytest.mark.parametrize("start", [own, new])
@pytest.mark.parametrize("free", [True, False], ids=["free", "padded"])
@pytest.mark.parametrize("family", ["llama", "bert", "llama-dora", "bert-dora"])
def test_each_site_ends_where_it_ends_alone(
    family: str, free: bool, start: Any, benches: dict[str, Workbench], toys: Any, monkeypatch: Any
) -> None:
    """Round after round, with its optimiser's state; without padding and padded."""
    bench = benches[family]
    monkeypatch.setattr(bench.padding, "wanted", False)
    jobs = jobs_of(bench, toys, start)
    assert len({job.before.layout.digest for job in jobs}) == len(RANKS)
    alone = [train_locally(bench, job) for job in jobs]
    monkeypatch.setattr(bench.padding, "wanted", free)
    together = results(bench, jobs)
    require_near(jobs, alone, together)
    again = [
        replace(job, before=result.adapter, optimiser_state=result.optimiser_state, round=2)
        for job, result in zip(jobs, alone, strict=True)
    ]
    later = results(bench, again)
    monkeypatch.setattr(bench.padding, "wanted", False)
    require_near(again, [train_locally(bench, job) for job in again], later)


@pytest.mark.parametrize("family", ["llama", "llama-dora"])
def test_what_stood_beside_a_site_that_trained_alone_stands_beside_no_lot(
    family: str, benches: dict[str, Workbench], toys: Any
) -> None:
    """The bench still holds that one's adapter when the others begin."""
    bench = benches[family]
    jobs = jobs_of(bench, toys, own)
    before = results(bench, jobs)
    train_locally(bench, jobs[0])
    for one, other in zip(before, results(bench, jobs), strict=True):
        np.testing.assert_array_equal(one.adapter.vector, other.adapter.vector)


def test_directions_that_stand_frozen_count(benches: dict[str, Workbench], toys: Any) -> None:
    """Without them a site ends elsewhere: the agreement above is about something."""
    bench = benches["llama"]
    jobs = jobs_of(bench, toys, own)
    less = [replace(job, rest=None) for job in jobs]
    found = [
        np.abs(one.adapter.vector - other.adapter.vector).max()
        for one, other in zip(results(bench, jobs), results(bench, less), strict=True)
    ]
    assert [bool(apart > 1e-3) for apart in found] == [job.rest is not None for job in jobs]


def test_a_seat_takes_adapters_of_its_benchs_modules_alone(benches: dict[str, Workbench]) -> None:
    """At any rank."""
    seat, small = Seat(benches["llama"]), own(benches["llama"].initial_adapter(), 1)
    seat.load_adapter(small.trained, small.rest)
    assert seat.read_adapter().layout.digest == small.trained.layout.digest
    np.testing.assert_array_equal(seat.read_adapter().vector, small.trained.vector)
    with pytest.raises(InternalError, match="other modules"):
        seat.load_adapter(benches["bert"].initial_adapter())
