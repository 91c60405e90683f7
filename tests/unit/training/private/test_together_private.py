"""Private sites that train together against each of them alone.

Words for batches and noise are the same, one for one. Clipped sums differ by rounding: 1e-5 of their length
in float32 (in steps after the first the adapters differ already), and the adapters by 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from wardround.core.errors import ConfigError, InternalError, PolicyError, TrainingError
from wardround.core.plan import LocalWork
from wardround.core.privacy_rules import AdaptiveClipping, PrivacyRules
from wardround.privacy.accounting.of_plan import RoundCost
from wardround.strategies.contract import LocalRules
from wardround.training import together
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.private import gradient, per_example, summing
from wardround.training.private.local import PrivateRound
from wardround.training.together import Seat, train_together, why_alone
from wardround.training.workbench import Machine, Workbench

EXACT, SUMS = 1e-6, 1e-5
UNITS = ("ann", "ann", "bob", "cyd", "dan", "dan", "dan", "eve")
LOCAL = PrivacyRules(unit="patient", sigma=1.0, delta=1e-2)
DISTRIBUTED = PrivacyRules(unit="patient", sigma=1.0, delta=1e-2, noise="distributed", sample_rate=0.5)
ADAPTIVE = LOCAL.model_copy(update={"clipping": "adaptive", "adaptive": AdaptiveClipping(count_noise=3.0)})
SGD = LocalWork(batch_size=2, optimiser="sgd", steps=1, learning_rate=0.05, max_grad_norm=None)
STEPS = (3, 1, 4, 2)


class Told:
    """Words from a seed, and how many were asked for."""

    repeatable = True

    def __init__(self, seed: int) -> None:
        self.asked: list[int] = []
        self._rng = np.random.default_rng(seed)

    def words(self, count: int) -> np.ndarray:
        """The next so many."""
        self.asked.append(count)
        return self._rng.integers(0, 2**64, count, dtype=np.uint64)


def job_of(bench: Workbench, toys: Any, site: int, rules: PrivacyRules = LOCAL, **more: Any) -> LocalJob:
    """Another adapter, other rows, another number of steps for each site; options replace parts of it."""
    steps = 1 if rules is DISTRIBUTED else more.get("steps", STEPS[site])
    units = more.get("units", UNITS[: 8 - 2 * (site % 2)])
    noise = np.random.default_rng(site).normal(0, 0.05, bench.layout.size).astype(np.float32)
    start = bench.initial_adapter()
    private = PrivateRound(
        rules, RoundCost(5, more.get("rate", 0.5), 1.0, steps, 3, 1e-2, "patient"), 2.0, units,
        more.get("bound", 0.05), Told(10 + site), Told(20 + site), more.get("simulation", True),
    )  # fmt: skip
    return LocalJob(
        toys.rows(len(units), seed=more.get("seed", site)), start.with_vector(start.vector + noise),
        SGD.model_copy(update={"steps": steps} | more.get("work", {})), more.get("strategy", LocalRules()),
        round=1, rounds=3, seed_root=1, site=f"s{site}", private=private,
    )  # fmt: skip


Jobs = Callable[[], list[LocalJob]]
Seen = dict[str, list[np.ndarray]]


def noised(jobs: Sequence[LocalJob], train: Callable[[list[LocalJob]], Any]) -> tuple[Any, Seen]:
    """What training gives, and of each site the sums that noise was added to."""
    names = {id(job.private.noise): job.site for job in jobs if job.private is not None}
    seen: Seen = {job.site: [] for job in jobs}
    plain = gradient.add_noise

    def watched(total: np.ndarray, deviation: float, source: Any) -> np.ndarray:
        if total.size > 1:  # the count of adaptive clipping is no sum
            seen[names[id(source)]].append(total.copy())
        return plain(total, deviation, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "add_noise", watched)
        return train(list(jobs)), seen


def require_equal(bench: Workbench, jobs: Jobs) -> list[LocalResult]:
    """Together is alone, of each site; gives what it is."""
    one, other = jobs(), jobs()
    alone, sums = noised(one, lambda some: [train_locally(bench, job) for job in some])
    found, shared = noised(other, lambda some: train_together(bench, some))
    for job, twin, expected, result in zip(one, other, alone, found, strict=True):
        assert isinstance(result, LocalResult), result
        assert job.private is not None
        assert twin.private is not None
        for source in ("batches", "noise"):
            assert getattr(job.private, source).asked == getattr(twin.private, source).asked
            last = [getattr(each.private, source).words(3) for each in (job, twin)]
            np.testing.assert_array_equal(*last)
        assert len(sums[job.site]) == len(shared[job.site])
        for ours, theirs in zip(shared[job.site], sums[job.site], strict=True):
            assert np.linalg.norm(ours - theirs) <= SUMS * np.linalg.norm(theirs)
        np.testing.assert_allclose(result.adapter.vector, expected.adapter.vector, atol=EXACT)
        assert (result.steps, result.examples, result.clip_norm) == (
            expected.steps, expected.examples, expected.clip_norm,
        )  # fmt: skip
        if expected.update is not None:
            assert result.update is not None
            distance = np.linalg.norm(result.update.vector - expected.update.vector)
            assert distance <= SUMS * np.linalg.norm(expected.update.vector)
        for own, theirs in zip(result.private, expected.private, strict=True):
            counts = ("targets", "examples", "units", "clipped", "dropped")
            assert [getattr(own, c) for c in counts] == [getattr(theirs, c) for c in counts]
            for name in ("loss_sum", "median_norm", "signal_to_noise"):
                assert getattr(own, name) == pytest.approx(getattr(theirs, name), rel=1e-4)
    return list(found)


def cut(bench: Workbench, size: int | None) -> Workbench:
    """The bench with microbatches of so many rows."""
    return replace(bench, machine=Machine(device="cpu", microbatch_size=size))


FAMILIES = {
    "llama": {}, "bert": {"clipping": "per_layer"}, "gpt2": {"clipping": "automatic"},
    "bert-dora": {"clipping": "flat"}, "gpt2-dora": {"clipping": "per_layer"}, "llama-dora": {},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_each_private_site_ends_where_it_ends_alone(family: str, opened: Any, toys: Any) -> None:
    """Patients of several rows, some clipped and some not, in microbatches that hold several sites' rows."""
    name, _, kind = family.partition("-")
    bench = opened(name, dora=bool(kind), r=3)
    assert why_alone(bench) == ""
    rules = LOCAL.model_copy(update=FAMILIES[family])
    bounds = (0.05, 0.5, 2.0, 0.05)

    def jobs() -> list[LocalJob]:
        return [job_of(bench, toys, site, rules, bound=bounds[site]) for site in range(4)]

    found = require_equal(cut(bench, 3), jobs)
    require_equal(bench, jobs)
    assert not bench.model.training
    assert not [module for module in bench.model.modules() if {"forward", "directions"} & vars(module).keys()]
    figures = [step for result in found for step in result.private]
    assert {step.units for step in figures} > {1, 2}
    assert any(step.clipped for step in figures)
    assert family.startswith("bert") is any("classifier.bias" in name for name in bench.parameters())


