"""What has to stay as it was while training is private: everything but the noised sum and the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from wardround.core.errors import ConfigError, InternalError, TrainingError

_MIXING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def require_examples_apart(model: nn.Module) -> None:
    """No layer normalises over the batch: every example's loss would depend on all others, frozen or not.

    Raises:
        ConfigError: Names the layer.
    """
    found = [
        name for name, module in model.named_modules() if isinstance(module, _MIXING) and module.training
    ]
    if found:
        raise ConfigError(
            "a layer normalises over the batch, so that no example has a gradient of its own",
            found=", ".join(found[:3]), expected="layers that read one example at a time",
            remedy="use a base model without batch normalisation, or train without differential privacy",
        )  # fmt: skip


def require_no_gradients(parameters: Mapping[str, nn.Parameter]) -> None:
    """No `.grad` lies on a parameter: it would be a gradient of the plain path, neither clipped nor noised.

    Raises:
        InternalError: Names the parameters.
    """
    found = [name for name, parameter in parameters.items() if parameter.grad is not None]
    if found:
        raise InternalError(
            "a plain gradient lies on a parameter that trains privately",
            found=", ".join(found[:3]), expected=".grad is None",
            remedy="clear gradients with set_to_none=True before and after a private step",
        )  # fmt: skip


@contextmanager
def no_other_backward(
    parameters: Mapping[str, nn.Parameter], recording: Callable[[], bool]
) -> Iterator[None]:
    """While it is open, no backward pass but the recording one reaches a parameter that trains privately.

    Between a private gradient and its step, another pass (an optimiser's own, in a closure or a hook) would
    add what is neither clipped nor noised to what is stepped with. `torch.autograd.grad`, which leaves no
    `.grad`, is not seen.

    Args:
        parameters: What trains, by name.
        recording: Whether gradients by example are being recorded: what then goes past a rule is the
            recorder's to name.

    Raises:
        InternalError: In that backward pass; names the parameter.
    """

    def refuse(name: str) -> Callable[[torch.Tensor], None]:
        def hook(_: torch.Tensor) -> None:
            if not recording():
                raise InternalError(
                    "a plain gradient reaches a parameter that trains privately", found=name,
                    expected="no backward pass between private steps",
                    remedy="use an optimiser that reads `.grad` alone, and runs no pass of its own",
                )  # fmt: skip

        return hook

    with ExitStack() as hooks:
        for name, parameter in parameters.items():
            held = parameter.register_post_accumulate_grad_hook(refuse(name))  # type: ignore[no-untyped-call]  # torch leaves it untyped
            hooks.callback(held.remove)
        yield


@dataclass(frozen=True)
class _Mark:
    """Where a tensor's memory is, and how often it was written in place."""

    place: int
    version: int


class FrozenWeights:
    """Watches the weights and saved buffers outside the adapter: data must reach the adapter alone.

    A normalisation's running statistics, for example, would carry an exact mean of the batch out of the site.

    Args:
        model: All of it.
        adapter: What may move.
    """

    def __init__(self, model: nn.Module, adapter: Iterable[nn.Parameter]) -> None:
        self._model = model
        self._moving = {id(parameter) for parameter in adapter}
        self._marks = {name: _mark(tensor) for name, tensor in self._watched()}
        self._sums = {name: _bit_sum(tensor) for name, tensor in self._watched()}

    def require_unmoved(self, *, exact: bool = False) -> None:
        """Nothing outside the adapter was written or replaced since the start.

        Args:
            exact: Also compare sums over the bits, one pass over the weights: it sees writes through `.data`
                and inside of kernels (a running mean), which version counters do not.

        Raises:
            InternalError: Names the tensors.
        """
        found = [name for name, tensor in self._watched() if self._marks.get(name) != _mark(tensor)]
        if exact:
            known = self._sums
            found += [name for name, tensor in self._watched() if known.get(name) != _bit_sum(tensor)]
        missing = self._marks.keys() - {name for name, _ in self._watched()}
        if found or missing:
            raise InternalError(
                "a weight outside the adapter moved during a private step",
                found=", ".join(sorted({*found, *missing})[:3]), expected="only the adapter's tensors move",
                remedy="put the module into evaluation mode, or leave it out of the model",
            )  # fmt: skip

    def _watched(self) -> Iterator[tuple[str, torch.Tensor]]:
        # Not `state_dict`: a quantised layer makes parts of it anew at each call.
        for path, module in self._model.named_modules(remove_duplicate=False):
            held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            unsaved = module._non_persistent_buffers_set  # noqa: SLF001 - torch's only word for what is saved
            for name, tensor in held:
                if name not in unsaved and id(tensor) not in self._moving:
                    yield f"{path}.{name}".lstrip("."), tensor


class AdapterStart:
    """Where the adapter stood before the first step.

    Args:
        parameters: What trains.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._before = {name: p.detach().clone() for name, p in parameters.items()}

    def require_moved(self) -> None:
        """The optimiser steps the tensors that the model reads: max |Δ| > 0.

        Noise moves every tensor, so this reads nothing that is not released; it does not see a model whose
        losses ignore the adapter (that has no gradient at all, which `ExampleGradients.of` refuses).

        Raises:
            TrainingError: `nothing_moved`.
        """
        if all(torch.equal(p.detach(), self._before[name]) for name, p in self._parameters.items()):
            raise TrainingError(
                "nothing_moved", "the adapter is the same after the first private step",
                found=f"{len(self._parameters)} tensors, none of them moved", expected="max |Δ| > 0",
                remedy="build the optimiser over the bench's own parameters, with a learning rate above 0",
            )  # fmt: skip


def _mark(tensor: torch.Tensor) -> _Mark:
    return _Mark(tensor.data_ptr(), tensor._version)  # noqa: SLF001 - torch's only counter of writes in place


def _bit_sum(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bytes, read as integers of its own width, modulo 2⁶⁴."""
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.detach().contiguous().reshape(-1)
    return int(flat.view(widths[flat.element_size()]).sum(dtype=torch.int64)) if flat.numel() else 0
