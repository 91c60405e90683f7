"""Sites that train together against each of them alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.core.errors import ConfigError, TrainingError
from wardround.core.packed import Adapter, Packed
from wardround.core.plan import LocalWork
from wardround.strategies.contract import LocalRules
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.settings import Machine
from wardround.training.together import train_together, why_alone
from wardround.training.workbench import Workbench

WORK = LocalWork(steps=4, batch_size=3, learning_rate=5e-3, optimiser="adamw")


@pytest.fixture(scope="module")
def benches(tiny_llama: Path, tiny_bert: Path, tiny_gpt2: Path, toys: Any) -> dict[str, Workbench]:
    """Without dropout; BERT with a head that trains in full."""
    folders = {"llama": tiny_llama, "bert": tiny_bert, "gpt2": tiny_gpt2}
    return {
        family + kind: toys.bench(
            folder, toys.classifier if family == "bert" else toys.causal, base_dropout="off",
            machine=Machine(device="cpu"), r=3, dora=bool(kind),
        )
        for family, folder in folders.items()
        for kind in ("", "-dora")
    }  # fmt: skip


def moved(adapter: Adapter, seed: int) -> Adapter:
    """Another one for each site."""
    noise = np.random.default_rng(seed).standard_normal(adapter.layout.size, dtype=np.float32)
    return adapter.with_vector(adapter.vector + 0.02 * noise)


def jobs_of(bench: Workbench, toys: Any, *works: LocalWork, **more: Any) -> list[LocalJob]:
    """A site each, with rows and an adapter of its own; the second has fewer rows than a batch."""
    counts = (9, 2, 6, 14)
    return [
        LocalJob(
            toys.rows(counts[index], seed=index), moved(bench.initial_adapter(), index), work,
            more.get("rules", LocalRules()), round=1, rounds=2, seed_root=5, site=f"s{index}",
        )
        for index, work in enumerate(works or [WORK] * 4)
    ]  # fmt: skip


def both(bench: Workbench, jobs: list[LocalJob]) -> list[tuple[LocalResult, LocalResult]]:
    """Of each job: alone on padded rows, and together without padding."""
    bench.padding.wanted = False
    alone = [train_locally(bench, job) for job in jobs]
    bench.padding.wanted = True
    together = train_together(bench, jobs)
    assert all(isinstance(result, LocalResult) for result in together)
    return list(zip(alone, together, strict=True))  # type: ignore[arg-type]  # they are results


def require_near(bench: Workbench, pairs: list[tuple[LocalResult, LocalResult]]) -> None:
    """The same counts, and numbers that differ by rounding."""
    for alone, together in pairs:
        counts = ("steps", "examples", "targets")
        assert [getattr(alone, c) for c in counts] == [getattr(together, c) for c in counts]
        assert together.loss_sum == pytest.approx(alone.loss_sum, rel=1e-5)
        np.testing.assert_allclose(together.adapter.vector, alone.adapter.vector, atol=2e-4)
        assert together.adapter.layout.digest == bench.layout.digest
        assert np.abs(alone.adapter.vector - bench.initial_adapter().vector).max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "llama-dora", "bert-dora", "gpt2-dora"])
def test_each_site_ends_where_it_ends_alone(family: str, benches: dict[str, Workbench], toys: Any) -> None:
    """Of unlike lengths, one with fewer rows than a batch; the model is left in evaluation mode."""
    bench = benches[family]
    assert why_alone(bench) == ""
    require_near(bench, both(bench, jobs_of(bench, toys)))
    assert not bench.model.training
    assert not [m for m in bench.model.modules() if "forward" in m.__dict__ and "Shared" in repr(m.forward)]


@pytest.mark.parametrize("family", ["llama", "bert-dora"])
def test_padded_rows_of_several_sites_end_there_too(
    family: str, benches: dict[str, Workbench], toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a machine does not want to go without padding."""
    bench = benches[family]
    pairs = both(bench, jobs_of(bench, toys))
    monkeypatch.setattr(bench.padding, "wanted", False)
    padded = train_together(bench, jobs_of(bench, toys))
    for (_, free), other in zip(pairs, padded, strict=True):
        assert isinstance(other, LocalResult)
        assert (other.adapter.vector != free.adapter.vector).any()  # to the bit it is another way
        np.testing.assert_allclose(other.adapter.vector, free.adapter.vector, atol=2e-4)


