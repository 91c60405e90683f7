"""Layers one at a time, what is refused by name, and Opacus as a second opinion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from wardround.core.errors import ConfigError
from wardround.training.private.per_example import record_gradients


class Read(nn.Module):
    """An embedding, a layer under test, a sum: losses (n,) of indices (n, T)."""

    def __init__(self, layer: nn.Module, embedding: nn.Embedding | None = None) -> None:
        super().__init__()
        self.embed = embedding or nn.Embedding(11, 6).requires_grad_(False)
        self.layer = layer
        for parameter in layer.parameters():
            nn.init.normal_(parameter)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Not linear in what the layer gives."""
        return self.layer(self.embed(indices)).tanh().flatten(1).sum(1)


class Tied(nn.Module):
    """One matrix as embedding and as head, one layer passed through twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.twice = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Losses (n,)."""
        hidden = self.twice(self.twice(self.embed(indices)).tanh())
        return self.head(hidden).logsumexp(-1).sum(1)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def slow(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """One example at a time."""
    found = []
    for row in inputs:
        grads = torch.autograd.grad(
            model(row[None]).sum(), [p for _, p in sorted(trained(model).items())], materialize_grads=True
        )
        found.append(torch.cat([grad.reshape(-1) for grad in grads]))
    return torch.stack(found)


def fast(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """All at once."""
    with record_gradients(model, trained(model)) as gradients:
        return gradients.of(lambda: model(inputs), len(inputs))[0]


INDICES = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(1))

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "linear without bias": lambda: nn.Linear(6, 3, bias=False),
    "conv1d": lambda: Conv1D(3, 6),
    "layer norm": lambda: nn.LayerNorm(6),
    "layer norm without bias": lambda: nn.LayerNorm(6, bias=False),
    "layer norm over two dimensions": lambda: nn.LayerNorm((5, 6)),
    "rms norm": lambda: nn.RMSNorm(6, eps=1e-6),
    "llama's rms norm": lambda: LlamaRMSNorm(6),
    "two layers": lambda: nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6)),
    "a head over the first position": lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 2)),
}


def parts_of(layer: nn.Module) -> list[str]:
    """The whole of it, its weights alone, its biases alone."""
    there = {name.rpartition(".")[2] for name, _ in layer.named_parameters()}
    return ["all", *sorted(there)]


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name, layer in LAYERS.items() for part in parts_of(layer())]
)
def test_a_layer_has_the_gradients_of_single_examples(name: str, part: str) -> None:
    """Whatever of it trains."""
    torch.manual_seed(0)
    model = Read(LAYERS[name]())
    for each, parameter in model.layer.named_parameters():
        parameter.requires_grad_(part == "all" or each.endswith(part))
    torch.testing.assert_close(fast(model, INDICES), slow(model, INDICES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [None, 3])
def test_an_embedding_and_its_padding(padding: int | None) -> None:
    """Torch gives the row of padding no gradient."""
    torch.manual_seed(0)
    model = Read(nn.Linear(6, 3), nn.Embedding(11, 6, padding_idx=padding))
    torch.testing.assert_close(fast(model, INDICES), slow(model, INDICES), rtol=1e-5, atol=1e-6)


def test_tied_matrices_and_layers_used_twice_add_up() -> None:
    """Every use of a parameter counts."""
    torch.manual_seed(0)
    model = Tied()
    torch.testing.assert_close(fast(model, INDICES), slow(model, INDICES), rtol=1e-5, atol=1e-5)


def test_what_no_loss_reads_has_no_gradient() -> None:
    """A pooler, say; a microbatch before does not show through."""
    torch.manual_seed(0)
    model = Read(nn.Linear(6, 3))
    model.pooler = nn.Linear(6, 6)
    torch.testing.assert_close(fast(model, INDICES), slow(model, INDICES), rtol=1e-5, atol=1e-6)


class Scaled(nn.Module):
    """A bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scaled."""
        return hidden * self.scale


class Own(nn.Linear):
    """A subclass, which may compute anything."""


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (Scaled, "layer.scale"),
        (lambda: Own(6, 3), "layer.weight"),
        (lambda: nn.MultiheadAttention(6, 2), "layer.in_proj_weight"),
        (lambda: nn.Conv1d(5, 5, 3), "layer.weight"),
        (lambda: nn.BatchNorm1d(5), "layer.weight"),
        (lambda: nn.Embedding(4, 6, scale_grad_by_freq=True), "layer.weight"),
        (lambda: nn.Embedding(4, 6, max_norm=1.0), "layer.weight"),
    ],
)
def test_a_layer_without_a_rule_is_refused_by_name(layer: Callable[[], nn.Module], name: str) -> None:
    """Before anything runs, and with the model left alone."""
    model = Read(layer())
    with (
        pytest.raises(ConfigError, match=name) as caught,
        record_gradients(model, trained(model)),
    ):
        pytest.fail("recorded")
    assert caught.value.remedy is not None
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_frozen_layer_needs_no_rule() -> None:
    """Whatever it is."""
    model = Read(nn.Sequential(nn.Conv1d(5, 5, 1).requires_grad_(False), nn.Linear(6, 3)))
    torch.testing.assert_close(fast(model, INDICES), slow(model, INDICES), rtol=1e-5, atol=1e-6)


