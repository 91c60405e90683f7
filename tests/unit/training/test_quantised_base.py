"""Bases in 8 and 4 bits, really quantised by bitsandbytes, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.core.errors import ModelError
from wardround.core.plan import LocalWork
from wardround.strategies.contract import LocalRules
from wardround.training.evaluation import evaluating
from wardround.training.local_round import LocalJob, train_locally
from wardround.training.merge import merge_adapter

pytest.importorskip("bitsandbytes", reason="bitsandbytes has no wheel for this platform")

# bitsandbytes 0.50.2 tells of the float16 products of LLM.int8() by a warning as well.
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")

BITS = ["8bit", "4bit"]


def frozen_bytes(model: torch.nn.Module) -> dict[str, bytes]:
    """Every frozen weight as it lies in memory."""
    return {
        name: parameter.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, parameter in model.named_parameters()
        if "lora" not in name
    }


def answers(bench: Any, rows: list[Any]) -> torch.Tensor:
    """Logits of all rows, one after the other, without gradients."""
    with evaluating(bench.model), torch.inference_mode():
        return torch.cat(
            [bench.model(torch.from_numpy(row.tokens[None].astype("int64"))).logits[0] for row in rows]
        )


def mean_loss(bench: Any, rows: list[Any]) -> float:
    """Nats a target, all rows at once."""
    with evaluating(bench.model), torch.inference_mode():
        losses = bench.task.example_losses(bench.model, bench.task.collate(rows, bench.data))
    return float(losses.sum()) / sum(map(bench.task.targets, rows))


@pytest.mark.parametrize("bits", BITS)
def test_a_quantised_base_is_smaller_and_answers_nearly_alike(bits: str, tiny_llama: Path, toys: Any) -> None:
    """The body's linear layers hold whole bytes; answers stay close to the unquantised base's."""
    plain, bench = toys.bench(tiny_llama, toys.causal), toys.bench(tiny_llama, toys.causal, quantisation=bits)
    kinds = {parameter.dtype for name, parameter in bench.model.named_parameters() if "q_proj.base" in name}
    assert kinds <= {torch.int8, torch.uint8}
    assert kinds
    rows = toys.rows(4)
    expected, found = answers(plain, rows), answers(bench, rows)
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.5 * expected.abs().max()


@pytest.mark.parametrize("bits", BITS)
def test_training_and_scoring_leave_the_quantised_base_as_it_was(
    bits: str, tiny_llama: Path, toys: Any
) -> None:
    """A local round lowers the loss; asked before, between and after, the frozen bytes never change."""
    bench = toys.bench(tiny_llama, toys.causal, quantisation=bits)
    rows, before = toys.rows(6), frozen_bytes(bench.model)
    first, fresh = answers(bench, rows), mean_loss(bench, rows)
    work = LocalWork(steps=12, batch_size=6, learning_rate=1e-2)
    result = train_locally(
        bench,
        LocalJob(
            rows, bench.initial_adapter(), work, LocalRules(), round=1, rounds=1, seed_root=0, site="alpha"
        ),
    )
    assert np.isfinite(result.adapter.vector).all()
    assert mean_loss(bench, rows) < fresh
    assert not torch.equal(answers(bench, rows), first)
    bench.load_adapter(bench.initial_adapter())
    assert torch.equal(answers(bench, rows), first)
    assert frozen_bytes(bench.model) == before


@pytest.mark.parametrize("bits", BITS)
def test_the_merge_goes_into_the_unquantised_base_and_tells_both_differences(
    bits: str, tiny_llama: Path, toys: Any, tmp_path: Path
) -> None:
    """Parity holds on the unquantised base; the quantisation's own error stands beside it."""
    bench = toys.bench(tiny_llama, toys.causal, quantisation=bits)
    vector = np.random.default_rng(0).normal(0, 0.02, bench.layout.size).astype(np.float32)
    bench.load_adapter(bench.initial_adapter().with_vector(vector))
    bench.method.save(bench.model, tmp_path / "adapter", bench.base.name)
    report = merge_adapter(
        tmp_path / "adapter",
        bench.base.config,
        bench.method,
        bench.task,
        bench.data,
        tmp_path / "merged",
        samples=toys.rows(3),
    )
    assert report.passed, report.reason
    assert report.against_quantised is not None
    assert report.parity.relative < 1e-4 < report.against_quantised.relative < 1.0


