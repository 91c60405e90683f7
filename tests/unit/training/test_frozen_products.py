"""Products with frozen weights in bfloat16: which ones, what they give, and what stays in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from wardround.training import frozen_products
from wardround.training.frozen_products import (
    RoundedProduct,
    in_bfloat16,
    layers_of,
    room_for,
    round_products,
)
from wardround.training.gradients import accumulate_gradient
from wardround.training.settings import Machine
from wardround.training.workbench import Workbench

CPU = torch.device("cpu")


def layer_of(kind: type[nn.Module], bias: bool = True) -> Any:
    """Seven inputs, five outputs; frozen but for its bias."""
    torch.manual_seed(3)
    layer: Any = Conv1D(5, 7) if kind is Conv1D else nn.Linear(7, 5, bias=bias)
    layer.weight.requires_grad_(False)
    return layer


@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)])
def test_a_product_and_its_derivative_are_those_of_rounded_numbers(kind: type[nn.Module], bias: bool) -> None:
    """The bias is added in float32, and may train."""
    layer = layer_of(kind, bias)
    matrix = (layer.weight if kind is nn.Linear else layer.weight.t()).bfloat16().float()
    kept = layer.weight.clone()
    round_products([layer])
    inputs = torch.randn(2, 3, 7, requires_grad=True)
    found = layer(inputs)
    assert found.dtype == torch.float32
    own = 0 if layer.bias is None else layer.bias
    expected = (inputs.bfloat16().float() @ matrix.t()).bfloat16().float() + own
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-6)
    gradient = torch.randn_like(found)
    found.backward(gradient)
    torch.testing.assert_close(inputs.grad, (gradient.bfloat16().float() @ matrix).bfloat16().float(),
                               rtol=1e-2, atol=1e-2)  # fmt: skip
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, gradient.sum((0, 1)))
    torch.testing.assert_close(layer.weight, kept, rtol=0, atol=0)
    assert layer.weight.grad is None


def test_products_of_many_sizes_have_few_shapes() -> None:
    """A CPU's library makes a program for each: sixteen to an octave, a sixteenth more work at most."""
    rooms = [room_for(count) for count in range(4097)]
    assert rooms == sorted(rooms)
    assert all(count <= room <= count * 17 / 16 for count, room in enumerate(rooms))
    assert all(room_for(room) == room for room in rooms)
    assert [len({room for room in rooms if low < room <= 2 * low}) for low in (16, 32, 512, 2048)] == [16] * 4

    class Shapes(TorchDispatchMode):
        """Of the left factors of products."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, ...]] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.mm.default:
                self.seen.append(tuple(args[0].shape))
            return function(*args, **(kwargs or {}))

    layer = layer_of(nn.Linear)
    round_products([layer])
    inputs = torch.randn(1, 67, 7, requires_grad=True)
    with Shapes() as shapes:
        layer(inputs).sum().backward()
    assert shapes.seen == [(68, 7), (68, 5)]


@pytest.mark.parametrize("count", [1, 33, 67])
def test_a_vector_has_the_product_that_it_has_alone(count: int) -> None:
    """What fills up a shape reaches nobody, forwards or backwards; one that is not finite is by itself."""
    layer = layer_of(nn.Linear)
    round_products([layer])
    given = torch.randn(count, 7)
    given[0, 2] = float("nan")
    inputs = given.requires_grad_()
    found = layer(inputs[None])[0]
    found.backward(torch.randn(count, 5))
    assert found.shape == (count, 5)
    assert found[0].isnan().all()
    assert inputs.grad is not None
    assert inputs.grad.isfinite().all()
    for row in range(1, count):
        torch.testing.assert_close(found[row], layer(given[row : row + 1])[0], rtol=1e-2, atol=1e-6)


def test_a_layer_that_trains_is_left_alone() -> None:
    """Its weight's gradient is wanted; so is a base that is not in float32, which has no float32 products."""
    trained = nn.Linear(3, 2)
    round_products([trained])
    assert "forward" not in trained.__dict__
    assert layers_of(nn.Sequential(nn.Linear(3, 2).bfloat16(), nn.LayerNorm(2))) == []


def rounded_in(bench: Workbench) -> list[str]:
    """Names of the layers that multiply in bfloat16."""
    return [
        name
        for name, module in bench.model.named_modules()
        if isinstance(module.__dict__.get("forward"), RoundedProduct)
    ]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_a_bench_rounds_the_base_and_nothing_of_the_adapter(
    family: str, dora: bool, tiny_llama: Path, tiny_bert: Path, tiny_gpt2: Path, toys: Any
) -> None:
    """Every product of the base under a head that trains; loss and gradient are near those in float32."""
    folder = {"llama": tiny_llama, "bert": tiny_bert, "gpt2": tiny_gpt2}[family]
    task = toys.classifier if family == "bert" else toys.causal
    plain, rounded = (
        toys.bench(
            folder,
            task,
            dtype="float32",
            base_dropout="off",
            dora=dora,
            machine=Machine(device="cpu", precision=precision),
        )
        for precision in ("fp32", "bf16")
    )
    names = rounded_in(rounded)
    assert names
    assert not rounded_in(plain)
    assert not [name for name in names if "lora_" in name or "modules_to_save" in name]
    assert rounded.base.digest == plain.base.digest
    assert rounded.initial_adapter().digest == plain.initial_adapter().digest
    rows, losses, gradients = toys.rows(6), [], []
    for bench in (plain, rounded):
        bench.model.train(True)
        loss, count = accumulate_gradient(bench, rows, range(6))  # type: ignore[arg-type]  # indices like any
        losses.append(float(loss) / count)
        gradients.append(torch.cat([p.grad.flatten() for p in bench.parameters().values()]))  # type: ignore[union-attr]  # all of them have one
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.05
    assert {parameter.dtype for parameter in rounded.parameters().values()} == {torch.float32}


def test_auto_rounds_where_there_are_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the processor, and of no other choice."""
    for units in (False, True):
        monkeypatch.setattr(frozen_products, "has_units", lambda device, units=units: units)
        assert in_bfloat16("auto", CPU) is units
        assert in_bfloat16("bf16", CPU)
        assert not in_bfloat16("fp32", CPU)


def test_units_are_the_devices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """AMX or AVX-512's on a CPU, CUDA's without emulation; no other device's count."""
    for amx, avx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert frozen_products.has_units(CPU) is (amx or avx)
    asked: list[bool] = []
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: bool(asked.append(including_emulation)) or True,
    )
    assert frozen_products.has_units(torch.device("cuda"))
    assert asked == [False]
    assert not frozen_products.has_units(torch.device("mps"))
