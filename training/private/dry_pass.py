"""Whether a model keeps examples apart, found out on rows that are nobody's, before anything is charged.

A rule (`rules.py`) is for a layer that reads (examples, …). Which layers do, no table of names tells: DeBERTa
multiplies its relative positions by the layers that project the text, a router of experts may read all tokens
in one dimension, a table of distances is read at (T, T) places. So a few made-up rows go through the very
code of a private step, in two batches of different size and length, and each has to get the gradient that it
has alone, by plain autograd.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

from wardround.core.errors import ConfigError, TrainingError
from wardround.core.plan import TaskSpec
from wardround.training.base_model import without_dropout
from wardround.training.device_memory import out_of_memory
from wardround.training.made_up import made_up
from wardround.training.private.per_example import record_gradients, require_rules
from wardround.training.private.rounding import rounds_coarsely
from wardround.training.private.summing import gradients_of_rows
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench

_WORDS: Final = (9, 6, 4)
_BATCHES: Final = ((1, 2), (0, 1, 2))
"""By number of the row: two shorter ones, then all of them beside a longer one."""
_STIR: Final = 0.05
"""Of what is added to the adapter meanwhile: beside a factor of zeros the other has no gradient."""
_FAR: Final = (1e-2, 1e-3)
"""How far a parameter's gradient may be from the one of the row alone: of its own length, and of which share
of the whole row's gradient beside it, for what is only rounding."""
_FAR_COARSELY: Final = (0.25, 5e-2)
"""In half precision. Where examples are mixed up, another row's gradient is in it: 1 and more."""


def require_apart(bench: Workbench, parameters: Mapping[str, nn.Parameter], spec: TaskSpec) -> None:
    """Refuse what cannot be trained privately, by name of the parameter, before anything is spent on it.

    Once for a bench and the names that train; neither a row of the site nor global randomness is touched, and
    the model is left as it was. A task that reads no made-up text (pictures, signals) is asked for its rules
    alone; there the first microbatch says what is wrong.

    Args:
        bench: With its adapter on it, between rounds.
        parameters: What will train, by its name in the layout.
        spec: The plan's task.

    Raises:
        ConfigError: A parameter has no rule, or the model does not keep examples apart; names it.
        TrainingError: `out_of_memory`: not even these few short rows fit.
    """
    require_rules(bench.model, parameters)
    names = frozenset(parameters)
    if names in bench.apart:
        return
    rows = [made_up(bench, spec, _text(number, words), label=number) for number, words in enumerate(_WORDS)]
    found = [row for row in rows if row is not None]
    if len(found) == len(rows):
        try:
            _compare(bench, parameters, found)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            gc.collect()
            raise TrainingError(
                "out_of_memory", "the device's memory does not hold a step over three short made-up rows",
                remedy="end what else uses the device, or take a larger one",
            ) from error  # fmt: skip
    bench.apart.add(names)


def _text(number: int, words: int) -> str:
    """Other words for each row."""
    return " ".join(chr(ord("a") + (7 * number + place) % 26) for place in range(words))


def _compare(bench: Workbench, parameters: Mapping[str, nn.Parameter], rows: Sequence[Encoded]) -> None:
    """Both batches against rows alone.

    Raises:
        ConfigError: Names the parameters that differ.
    """
    far, share = _FAR_COARSELY if rounds_coarsely(bench.model) else _FAR
    counts = [float(bench.task.targets(row)) for row in rows]
    with _stirred(bench, parameters), record_gradients(bench.model, parameters) as recorder:
        columns = recorder.columns
        together = [
            gradients_of_rows(
                bench, recorder, [rows[number] for number in batch],
                torch.tensor([counts[number] for number in batch], device=bench.device),
            )[0].clone()
            for batch in _BATCHES
        ]  # fmt: skip
        alone = [_alone(bench, parameters, row, count) for row, count in zip(rows, counts, strict=True)]
    wrong: set[str] = set()
    for batch, gradients in zip(_BATCHES, together, strict=True):
        for number, gradient in zip(batch, gradients, strict=True):
            whole = float(alone[number].norm())
            for name, place in columns.items():
                own = alone[number][place]
                allowed = far * (float(own.norm()) + share * whole)
                if not float((gradient[place] - own).norm()) <= allowed:  # NaN is no small difference
                    wrong.add(name)
    if wrong:
        raise ConfigError(
            "the gradient of an example depends on what is beside it in the batch",
            found=f"{len(wrong)} parameters: " + ", ".join(sorted(wrong)[:3]),
            expected="the gradient that the example has alone",
            remedy="leave the module out of adapter.options.targets and modules_to_save, take another base "
            "model, or train without differential privacy",
        )  # fmt: skip


def _alone(
    bench: Workbench, parameters: Mapping[str, nn.Parameter], row: Encoded, count: float
) -> torch.Tensor:
    """A row's gradient by plain autograd, (P,), sorted by name; no recorder looks on."""
    tensors = {
        name: tensor.to(bench.device) for name, tensor in bench.task.collate([row], bench.data).items()
    }
    loss = bench.task.example_losses(bench.model, tensors).sum() / count
    moving = [parameter for _, parameter in sorted(parameters.items())]
    found = torch.autograd.grad(loss, moving, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.detach().reshape(-1).float() for gradient in found])


@contextmanager
def _stirred(bench: Workbench, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Training mode without dropout, with only these parameters training and none of them zero."""
    generator = torch.Generator().manual_seed(0)  # of its own: nobody else's numbers move
    own = bench.parameters()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    required = {name: parameter.requires_grad for name, parameter in own.items()}
    devices = [bench.device] if bench.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), without_dropout(bench.model):
        try:
            for name, parameter in own.items():
                parameter.requires_grad_(name in parameters)
            with torch.no_grad():
                for parameter in parameters.values():
                    shake = torch.randn(parameter.shape, generator=generator) * _STIR
                    parameter.add_(shake.to(parameter))
            bench.model.train()
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(before[name])
                    parameter.grad = None
            for name, parameter in own.items():
                parameter.requires_grad_(required[name])
