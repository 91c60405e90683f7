"""`model.dropout=off`: the frozen base drops nothing while training, the adapter as much as it was told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import OPTConfig, OPTForSequenceClassification

from wardround.core.plan import LocalWork
from wardround.strategies.contract import LocalRules
from wardround.training.gradients import accumulate_gradient
from wardround.training.local_round import LocalJob, train_locally
from wardround.training.planning import base_spec
from wardround.training.workbench import Machine, Workbench


def answers(bench: Workbench, rows: list[Any]) -> torch.Tensor:
    """The losses of a forward pass in training mode."""
    bench.model.train()
    with torch.no_grad():
        losses = bench.task.example_losses(bench.model, bench.task.collate(rows, bench.data))
    bench.model.train(False)
    return losses


def noisy(bench: Workbench) -> Workbench:
    """The bench with an adapter of small random numbers, so that every factor has a gradient."""
    vector = np.random.default_rng(0).normal(0, 0.05, bench.layout.size).astype(np.float32)
    bench.load_adapter(bench.initial_adapter().with_vector(vector))
    return bench


def gradient(bench: Workbench, rows: list[Any]) -> torch.Tensor:
    """The flat gradient of one logical batch, in training mode."""
    bench.model.train()
    accumulate_gradient(bench, rows, np.arange(len(rows)))
    bench.model.train(False)
    return torch.cat([p.grad.reshape(-1) for p in bench.parameters().values() if p.grad is not None])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_off_makes_two_training_passes_equal_to_the_bit(attention: str, tiny_bert: Path, toys: Any) -> None:
    """The checkpoint's own dropout makes two passes differ; without it they are one."""
    rows = toys.rows(6)
    for setting, equal in (("base", False), ("off", True)):
        bench = noisy(toys.bench(tiny_bert, toys.classifier, base_dropout=setting, attention=attention))
        assert torch.equal(answers(bench, rows), answers(bench, rows)) is equal


def test_off_reaches_dropout_that_is_no_layer(tiny_bert: Path, toys: Any, tmp_path: Path) -> None:
    """OPT drops by a function and keeps the probability in plain attributes."""
    folder = shutil.copytree(tiny_bert, tmp_path / "opt")
    config = OPTConfig(
        vocab_size=384, hidden_size=32, ffn_dim=64, word_embed_proj_dim=32, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, pad_token_id=0, dropout=0.3,
        attention_dropout=0.3, layerdrop=0.3, num_labels=3,
    )  # fmt: skip
    OPTForSequenceClassification(config).save_pretrained(folder)
    rows = toys.rows(6)
    for setting, equal in (("base", False), ("off", True)):
        bench = noisy(toys.bench(folder, toys.classifier, base_dropout=setting))
        assert torch.equal(answers(bench, rows), answers(bench, rows)) is equal


@pytest.mark.parametrize("size", [1, 3])
def test_off_makes_microbatches_of_any_size_one_gradient(size: int, tiny_bert: Path, toys: Any) -> None:
    """What a base with dropout cannot promise: the same step however the batch is cut."""
    rows = toys.rows(9)
    whole = noisy(toys.bench(tiny_bert, toys.classifier, base_dropout="off"))
    machine = Machine(device="cpu", microbatch_size=size)
    cut = noisy(toys.bench(tiny_bert, toys.classifier, base_dropout="off", machine=machine))
    expected, found = gradient(whole, rows), gradient(cut, rows)
    assert expected.norm() > 1e-3
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_the_adapters_own_dropout_stays(tiny_bert: Path, toys: Any) -> None:
    """It is an option of the adapter: the base's setting does not touch it."""
    rows = toys.rows(6)
    bench = noisy(toys.bench(tiny_bert, toys.classifier, base_dropout="off", dropout=0.4))
    probabilities = {
        name.rpartition("lora_dropout")[1]: module.p
        for name, module in bench.model.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert probabilities == {"": 0.0, "lora_dropout": 0.4}
    assert not torch.equal(answers(bench, rows), answers(bench, rows))


def test_it_is_part_of_the_plan(tiny_bert: Path, toys: Any) -> None:
    """It changes what is trained, so that all sites need the same: the plan says which."""
    bench = toys.bench(tiny_bert, toys.classifier, base_dropout="off")
    assert base_spec(bench.base).dropout == "off"
    assert base_spec(toys.bench(tiny_bert, toys.classifier).base).dropout == "base"


def test_it_changes_what_a_round_gives_and_not_what_is_loaded(tiny_bert: Path, toys: Any) -> None:
    """Another adapter after a round, the same digest of the base, the same scores without training."""
    rows, work = toys.rows(8), LocalWork(steps=2, batch_size=4)
    benches = [toys.bench(tiny_bert, toys.classifier, base_dropout=setting) for setting in ("base", "off")]
    assert benches[0].base.digest == benches[1].base.digest
    adapters = [
        train_locally(
            bench, LocalJob(rows, bench.initial_adapter(), work, LocalRules(),
            round=1, rounds=1, seed_root=1, site="a")).adapter
        for bench in benches
    ]  # fmt: skip
    assert adapters[0].digest != adapters[1].digest
    for bench in benches:
        bench.load_adapter(adapters[0])
    batch = benches[0].task.collate(rows, benches[0].data)
    with torch.no_grad():
        scores = [bench.task.example_losses(bench.model, batch) for bench in benches]
    assert torch.equal(*scores)