@pytest.mark.parametrize("bits", BITS)
def test_cores_train_between_factors_from_the_seed_on_a_quantised_base(
    bits: str, tiny_llama: Path, toys: Any, tmp_path: Path
) -> None:
    """Codes have no singular vectors; noise needs none. What is saved is read back."""
    options = {"method": "lora_sb", "quantisation": bits, "r": 4}
    with pytest.raises(ModelError, match="start=random"):
        toys.bench(tiny_llama, toys.causal, start="svd", **options)
    bench = toys.bench(tiny_llama, toys.causal, start="random", **options)
    rows, before = toys.rows(6), frozen_bytes(bench.model)
    fresh = mean_loss(bench, rows)
    work = LocalWork(steps=12, batch_size=6, learning_rate=5e-2)
    result = train_locally(
        bench,
        LocalJob(
            rows, bench.initial_adapter(), work, LocalRules(), round=1, rounds=1, seed_root=0, site="alpha"
        ),
    )
    bench.load_adapter(result.adapter)
    assert mean_loss(bench, rows) < fresh
    assert frozen_bytes(bench.model) == before
    bench.method.save(bench.model, tmp_path / "adapter", "base")
    again = bench.method.read_saved(tmp_path / "adapter", bench.model)
    assert np.allclose(again.vector, result.adapter.vector, atol=1e-6)


def test_magnitudes_are_of_the_weights_that_the_base_computes_with(
    tiny_llama: Path, toys: Any, tmp_path: Path
) -> None:
    """DoRA begins with the quantised base's own answers, trains, and merges into the plain checkpoint."""
    options = {"quantisation": "4bit", "dora": True, "targets": ("q_proj", "down_proj")}
    bench, rows = toys.bench(tiny_llama, toys.causal, **options), toys.rows(6)
    with bench.model.disable_adapter():
        expected = answers(bench, rows)
    assert torch.equal(answers(bench, rows), expected)
    work, before = LocalWork(steps=3, batch_size=4, learning_rate=1e-2), mean_loss(bench, rows)
    kwargs: dict[str, Any] = {"round": 1, "rounds": 1, "seed_root": 0, "site": "a"}
    job = LocalJob(rows, bench.initial_adapter(), work, LocalRules(), **kwargs)
    trained = train_locally(bench, job).adapter
    for spec in bench.layout.tensors:
        assert (trained[spec.name] != bench.fresh[spec.name]).any(), spec.name
    bench.load_adapter(trained)
    assert mean_loss(bench, rows) < before
    bench.method.save(bench.model, tmp_path / "adapter", "base")
    report = merge_adapter(
        tmp_path / "adapter", bench.base.config, bench.method, bench.task, bench.data,
        tmp_path / "merged", samples=rows,
    )  # fmt: skip
    assert report.passed, report.reason
    assert report.against_quantised is not None
    assert report.against_quantised.relative < 0.5


def test_dora_on_eight_bits_is_refused_by_name(tiny_llama: Path, toys: Any) -> None:
    """Whoever reads such weights through PEFT could not compute with them any more."""
    with pytest.raises(ModelError, match="none or 4bit"):
        toys.bench(tiny_llama, toys.causal, quantisation="8bit", dora=True)


def test_in_eight_bits_no_row_moves_its_neighbours(tiny_llama: Path, toys: Any) -> None:
    """Outlier columns are looked for over the whole batch: with transformers' threshold a row moves others.

    By far more than float32 rounds; as we load it, not by a bit.
    """
    bench = toys.bench(tiny_llama, toys.causal, quantisation="8bit")
    layer = bench.model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    inputs = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    inputs[1, :, 7] = 60.0  # beyond the threshold, in one column of the second row

    def first(rows: torch.Tensor) -> torch.Tensor:
        read = rows.clone().requires_grad_()
        output = layer(read)[0]
        output.square().sum().backward()
        assert read.grad is not None
        return torch.cat([output.detach().flatten(), read.grad[0].flatten()])

    assert layer.state.threshold == 0
    assert torch.equal(first(inputs), first(inputs[:1]))
    layer.state.threshold = 6.0
    alone = first(inputs[:1])
    assert float((first(inputs) - alone).norm() / alone.norm()) > 1e-4
