"""Batches whose layers go without padding, against the same batches padded."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.autograd import gradcheck

from wardround.core.packed import Adapter
from wardround.training.gradients import accumulate_gradient
from wardround.training.padding import PaddingFree, Tokens
from wardround.training.settings import Machine
from wardround.training.shared_layers import _Segments
from wardround.training.workbench import Workbench

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
WINDOW = {**GROUPED, "sliding_window": 3}
DISTIL = {"vocab_size": 97, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
SPECIAL = dict.fromkeys(("bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"), 1)
CLASSIFIERS = {
    "bert": SMALL, "roberta": {**SMALL, "max_position_embeddings": 40}, "distilbert": DISTIL,
    "modernbert": {**SMALL, **SPECIAL, "pad_token_id": 0, "local_attention": 4},
    "llama": {**GROUPED, "pad_token_id": 0},
}  # fmt: skip
WRITERS = {
    "llama": GROUPED, "mistral": WINDOW, "qwen3": {**GROUPED, "head_dim": 8},
    "gemma3_text": {**WINDOW, "head_dim": 8}, "gpt_neox": SMALL,
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4},
}  # fmt: skip
SUITED = [(name, "classifier", it) for name, it in CLASSIFIERS.items()]
SUITED += [(name, "writer", it) for name, it in WRITERS.items()]


@pytest.fixture(scope="module")
def benches(tiny_llama: Path, tiny_bert: Path, tiny_gpt2: Path, toys: Any) -> dict[str, Workbench]:
    """Three ways to lay out a model; each also recomputing its activations, and with rounded products."""
    folders = {"llama": tiny_llama, "bert": tiny_bert, "gpt2": tiny_gpt2}
    machines: Mapping[str, Mapping[str, Any]] = {
        "": {}, "-checkpointed": {"gradient_checkpointing": True}, "-bf16": {"precision": "bf16"},
    }  # fmt: skip
    return {
        family + kind: toys.bench(
            folder, toys.classifier if family == "bert" else toys.causal, base_dropout="off",
            machine=Machine(device="cpu", threads=1, **machine), r=3,
        )
        for family, folder in folders.items()
        for kind, machine in machines.items()
    }  # fmt: skip


def built(kind: str, purpose: str, options: Mapping[str, Any], **more: Any) -> PaddingFree:
    """An untrained model, with weights large enough that everything matters."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **options)
    auto = {
        "classifier": transformers.AutoModelForSequenceClassification,
        "writer": transformers.AutoModelForCausalLM,
    }[purpose]
    model = auto.from_config(config, **more)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return PaddingFree(model.train(False))


def batch_of(*lengths: int, pad: int = 0) -> dict[str, torch.Tensor]:
    """Rows of so many tokens."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 97, mask.shape, generator=torch.Generator().manual_seed(3))
    return {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask}


@contextmanager
def watched(free: PaddingFree) -> Iterator[list[int]]:
    """Rows of each batch that goes without padding; made-up rows are three."""
    went: list[int] = []
    own = free.on

    @contextmanager
    def seen(tokens: Tokens) -> Iterator[None]:
        went.append(len(tokens.mask))
        with own(tokens):
            yield

    free.__dict__["on"] = seen
    try:
        yield went
    finally:
        del free.__dict__["on"]


def moved(bench: Workbench) -> Adapter:
    """An adapter that has an effect."""
    fresh = bench.initial_adapter()
    noise = np.random.default_rng(0).standard_normal(fresh.layout.size, dtype=np.float32)
    return fresh.with_vector(fresh.vector + 0.05 * noise)


def gradient(bench: Workbench, rows: Any, *, free: bool) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one batch of all rows, which goes without padding or does not."""
    bench.padding.wanted = free
    try:
        with watched(bench.padding) as went, bench.training((), 0) as moving:
            bench.load_adapter(moved(bench))
            loss, _ = accumulate_gradient(bench, rows, np.arange(len(rows)))
            found = [p.grad.flatten().clone() for p in moving.values() if p.grad is not None]
    finally:
        bench.padding.wanted = True
    assert (len(rows) in went) is free
    return float(loss), torch.cat(found)