@pytest.mark.parametrize("rules", [ADAPTIVE, DISTRIBUTED], ids=["adaptive", "distributed"])
def test_clip_norms_that_move_and_sums_without_noise_are_each_sites_own(
    rules: PrivacyRules, opened: Any, toys: Any
) -> None:
    """And moments that are kept, a proximal term, and tensors that a strategy freezes."""
    bench = opened("bert")
    frozen = frozenset(spec.name for spec in bench.layout.tensors if spec.role == "lora_a")
    strategy = LocalRules(proximal=0.3, frozen=frozen)
    work = {"optimiser": "adamw", "learning_rate": 1e-3, "optimiser_state": "keep"}

    def jobs() -> list[LocalJob]:
        return [job_of(bench, toys, site, rules, strategy=strategy, work=work) for site in range(3)]

    for result, job in zip(require_equal(bench, jobs), jobs(), strict=True):
        moved = result.adapter.vector != job.before.vector
        assert moved.any() == (rules is ADAPTIVE)
        assert (result.update is None) == (rules is ADAPTIVE)
        for name in frozen:
            np.testing.assert_array_equal(result.adapter[name], job.before[name])
            assert result.update is None or not result.update[name].any()


def test_batches_that_are_empty_are_noise_alone_to_the_bit(opened: Any, toys: Any) -> None:
    """Of all sites, and of one beside others that have rows."""
    bench = opened("llama")

    def jobs(*rates: float) -> list[LocalJob]:
        return [job_of(bench, toys, site, rate=rate) for site, rate in enumerate(rates)]

    for rates in ((1e-12, 1e-12), (1.0, 1e-12, 0.5)):
        found = require_equal(bench, lambda rates=rates: jobs(*rates))
        alone = train_locally(bench, jobs(*rates)[1])
        np.testing.assert_array_equal(found[1].adapter.vector, alone.adapter.vector)
        assert {step.units for step in found[1].private} == {0}


