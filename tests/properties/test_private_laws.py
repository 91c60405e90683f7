"""Laws of private gradients: examples apart, units bounded, microbatches without a say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from wardround.training.adapters._magnitudes import decompose
from wardround.training.adapters.lora_sb import _put_core
from wardround.training.private.clipping import Adaptive, Automatic, Clipping, Flat, PerLayer
from wardround.training.private.per_example import record_gradients
from wardround.training.private.units import ClippedSum, ClippedUnits, unit_pieces

VOCABULARY = 13
BAD = (math.inf, -math.inf, math.nan, 3e38, 1e30, -1e25)


class Net(nn.Module):
    """Lookup, two linear layers around a nonlinearity, a norm; padding does not count."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, width)
        self.first = nn.Linear(width, out)
        self.norm = nn.LayerNorm(out)
        self.second = nn.Linear(out, 5)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Losses (n,): a mean over the row's own positions."""
        scores = self.second(self.norm(self.first(self.embed(tokens)).tanh())).logsumexp(-1)
        places = torch.arange(tokens.shape[1]) < lengths[:, None]
        return (scores * places).sum(1) / lengths


def adapted(width: int, out: int, rank: int, seed: int) -> nn.Module:
    """LoRA on everything that takes it, the norm in full."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=3, target_modules=["embed", "first", "second"], modules_to_save=["norm"],
        use_rslora=bool(seed % 2), bias="all" if seed % 3 else "none",
    )  # fmt: skip
    model: Any = get_peft_model(Net(width, out), config)  # type: ignore[arg-type]  # PEFT takes any module
    for parameter in trained(model).values():
        nn.init.normal_(parameter, std=0.3)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def batch_of(lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded tokens and lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 13, (len(lengths), max(lengths, default=1)), generator=generator)
    return tokens, torch.tensor(lengths, dtype=torch.int64)


def one_by_one(model: nn.Module, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The slow twin: each row alone, without its padding."""
    parameters = [p for _, p in sorted(trained(model).items())]
    found = [torch.zeros(0, sum(p.numel() for p in parameters))]
    for row, length in zip(tokens, lengths, strict=True):
        loss = model(row[None, : int(length)], length[None]).sum()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([grad.reshape(-1) for grad in grads])[None])
    return torch.cat(found)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 9), max_size=6), st.integers(1, 7), st.integers(1, 7), st.integers(1, 5),
    st.integers(0, 5),
)  # fmt: skip
def test_gradients_are_those_of_single_examples(
    lengths: list[int], width: int, out: int, rank: int, seed: int
) -> None:
    """Any shapes, ranks, lengths and numbers of rows, none among them."""
    model, (tokens, counts) = adapted(width, out, rank, seed), batch_of(lengths, seed)
    with record_gradients(model, trained(model)) as gradients:
        found = gradients.of(lambda: model(tokens, counts), len(lengths))[0]
    torch.testing.assert_close(found, one_by_one(model, tokens, counts), rtol=1e-3, atol=1e-4)


def lora(layer: nn.Module, rank: int, **options: Any) -> nn.Module:
    """PEFT's factors on one layer."""
    config = LoraConfig(r=rank, lora_alpha=3, target_modules=["0"], **options)
    if isinstance(layer, Conv1D):
        config.fan_in_fan_out = True
    model: Any = get_peft_model(nn.Sequential(layer), config)  # type: ignore[arg-type]  # PEFT takes any module
    return model


def dora(layer: nn.Module, rank: int) -> nn.Module:
    """With magnitudes of ours."""
    model = lora(layer, rank, use_dora=True)
    decompose(model, "default")
    return model


def core(layer: nn.Module, rank: int) -> nn.Module:
    """A core between frozen factors."""
    model: Any = lora(layer, rank)
    (wrapped,) = (each for each in model.modules() if isinstance(each, LoraLayer))
    shape = (wrapped.out_features, rank), (rank, wrapped.in_features)
    rng = np.random.default_rng(0)
    _put_core(wrapped, *(rng.normal(0, 0.5, size).astype(np.float32) for size in shape))
    return model


LAYERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "linear": lambda width, out, _: nn.Linear(width, out),
    "conv1d": lambda width, out, _: Conv1D(out, width),
    "layer norm": lambda width, *_: nn.LayerNorm(width),
    "rms norm": lambda width, *_: nn.RMSNorm(width, eps=1e-5),
    "llama's rms norm": lambda width, *_: LlamaRMSNorm(width),
    "embedding": lambda _, out, __: nn.Embedding(VOCABULARY, out),
    "embedding with padding": lambda _, out, __: nn.Embedding(VOCABULARY, out, padding_idx=3),
    "lora": lambda width, out, rank: lora(nn.Linear(width, out), rank),
    "lora with biases": lambda width, out, rank: lora(nn.Linear(width, out), rank, bias="all"),
    "rslora on conv1d": lambda width, out, rank: lora(Conv1D(out, width), rank, use_rslora=True),
    "lora on an embedding": lambda _, out, rank: lora(nn.Embedding(VOCABULARY, out), rank),
    "dora": lambda width, out, rank: dora(nn.Linear(width, out), rank),
    "dora on conv1d": lambda width, out, rank: dora(Conv1D(out, width), rank),
    "lora_sb": lambda width, out, rank: core(nn.Linear(width, out), rank),
    "lora_sb on conv1d": lambda width, out, rank: core(Conv1D(out, width), rank),
}
"""Every kind of layer that has a rule: (width, width of the output, rank) → one of them."""


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 5), st.integers(1, 6), st.integers(1, 7), st.integers(1, 7), st.integers(1, 4),
    st.integers(0, 9),
)  # fmt: skip
def test_every_kind_of_layer_has_the_gradients_of_single_examples(
    name: str, lines: int, positions: int, width: int, out: int, rank: int, seed: int
) -> None:
    """Of any shape, batches without an example among them; also as many examples as positions."""
    torch.manual_seed(seed)
    model = LAYERS[name](width, out, rank)
    for parameter in trained(model).values():
        nn.init.normal_(parameter)
    tokens = torch.randint(0, VOCABULARY, (lines, positions))
    inputs = tokens if "embedding" in name else torch.randn(lines, positions, width)

    def losses(some: torch.Tensor) -> torch.Tensor:
        return model(some).tanh().flatten(1).sum(1)

    parameters = [p for _, p in sorted(trained(model).items())]
    expected = torch.zeros(lines, sum(p.numel() for p in parameters))
    for line in range(lines):
        found = torch.autograd.grad(losses(inputs[line : line + 1]).sum(), parameters)
        expected[line] = torch.cat([gradient.reshape(-1) for gradient in found])
    with record_gradients(model, trained(model)) as gradients:
        rows, each = gradients.of(lambda: losses(inputs), lines)
    assert each.shape == (lines,)
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-4)


def clipped_sum(
    rows: torch.Tensor, units: list[int], bound: float, size: int | None = None, order: int = 0
) -> torch.Tensor:
    """Of a flat bound."""
    return clipped(rows, units, Flat(bound), size, order).total


def clipped(
    rows: torch.Tensor, units: list[int], rule: Clipping, size: int | None = None, order: int = 0
) -> ClippedUnits:
    """Through pieces, in a drawn order of the batch."""
    places = torch.randperm(len(units), generator=torch.Generator().manual_seed(order)).tolist()
    total = ClippedSum(rows.shape[1], rule, torch.device("cpu"))
    for piece in unit_pieces([units[place] for place in places], [1] * len(units), size):
        total.add(rows[[places[index] for index in piece.examples]], piece.units)
    return total.close()


@st.composite
def rules(draw: st.DrawFn, columns: int, bound: float) -> Clipping:
    """Any rule, layers cut anywhere and dealt to groups in any way."""
    kind = draw(st.sampled_from(["flat", "automatic", "per layer", "adaptive"]))
    slack = draw(st.sampled_from([0.0, 0.01]))
    if kind == "flat":
        return Flat(bound, slack)
    if kind == "automatic":
        return Automatic(bound, draw(st.sampled_from([1e-30, 1e-6, 0.01, 1.0, 1e6])), slack)
    if kind == "adaptive":
        return Adaptive(bound, expected=4, count_sigma=2.0, smallest=1e-9, largest=1e9, slack=slack)
    cuts = sorted(draw(st.sets(st.integers(1, columns), max_size=4)) | {0, columns})
    groups: dict[int, list[slice]] = {}
    for start, stop in itertools.pairwise(cuts):
        groups.setdefault(draw(st.integers(0, 2)), []).append(slice(start, stop))
    return PerLayer(bound, tuple(tuple(places) for places in groups.values()), slack)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[int], float]:
    """Rows of gradients with hostile values among them, their units, a bound."""
    units = draw(st.lists(st.integers(0, 5), min_size=1, max_size=14))
    columns, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2**31))
    rows = torch.randn(len(units), columns, generator=torch.Generator().manual_seed(seed))
    rows *= 10.0 ** draw(st.integers(-12, 12))
    for _ in range(draw(st.integers(0, 4))):
        row, column = draw(st.integers(0, len(units) - 1)), draw(st.integers(0, columns - 1))
        rows[row, column] = draw(st.sampled_from(BAD))
    return rows, units, draw(st.floats(1e-6, 1e6))