def test_sites_of_other_amounts_are_done_at_their_own_time(benches: dict[str, Workbench], toys: Any) -> None:
    """Epochs, so that everybody has another number of steps; and another optimiser each."""
    bench = benches["llama"]
    works = [
        LocalWork(epochs=2, batch_size=4, learning_rate=1e-2, optimiser="sgd", momentum=0.5),
        LocalWork(epochs=1, batch_size=1, learning_rate=1e-3, optimiser="adam"),
        WORK,
        LocalWork(epochs=1, batch_size=5, learning_rate=1e-3, optimiser="adamw", max_grad_norm=0.01),
    ]
    pairs = both(bench, jobs_of(bench, toys, *works))
    assert len({alone.steps for alone, _ in pairs}) > 2
    require_near(bench, pairs)


@pytest.mark.parametrize("family", ["bert", "bert-dora"])
def test_what_a_strategy_asks_of_a_round_is_each_sites_own(
    family: str, benches: dict[str, Workbench], toys: Any
) -> None:
    """Proximal term, offsets, frozen tensors, the mean gradient, and moments that are kept."""
    bench = benches[family]
    a = frozenset(spec.name for spec in bench.layout.tensors if spec.role == "lora_a")
    offset = Packed(bench.layout, np.full(bench.layout.size, 0.01, dtype=np.float32))
    rules = LocalRules(proximal=0.3, frozen=a, gradient_offset=offset, mean_gradient=True)
    kept = WORK.model_copy(update={"optimiser_state": "keep"})
    pairs = both(bench, jobs_of(bench, toys, *[kept] * 3, rules=rules))
    require_near(bench, pairs)
    for alone, together in pairs:
        assert alone.gradient is not None
        assert together.gradient is not None
        np.testing.assert_allclose(together.gradient.vector, alone.gradient.vector, atol=2e-6)
        for name in a:
            assert not together.gradient[name].any()
        assert alone.optimiser_state is not None
        assert together.optimiser_state is not None
        assert together.optimiser_state.keys() == alone.optimiser_state.keys()
    again = [
        replace(job, optimiser_state=result.optimiser_state, round=2)
        for job, (result, _) in zip(jobs_of(bench, toys, *[kept] * 3), pairs, strict=True)
    ]
    require_near(bench, both(bench, again))


def test_one_sites_failure_is_no_others(benches: dict[str, Workbench], toys: Any) -> None:
    """A loss that is not finite, and a site without rows: each is told by itself."""
    bench = benches["llama"]
    jobs = jobs_of(bench, toys)
    broken = jobs[0].before.with_vector(np.full(bench.layout.size, 1e30, dtype=np.float32))
    found = train_together(bench, [replace(jobs[0], before=broken), replace(jobs[1], encoded=[]), jobs[2]])
    assert [getattr(error, "code", "") for error in found] == ["non_finite_loss", "no_rows", ""]
    assert isinstance(found[0], TrainingError)
    alone = train_locally(bench, jobs[2])
    assert isinstance(found[2], LocalResult)
    np.testing.assert_allclose(found[2].adapter.vector, alone.adapter.vector, atol=2e-4)


def test_what_keeps_sites_apart_is_named(tiny_bert: Path, tiny_llama: Path, toys: Any) -> None:
    """Dropout of base or adapter, and a layer that is not linear, DoRA's on an embedding among them."""
    assert "dropout" in why_alone(toys.bench(tiny_bert, toys.classifier))
    assert "dropout" in why_alone(toys.bench(tiny_llama, toys.causal, base_dropout="off", dropout=0.1))
    norms = toys.bench(tiny_llama, toys.causal, base_dropout="off", modules_to_save=("norm",))
    assert "linear layers alone" in why_alone(norms)
    words = {"targets": ("query", "word_embeddings"), "dora": True}
    assert "linear layers alone" in why_alone(
        toys.bench(tiny_bert, toys.classifier, base_dropout="off", **words)
    )
    with pytest.raises(ConfigError, match="linear layers alone"):
        train_together(norms, jobs_of(norms, toys))


def test_a_layer_that_normalises_over_the_batch_keeps_sites_apart(tiny_bert: Path, toys: Any) -> None:
    """It would mix their rows in training, and in training alone: the model is in evaluation mode before."""
    bench = toys.bench(tiny_bert, toys.classifier, base_dropout="off")
    bench.model.add_module("over_the_batch", torch.nn.BatchNorm1d(3))
    bench.model.train(False)
    assert "normalises over the batch" in why_alone(bench)
    assert not bench.model.training
