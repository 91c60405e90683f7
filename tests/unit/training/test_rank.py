"""Sites of other ranks at one bench: the same function, another number of directions that train."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wardround.core.errors import PeerError
from wardround.core.lora import dense_specs, pairs
from wardround.core.packed import Adapter, Layout, zeros
from wardround.core.plan import LocalWork
from wardround.core.ranks import at_rank, beside
from wardround.strategies.contract import LocalRules
from wardround.training.local_round import LocalJob, train_locally
from wardround.training.workbench import Workbench

KINDS = pytest.mark.parametrize(
    ("folder", "task", "options"),
    [
        ("tiny_bert", "classifier", {"targets": ("query", "word_embeddings")}),
        ("tiny_gpt2", "causal", {}),
        ("tiny_llama", "causal", {"dtype": "bfloat16"}),
        ("tiny_bert", "classifier", {"targets": ("query", "word_embeddings"), "dora": True}),
        ("tiny_gpt2", "causal", {"dora": True}),
    ],
)


def noise(bench: Workbench) -> Adapter:
    """An adapter of small random numbers."""
    vector = np.random.default_rng(0).normal(0, 0.05, bench.layout.size).astype(np.float32)
    return bench.initial_adapter().with_vector(vector)


def logits(bench: Workbench) -> torch.Tensor:
    """Of a few tokens."""
    with torch.no_grad():
        return bench.model(input_ids=torch.tensor([[3, 4, 5, 6]])).logits.float()


@KINDS
@pytest.mark.parametrize("rank", [1, 3, 11])
def test_a_site_of_any_rank_computes_the_global_model(
    request: pytest.FixtureRequest, toys: Any, folder: str, task: str, options: dict[str, Any], rank: int
) -> None:
    """The logits are those of the global adapter, which can be loaded again afterwards, exactly."""
    bench = toys.bench(request.getfixturevalue(folder), getattr(toys, task), r=4, **options)
    adapter = noise(bench)
    bench.load_adapter(adapter)
    expected = logits(bench)
    start = at_rank(adapter, rank, np.random.default_rng(1))
    bench.load_adapter(start.trained, start.rest)
    tolerance = 2e-2 if options.get("dtype") else 1e-5
    torch.testing.assert_close(logits(bench), expected, atol=tolerance, rtol=tolerance)
    assert bench.read_adapter().digest == start.trained.digest
    moving = [p for p in bench.model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in moving) == start.trained.layout.size, "nothing else trains"
    bench.load_adapter(adapter)
    assert bench.read_adapter().digest == adapter.digest
    torch.testing.assert_close(logits(bench), expected, atol=0, rtol=0)
    assert sum(p.numel() for p in bench.model.parameters() if p.requires_grad) == adapter.layout.size


@pytest.mark.parametrize("rank", [2, 7])
def test_training_moves_the_sites_own_directions(tiny_bert: Any, toys: Any, rank: int) -> None:
    """All of them, and the head; what stands frozen beside them stays, bit for bit."""
    bench = toys.bench(tiny_bert, toys.classifier, r=4)
    adapter = noise(bench)
    start = at_rank(adapter, rank, np.random.default_rng(1))
    result = train_locally(
        bench,
        LocalJob(
            toys.rows(8),
            start.trained,
            LocalWork(steps=2, batch_size=4),
            LocalRules(),
            round=1,
            rounds=1,
            seed_root=0,
            site="a",
            rest=start.rest,
        ),
    )
    for name, before in start.trained.tensors().items():
        assert (result.adapter[name] != before).any(), name
    whole = beside(result.adapter, start.rest)
    for pair in pairs(adapter.layout):
        np.testing.assert_array_equal(whole[pair.a.name][rank:4], adapter[pair.a.name][rank:])
        np.testing.assert_array_equal(whole[pair.b.name][:, rank:4], adapter[pair.b.name][:, rank:])


@pytest.mark.parametrize("dora", [False, True])
def test_a_rank_below_the_plans_trains_as_its_first_directions_would(
    tiny_bert: Any, toys: Any, dora: bool
) -> None:
    """The gradient is that of the whole adapter's first directions: the same step of SGD."""
    bench = toys.bench(tiny_bert, toys.classifier, r=4, dora=dora)
    adapter, work = noise(bench), LocalWork(steps=1, batch_size=8, optimiser="sgd", max_grad_norm=None)
    rows = toys.rows(8)
    start = at_rank(adapter, 2, np.random.default_rng(1))
    kwargs: dict[str, Any] = {"round": 1, "rounds": 1, "seed_root": 0, "site": "a"}
    part = train_locally(
        bench, LocalJob(rows, start.trained, work, LocalRules(), rest=start.rest, **kwargs)
    ).adapter
    whole = train_locally(bench, LocalJob(rows, adapter, work, LocalRules(), **kwargs)).adapter
    for pair in pairs(adapter.layout):
        np.testing.assert_allclose(part[pair.a.name], whole[pair.a.name][:2], atol=1e-7)
        np.testing.assert_allclose(part[pair.b.name], whole[pair.b.name][:, :2], atol=1e-7)
    for spec in dense_specs(adapter.layout):
        np.testing.assert_allclose(part[spec.name], whole[spec.name], atol=1e-6)


def test_other_modules_are_no_other_rank(tiny_bert: Any, toys: Any) -> None:
    """They are refused as ever, and nothing was changed."""
    bench = toys.bench(tiny_bert, toys.classifier, r=4)
    adapter = noise(bench)
    bench.load_adapter(adapter)
    fewer = Layout(tensors=adapter.layout.tensors[2:])
    with pytest.raises(PeerError, match="does not fit the model"):
        bench.load_adapter(zeros(fewer))
    assert bench.read_adapter().digest == adapter.digest