@settings(deadline=None, max_examples=120)
@given(batches(), st.none() | st.integers(1, 15), st.none() | st.integers(1, 15))
def test_one_unit_moves_the_sum_by_no_more_than_the_bound(
    batch: tuple[torch.Tensor, list[int], float], size: int | None, other_size: int | None
) -> None:
    """Take any one away, whatever its gradients are and however the rest is cut then."""
    rows, units, bound = batch
    whole = clipped_sum(rows, units, bound, size)
    assert whole.isfinite().all()
    for unit in set(units):
        left = [index for index, each in enumerate(units) if each != unit]
        rest = clipped_sum(rows[left], [units[index] for index in left], bound, size)
        assert float((whole - rest).norm()) <= bound
    # However it is cut: within a unit to the bit, between units to the rounding of float64.
    again = clipped_sum(rows, units, bound, other_size)
    assert float((whole - again).norm()) <= bound * 1e-12


@settings(deadline=None, max_examples=200)
@given(batches(), st.none() | st.integers(1, 15), st.data())
def test_under_every_rule_one_unit_moves_the_sum_by_no_more_than_the_bound(
    batch: tuple[torch.Tensor, list[int], float], size: int | None, data: st.DataObject
) -> None:
    """Hostile values, cancellation, empty rests; and the count of adaptive clipping by no more than ½."""
    rows, units, bound = batch
    rule = data.draw(rules(rows.shape[1], bound))
    whole = clipped(rows, units, rule, size)
    assert whole.total.isfinite().all()
    for unit in set(units):
        left = [index for index, each in enumerate(units) if each != unit]
        rest = clipped(rows[left], [units[index] for index in left], rule, size)
        moved = float((whole.total - rest.total).norm())
        assert moved <= bound / (1 + rule.slack)
        assert abs(whole.balance - rest.balance) <= 0.5
        assert whole.units - rest.units == 1
        if isinstance(rule, Adaptive):
            for sigma in (0.1, 1.0, 3.9):
                # Both releases as one vector over their noise: what one Gaussian of the planned σ allows.
                joint = math.hypot(moved / (rule.gradient_sigma(sigma) * bound), 0.5 / rule.count_sigma)
                assert joint <= 1 / sigma * (1 + 1e-12)


@settings(deadline=None, max_examples=50)
@given(batches(), st.integers(0, 2**16), st.none() | st.integers(1, 15))
def test_order_and_microbatches_have_no_say(
    batch: tuple[torch.Tensor, list[int], float], order: int, size: int | None
) -> None:
    """Well-conditioned units sum to the same, whatever the order of the batch and its cuts."""
    rows, units, bound = batch
    rows = rows.nan_to_num(1.0, 1.0, 1.0).clamp(-1e12, 1e12)
    table = torch.stack([rows[[i for i, u in enumerate(units) if u == unit]].sum(0) for unit in set(units)])
    assume(float(table.norm(dim=1).min()) > 1e-3 * float(rows.norm(dim=1).max()))
    expected = clipped_sum(rows, units, bound)
    found = clipped_sum(rows, units, bound, size, order)
    assert float((found - expected).norm()) <= 1e-3 * bound * len(set(units))


@pytest.mark.parametrize("factor", [*BAD, 1e6, 0.0])
@pytest.mark.parametrize("size", [None, 2])
def test_a_hostile_loss_moves_a_models_sum_by_no_more_than_the_bound(factor: float, size: int | None) -> None:
    """One patient's loss is not finite or enormous; every other patient's gradient stands as it stood."""
    model, (tokens, lengths) = adapted(5, 6, 2, 1), batch_of([3, 9, 1, 4, 4, 7], 0)
    units, bound = [0, 1, 0, 2, 1, 3], 0.1

    def total(rows: list[int]) -> torch.Tensor:
        scale = torch.tensor([factor if unit == 1 else 1.0 for unit in units])
        with record_gradients(model, trained(model)) as gradients:
            clip = ClippedSum(gradients.size, Flat(bound), torch.device("cpu"))
            for piece in unit_pieces([units[row] for row in rows], [1] * len(rows), size):
                some = [rows[index] for index in piece.examples]
                found, _ = gradients.of(lambda: model(tokens[some], lengths[some]) * scale[some], len(some))  # noqa: B023 - it runs at once
                clip.add(found, piece.units)
        return clip.close().total

    whole = total(list(range(6)))
    assert whole.isfinite().all()
    for unit in set(units):
        rest = total([row for row in range(6) if units[row] != unit])
        # Products over another number of rows round otherwise: the guarantee is for equal gradients.
        assert float((whole - rest).norm()) <= bound * (1 + 1e-5)