@pytest.fixture
def bert(opened: Any) -> Workbench:
    """A small classifier, of which a head trains in full."""
    bench: Workbench = opened("bert", r=2)
    return bench


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sites_together_are_each_of_them_alone(data: st.DataObject, bert: Workbench, toys: Any) -> None:
    """Numbers of rows, patients, steps and rates, lengths, microbatches; none at all among them."""
    bench = cut(bert, data.draw(st.none() | st.integers(1, 6)))
    chosen = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "units": st.lists(st.sampled_from("abc"), max_size=5),
                    "rate": st.sampled_from([1e-12, 0.3, 0.7, 1.0]),
                    "steps": st.integers(1, 3),
                    "seed": st.integers(0, 99),
                    "bound": st.sampled_from([1e-3, 0.5, 10.0]),
                }
            ),
            min_size=2,
            max_size=4,
        )
    )
    require_equal(
        bench, lambda: [job_of(bench, toys, site, **options) for site, options in enumerate(chosen)]
    )


def test_rows_that_are_not_finite_cost_nobody_but_their_patient(opened: Any, toys: Any) -> None:
    """One site's adapter spoils all of its rows: it adds noise alone, and the others do not notice."""
    bench = opened("llama")

    def jobs() -> list[LocalJob]:
        jobs = [job_of(bench, toys, site, steps=2, rate=1.0) for site in range(3)]
        broken = jobs[1].before.vector.copy()
        broken[::2] = 1e30  # the other half moves
        return [jobs[0], replace(jobs[1], before=jobs[1].before.with_vector(broken)), jobs[2]]

    found = train_together(bench, jobs())
    for index, job in enumerate(jobs()):
        result, alone = found[index], train_locally(bench, job)
        assert isinstance(result, LocalResult)
        dropped = [step.dropped for step in result.private]
        assert dropped == [step.dropped for step in alone.private] == ([4, 4] if index == 1 else [0, 0])
        np.testing.assert_allclose(result.adapter.vector, alone.adapter.vector, atol=EXACT)


def test_one_private_sites_refusal_is_no_others(opened: Any, toys: Any) -> None:
    """A seed outside of simulations, other tensors than the others train, and what moves nothing."""
    bench = opened("llama")
    a = frozenset(spec.name for spec in bench.layout.tensors if spec.role == "lora_a")
    jobs = [
        job_of(bench, toys, 0),
        job_of(bench, toys, 1, simulation=False),
        job_of(bench, toys, 2, strategy=LocalRules(frozen=a)),
        job_of(bench, toys, 3, work={"learning_rate": 1e-30}),
    ]
    found = train_together(bench, jobs)
    assert isinstance(found[1], PolicyError)
    assert "comes from a seed" in str(found[1])
    assert isinstance(found[2], InternalError)
    assert "of other tensors" in str(found[2])
    assert isinstance(found[3], TrainingError)
    assert found[3].code == "nothing_moved"
    assert isinstance(found[0], LocalResult)
    alone = train_locally(bench, job_of(bench, toys, 0))
    np.testing.assert_allclose(found[0].adapter.vector, alone.adapter.vector, atol=EXACT)