def hooks(bench: Workbench) -> int:
    """So many stand on the model: recomputing has one of its own."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bench.base.model.modules())


@pytest.mark.parametrize("kind", ["", "-checkpointed", "-bf16"])
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_loss_and_gradient_are_those_of_padded_rows(
    benches: dict[str, Workbench], toys: Any, family: str, kind: str
) -> None:
    """Up to the rounding of products of other shapes; of bfloat16 where products are rounded to it."""
    bench, rows = benches[family + kind], toys.rows(9, seed=1)
    assert len({row.length for row in rows}) > 3
    hooked = hooks(bench)
    padded_loss, padded = gradient(bench, rows, free=False)
    loss, found = gradient(bench, rows, free=True)
    near = 2e-2 if kind == "-bf16" else 2e-5
    assert loss == pytest.approx(padded_loss, rel=near)
    assert float((found - padded).norm() / padded.norm()) < near
    assert hooks(bench) == hooked


@pytest.mark.parametrize(("kind", "purpose", "options"), SUITED, ids=[f"{k}-{p}" for k, p, _ in SUITED])
def test_a_models_answers_are_those_of_padded_rows(kind: str, purpose: str, options: dict[str, Any]) -> None:
    """Learnt, rotary and rotary positions in windows, grouped keys, the last token's class."""
    free, batch = built(kind, purpose, options), batch_of(30, 4, 17, 9)
    with torch.no_grad():
        padded = free.model(**batch).logits
        with free.of(batch) as tokens:
            assert tokens is not None
            found = free.model(**batch).logits
    if purpose == "writer":
        padded, found = padded[tokens.mask], found[tokens.mask]
    assert float((found - padded).abs().max() / padded.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("kind", "purpose", "options", "more"),
    [
        ("bert", "classifier", SMALL, {"attn_implementation": "eager"}),
        ("albert", "classifier", {**SMALL, "embedding_size": 16}, {}),
        ("deberta-v2", "classifier", SMALL, {}),
        ("falcon", "writer", {k: v for k, v in SMALL.items() if k != "intermediate_size"}, {}),
        ("bloom", "writer", {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}, {}),
        ("gptj", "writer", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, {}),
    ],
    ids=["eager", "albert", "deberta", "falcon", "bloom", "gptj"],
)
def test_a_model_that_does_not_suit_goes_padded(
    kind: str, purpose: str, options: dict[str, Any], more: dict[str, Any]
) -> None:
    """Attention of its own, layers that are not listed, positions that it works out from shapes."""
    free, batch = built(kind, purpose, options, **more), batch_of(30, 4, 17, 9)
    with torch.no_grad():
        before = free.model(**batch).logits
        with free.of(batch) as tokens:
            assert tokens is None
            assert torch.equal(free.model(**batch).logits, before)


def test_a_batch_goes_padded_where_nothing_is_won_or_its_shape_is_another() -> None:
    """One row, rows of a length, padding on the left, an image."""
    free = built("bert", "classifier", SMALL)
    left = {name: tensor.flip(1) for name, tensor in batch_of(9, 3).items()}
    for batch in (batch_of(7), batch_of(5, 5, 5), left, {"pixel_values": torch.zeros(2, 3, 4, 4)}):
        with free.of(batch) as tokens:
            assert tokens is None
    blocks = batch_of(9, 3)
    blocks["attention_mask"] = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    with free.of(blocks) as tokens:
        assert tokens is None
    with free.of(batch_of(9, 3)) as tokens:
        assert tokens is not None
    free.wanted = False
    with free.of(batch_of(9, 3)) as tokens:
        assert tokens is None


def test_another_batch_inside_goes_as_the_model_has_it() -> None:
    """Only rows of the very shape that was told are packed: a task may ask its model about others."""
    free, other = built("llama", "writer", GROUPED), batch_of(6, 2)
    with torch.no_grad():
        expected = free.model(**other).logits
        with free.of(batch_of(9, 3)):
            assert torch.equal(free.model(**other).logits, expected)


def test_a_model_that_trained_without_padding_can_be_let_go() -> None:
    """A site gives a base model's memory back between rounds."""
    free = built("bert", "classifier", SMALL)
    with torch.no_grad(), free.of(batch_of(9, 3)) as tokens:
        assert tokens is not None
        free.model(**batch_of(9, 3))
    model = weakref.ref(free.model)
    del free
    gc.collect()
    assert model() is None


def test_packing_and_padding_have_each_other_as_derivative() -> None:
    """Against finite differences, in float64."""
    tokens = Tokens.of(batch_of(5, 1, 3)["attention_mask"])
    padded = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(1, 9, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(tokens.packed, padded)
    assert gradcheck(tokens.padded, packed)
    assert torch.equal(tokens.packed(tokens.padded(packed)), packed)
    assert not tokens.padded(packed)[~tokens.mask].any()


def test_each_sites_tokens_are_multiplied_by_its_own_weight() -> None:
    """Sites of several sizes, against finite differences."""
    inputs = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    sizes = [4, 1, 4]
    made = _Segments.apply(inputs, weight, sizes)
    own = [part @ w.T for part, w in zip(inputs.split(sizes), weight, strict=True)]
    assert torch.allclose(made, torch.cat(own))
    assert gradcheck(lambda x, w: _Segments.apply(x, w, sizes), (inputs, weight))
