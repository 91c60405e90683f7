"""A head over a frozen base: rows that were seen before cost a pass through the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.training.adapters._remembered_features import RememberedFeatures
from wardround.training.private.per_example import record_gradients
from wardround.training.workbench import Workbench

TEXTS = tuple(f"word{i} of word{3 * i} and word{i * i}" for i in range(12))


def head_bench(folder: Path, toys: Any, **options: Any) -> Workbench:
    """The head alone, without dropout unless asked for."""
    given = {"targets": "none", "base_dropout": "off", **options}
    bench: Workbench = toys.bench(folder, toys.classifier, **given)
    return bench


def remembered(bench: Workbench) -> RememberedFeatures | None:
    """What stands in for the bare model's forward."""
    found = bench.base.model.__dict__.get("forward")
    return found if isinstance(found, RememberedFeatures) else None


def batch_of(bench: Workbench, toys: Any, rows: int) -> dict[str, torch.Tensor]:
    """Ragged rows, padded."""
    batch: dict[str, torch.Tensor] = toys.classifier.collate(toys.rows(rows), bench.data)
    return batch


def begun(folder: Path, toys: Any) -> tuple[Workbench, RememberedFeatures, dict[str, torch.Tensor]]:
    """A bench, what it remembers, and six rows without their labels."""
    bench = head_bench(folder, toys)
    known = remembered(bench)
    assert known is not None
    batch = batch_of(bench, toys, 6)
    del batch["labels"]
    return bench, known, batch


@pytest.mark.parametrize("texts", [(), TEXTS], ids=["plain", "normalised"])
def test_logits_are_the_models_own(texts: tuple[str, ...], tiny_bert: Path, toys: Any) -> None:
    """With the model's own forward put back they are the same but for what padding does to a float."""
    bench = head_bench(tiny_bert, toys, public_texts=texts)
    batch = batch_of(bench, toys, 9)
    del batch["labels"]
    with torch.no_grad():
        first, again = bench.model(**batch).logits, bench.model(**batch).logits
        assert remembered(bench) is not None
        del bench.base.model.__dict__["forward"]
        own = bench.model(**batch).logits
    assert torch.equal(first, again)
    assert torch.allclose(first, own, atol=1e-4)
    assert own.std() > 1e-4


def test_a_row_is_computed_once_and_alone(
    tiny_bert: Path, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is batched with, and whatever the head has become."""
    bench, known, batch = begun(tiny_bert, toys)
    passes = []
    plain = known._plain
    monkeypatch.setattr(known, "_plain", lambda **row: (passes.append(row), plain(**row))[1])
    with torch.no_grad():
        whole = bench.model(**batch).logits
        half = bench.model(**{name: tensor[3:] for name, tensor in batch.items()}).logits
    # The same features; a processor may round the head's product of six rows otherwise than that of three.
    assert torch.allclose(whole[3:], half, rtol=0, atol=1e-6)
    assert len(passes) == len(known.kept) == 6
    assert all(len(row["input_ids"]) == 1 and row["attention_mask"].all() for row in passes)
    bench.load_adapter(bench.fresh.with_vector(bench.fresh.vector + 1))
    with torch.no_grad():
        assert not torch.equal(bench.model(**batch).logits, whole)
    assert len(passes) == 6


def test_what_does_not_fit_is_computed_again(
    tiny_bert: Path, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded; answers do not change with it."""
    bench, known, batch = begun(tiny_bert, toys)
    monkeypatch.setattr(known, "_room", 4 * 32 * 2)
    with torch.no_grad():
        assert torch.equal(bench.model(**batch).logits, bench.model(**batch).logits)
    assert len(known.kept) < 6


def test_gradients_by_example_are_those_of_one_row_at_a_time(tiny_bert: Path, toys: Any) -> None:
    """A private step reads remembered features, new ones among them while it records."""
    bench = head_bench(tiny_bert, toys, public_texts=TEXTS)
    batch, parameters = batch_of(bench, toys, 5), bench.parameters()
    with record_gradients(bench.model, parameters) as gradients:
        rows, _ = gradients.of(lambda: toys.classifier.example_losses(bench.model, batch), 5)
        rows = rows.clone()
    for place in range(5):
        one = {name: tensor[place : place + 1] for name, tensor in batch.items()}
        toys.classifier.example_losses(bench.model, one).sum().backward()
        flat = torch.cat([p.grad.flatten() for _, p in sorted(parameters.items()) if p.grad is not None])
        assert torch.allclose(rows[place], flat, atol=1e-6)
        for parameter in parameters.values():
            parameter.grad = None


@pytest.mark.parametrize(
    "options", [{"base_dropout": "base"}, {"targets": ("query",)}, {"modules_to_save": ("pooler.dense",)}]
)
def test_nothing_is_remembered_where_the_base_answers_anew(
    options: dict[str, Any], tiny_bert: Path, toys: Any
) -> None:
    """Dropout, factors inside the base, a second module that trains."""
    assert remembered(head_bench(tiny_bert, toys, **options)) is None


def test_a_head_that_reads_every_token_is_left_alone(tiny_llama: Path, toys: Any) -> None:
    """A decoder's classifier picks its token after the head."""
    bench = head_bench(tiny_llama, toys)
    assert remembered(bench) is None
    batch = batch_of(bench, toys, 3)
    del batch["labels"]
    assert np.isfinite(bench.model(**batch).logits.detach().numpy()).all()