def test_a_private_site_trains_beside_one_that_is_not(opened: Any, toys: Any) -> None:
    """Each by its own kind of step."""
    bench = opened("llama")
    jobs = [job_of(bench, toys, site, work={"learning_rate": 1e-2}) for site in range(2)]
    plain = replace(jobs[1], private=None, site="plain")
    found = train_together(bench, [jobs[0], plain])
    for result, job in zip(found, [job_of(bench, toys, 0, work={"learning_rate": 1e-2}), plain], strict=True):
        assert isinstance(result, LocalResult)
        alone = train_locally(bench, job)
        np.testing.assert_allclose(result.adapter.vector, alone.adapter.vector, atol=1e-5)
        assert len(result.private) == (0 if job is plain else 3)


def test_the_base_is_watched_for_all(opened: Any, toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that torch counts stops the pass, one past its counters the whole lot; nobody has a result."""
    bench = opened("bert")
    weight = next(p for p in bench.model.parameters() if not p.requires_grad)
    plain = together.clipped_sums
    for through_data in (False, True):

        def writing(*given: Any, through_data: bool = through_data) -> Any:
            with torch.no_grad():
                (weight.data if through_data else weight).mul_(1.0 if not through_data else 1.5)
            return plain(*given)

        monkeypatch.setattr(together, "clipped_sums", writing)
        with pytest.raises(InternalError, match="outside the adapter moved"):
            train_together(bench, [job_of(bench, toys, site) for site in range(2)])


def test_no_gradient_of_the_shared_pass_reaches_what_is_stepped_with(
    opened: Any, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither clipped nor noised, it is refused."""
    bench = opened("llama")
    plain = together.clipped_sums

    def leaking(bench: Any, wanted: Any, shares: Any) -> Any:
        summed = plain(bench, wanted, shares)
        for parameter in seats[0].own.values():
            parameter.grad = torch.ones_like(parameter)
        return summed

    seats: list[Seat] = []
    monkeypatch.setattr(
        together, "Seat", lambda *given, **more: seats.append(Seat(*given, **more)) or seats[-1]
    )
    monkeypatch.setattr(together, "clipped_sums", leaking)
    found = train_together(bench, [job_of(bench, toys, site) for site in range(2)])
    assert isinstance(found[0], InternalError)
    assert "a plain gradient lies" in str(found[0])
    assert isinstance(found[1], LocalResult)


def test_what_has_no_rule_is_refused_before_a_batch_is_drawn(
    opened: Any, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name; and nobody sits down to a private round where no gradients of single rows are recorded."""
    bench, rule = opened("llama"), per_example.rule_of
    monkeypatch.setattr(per_example, "rule_of", lambda m: None if isinstance(m, nn.Linear) else rule(m))
    jobs = [job_of(bench, toys, site) for site in range(2)]
    with pytest.raises(ConfigError, match=r"lora_[AB]"):
        train_together(bench, jobs)
    for job in jobs:
        assert job.private is not None
        assert job.private.batches.asked == []  # type: ignore[attr-defined]  # a test's source
    with pytest.raises(InternalError, match="no gradients of single rows"):
        Seat(bench).recording({})


def test_memory_bounds_what_is_read_at_once_of_all_sites(
    opened: Any, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Microbatches of the machine's size; where they do not fit, half as many rows, and the same sums."""
    bench = cut(opened("llama"), 6)
    read, plain = [], summing.gradients_of_rows

    def full(bench: Any, recorder: Any, rows: Any, counts: Any) -> Any:
        read.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(bench, recorder, rows, counts)

    monkeypatch.setattr(summing, "gradients_of_rows", full)
    found = train_together(bench, [job_of(bench, toys, site, rate=1.0, steps=2) for site in range(3)])
    assert max(read) == 4, "two units' rows, and the next one has three"
    assert bench.fit.most == 3
    monkeypatch.undo()
    for site, result in enumerate(found):
        assert isinstance(result, LocalResult)
        alone = train_locally(bench, job_of(bench, toys, site, rate=1.0, steps=2))
        np.testing.assert_allclose(result.adapter.vector, alone.adapter.vector, atol=EXACT)