def test_a_layer_that_mixes_examples_up_is_refused() -> None:
    """Its first dimension is not the batch."""

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.inner(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    model = Read(Flattened())
    with pytest.raises(ConfigError, match=r"layer\.inner"):
        fast(model, INDICES)


def tiny_peft(**options: Any) -> Any:
    """BERT through PEFT itself, with options that ours do not offer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    base = BertForSequenceClassification(BertConfig(vocab_size=11, hidden_dropout_prob=0.0, **sizes))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "dense"], **options))
    for parameter in trained(model).values():
        nn.init.normal_(parameter, std=0.1)
    return model.train()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"use_dora": True}, "lora_[AB]"), ({"use_dora": True}, r"[1-9]\d*: .*encoder\.layer\.0")],
)
def test_dora_is_refused_by_name(options: dict[str, Any], name: str) -> None:
    """Its factors are read past their modules, and its magnitudes have no rule."""
    model = tiny_peft(**options)
    with pytest.raises(ConfigError, match=name), record_gradients(model, trained(model)):
        pytest.fail("recorded")


def test_biases_on_the_factors() -> None:
    """PEFT's `lora_bias`."""
    model = tiny_peft(lora_bias=True)

    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, indices: torch.Tensor) -> torch.Tensor:
            logits = self.inner(input_ids=indices).logits
            return F.cross_entropy(logits, torch.zeros(len(indices), dtype=torch.long), reduction="none")

    whole = Losses()
    for module in whole.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert any(name.endswith("lora_B.default.bias") for name in trained(whole))
    torch.testing.assert_close(fast(whole, INDICES), slow(whole, INDICES), rtol=1e-4, atol=1e-6)


# torch 2.13 says of Opacus 1.6's hooks that they fire for outputs alone where no input needs a gradient.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_opacus_gives_the_same_where_it_is_right(
    family: str, tiny_llama: Path, tiny_bert: Path, toys: Any, rows_of_gradients: Any
) -> None:
    """Its hooks, on LoRA over linear layers and a head."""
    from opacus.grad_sample import GradSampleModule

    folder, task = (tiny_llama, toys.causal) if family == "llama" else (tiny_bert, toys.classifier)
    bench = rows_of_gradients.stirred(toys.bench(folder, task, base_dropout="off"))
    rows = toys.rows(4)
    ours = rows_of_gradients.fast(bench, rows)
    hooked = GradSampleModule(bench.model, loss_reduction="sum", strict=False)
    try:
        bench.task.example_losses(hooked, bench.task.collate(rows, bench.data)).div(
            torch.tensor([float(bench.task.targets(row)) for row in rows])
        ).sum().backward()
        theirs = [p.grad_sample.reshape(4, -1) for _, p in sorted(bench.parameters().items())]
    finally:
        hooked.remove_hooks()
    assert rows_of_gradients.error(ours, torch.cat(theirs, dim=1)) < 5e-6


class Biased(nn.Module):
    """Attention scores with a table by distance, as in T5: looked up once, at (T, T) places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6).requires_grad_(False)
        self.relative_attention_bias = nn.Embedding(9, 1)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Losses (n,)."""
        hidden, places = self.embed(indices), torch.arange(indices.shape[1])
        bias = self.relative_attention_bias(places[:, None] - places + 4).squeeze(-1)
        return ((hidden @ hidden.mT + bias).softmax(-1) @ hidden).tanh().flatten(1).sum(1)


@pytest.mark.parametrize("lora", [False, True])
def test_a_table_by_distance_is_refused_by_name(lora: bool) -> None:
    """With as many examples as tokens nothing else would tell."""
    model: Any = Biased()
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["relative_attention_bias"]))
    with pytest.raises(ConfigError, match="relative_attention_bias"), record_gradients(model, trained(model)):
        pytest.fail("recorded")


def test_positions_without_a_batch_are_refused() -> None:
    """One line of them for all, as many as examples by chance."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Embedding(5, 6)

        def forward(self, indices: torch.Tensor) -> torch.Tensor:
            return (self.places(torch.arange(indices.shape[1])) * indices[..., None]).tanh().flatten(1).sum(1)

    model = Placed()
    with pytest.raises(ConfigError, match="places"):
        fast(model, INDICES.new_ones(5, 5))
