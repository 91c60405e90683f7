"""What must not move does not move unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wardround.core.errors import InternalError
from wardround.training.private.guards import FrozenWeights, require_no_gradients


def test_the_adapter_may_move_and_nothing_else(tiny_bert: Path, toys: Any) -> None:
    """A step on the adapter passes; a frozen weight that was written is named."""
    bench = toys.bench(tiny_bert, toys.classifier)
    guard = FrozenWeights(bench.model, bench.parameters().values())
    with torch.no_grad():
        for parameter in bench.parameters().values():
            parameter.add_(1)
    guard.require_unmoved(exact=True)
    name, frozen = next((n, p) for n, p in bench.model.named_parameters() if not p.requires_grad)
    with torch.no_grad():
        frozen.mul_(1)
    with pytest.raises(InternalError, match=name.replace(".", r"\.")):
        guard.require_unmoved()


def test_writes_past_the_counters_show_in_the_bits() -> None:
    """Through `.data`, which torch does not count."""
    model = nn.Linear(3, 2)
    guard = FrozenWeights(model, [])
    model.weight.data[0, 0] += 1
    guard.require_unmoved()
    with pytest.raises(InternalError, match="weight"):
        guard.require_unmoved(exact=True)


def test_running_statistics_are_seen() -> None:
    """They would carry means of the batch out of the site."""
    model = nn.BatchNorm1d(2, affine=False)
    guard = FrozenWeights(model, [])
    model(torch.randn(4, 2))
    with pytest.raises(InternalError, match="num_batches_tracked"):
        guard.require_unmoved()
    with pytest.raises(InternalError, match="running_mean"):
        guard.require_unmoved(exact=True)


def test_what_is_not_saved_may_change() -> None:
    """Tables that a model fills as it goes, such as rotary frequencies of longer rows."""
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("saved", torch.zeros(2))
    model.register_buffer("made", torch.zeros(2), persistent=False)
    guard = FrozenWeights(model, [])
    model.made = torch.ones(3)
    guard.require_unmoved(exact=True)
    model.saved.add_(1)
    with pytest.raises(InternalError, match="saved"):
        guard.require_unmoved()


def test_replaced_and_lost_tensors_are_seen() -> None:
    """A new tensor under an old name, and none."""
    model = nn.Linear(3, 2)
    guard = FrozenWeights(model, [])
    kept, model.bias = model.bias, nn.Parameter(model.bias.detach().clone())
    with pytest.raises(InternalError, match="bias"):
        guard.require_unmoved()
    model.bias = None
    with pytest.raises(InternalError, match="bias"):
        guard.require_unmoved()
    model.bias = kept
    guard.require_unmoved(exact=True)


def test_a_plain_gradient_is_named() -> None:
    """It was neither clipped nor noised."""
    layer = nn.Linear(2, 1)
    require_no_gradients(dict(layer.named_parameters()))
    layer(torch.ones(1, 2)).sum().backward()
    with pytest.raises(InternalError, match="weight"):
        require_no_gradients(dict(layer.named_parameters()))
