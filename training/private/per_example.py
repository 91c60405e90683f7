"""The gradient of every example of a microbatch, from one forward and one backward pass.

Rows of g_i = ∇ L_i, as DP-SGD clips them (Abadi et al. 2016, arXiv:1607.00133v2, Algorithm 1, "compute
gradient"). While a recording is open, each module with parameters that train runs as it always does, but
with those parameters held constant, so that autograd computes no summed gradient for them; a node behind its
output hands what passes through to the module's rule (`rules.py`), which fills one flat buffer. Nothing is
wrapped or renamed, and no gradient lies in `.grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import nn

from wardround.core.errors import ConfigError, InternalError
from wardround.training.private.guards import FrozenWeights, require_examples_apart, require_no_gradients
from wardround.training.private.rules import Rule, by_distance, rule_of, unruled_layer

Rules: TypeAlias = Mapping[nn.Module, tuple[str, Rule]]
"""Module that trains → its name and rule."""


@dataclass(frozen=True)
class Recording:
    """What a private round needs of the model that it reads.

    Attributes:
        gradients: Of single rows.
        frozen: What must not move meanwhile.
    """

    gradients: ExampleGradients
    frozen: FrozenWeights


@contextmanager
def recording(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[Recording]:
    """As `record_gradients`; weights outside the adapter are compared bit by bit at the end.

    Raises:
        InternalError: One of them moved.
    """
    with record_gradients(model, parameters) as gradients:
        frozen = FrozenWeights(model, parameters.values())
        yield Recording(gradients, frozen)
        frozen.require_unmoved(exact=True)


@contextmanager
def record_gradients(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[ExampleGradients]:
    """Prepare a model for gradients by example; it is put back as it was on the way out, whatever happens.

    Args:
        model: With its adapter on it; same object, same parameters, same names throughout.
        parameters: Everything in the model that trains, by its name in the layout.

    Yields:
        What computes the gradients, of one microbatch after the other.

    Raises:
        ConfigError: A parameter trains that has no rule, or a layer normalises over the batch; names it.
            Nothing was changed.
        InternalError: `parameters` are not what trains, or the model is being recorded already.
    """
    gradients = recorder_of(model, parameters)
    with gradients.listening():
        yield gradients


def recorder_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> ExampleGradients:
    """What `record_gradients` yields, before it listens to the model.

    Raises:
        ConfigError: As `record_gradients`.
        InternalError: `parameters` are not what trains.
    """
    rules = _rules(model, parameters)
    require_examples_apart(model)
    return ExampleGradients(parameters, rules)


def columns_of(parameters: Mapping[str, nn.Parameter]) -> dict[str, slice]:
    """Name → its place in a row of gradients, which is sorted by name."""
    columns, start = {}, 0
    for name, parameter in sorted(parameters.items()):
        columns[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return columns


@final
class ExampleGradients:
    """A flat buffer (lines, P) of float32, and what fills it; made by `recorder_of`.

    Attributes:
        columns: Name → its place in a row. Rows are in the layout's order, by name; a tensor that the
            strategy froze has no place.
        size: P, the length of a row.
        lines: Of the microbatch that is being recorded; None in between.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rules: Rules) -> None:
        self.parameters = dict(sorted(parameters.items()))
        self._rules = rules
        self.columns = columns_of(parameters)
        self.size = sum(parameter.numel() for parameter in parameters.values())
        self.lines: int | None = None
        self._places = {id(p): self.columns[name] for name, p in self.parameters.items()}
        self._filled: set[int] = set()
        device = next(iter(self.parameters.values())).device
        self._buffer = torch.empty(0, self.size, dtype=torch.float32, device=device)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Stand in for each module that trains, in front of whatever multiplies there now.

        Raises:
            InternalError: The model is being recorded already.
        """
        if any(isinstance(module.__dict__.get("forward"), _Recorded) for module in self._rules):
            raise InternalError("gradients by example are being recorded on this model already")
        before = {module: module.__dict__.get("forward") for module in self._rules}
        try:
            for module, (name, rule) in self._rules.items():
                module.__dict__["forward"] = _Recorded(name, module.forward, rule, self)
            yield
        finally:
            self.lines = None
            for module, forward in before.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = forward

    def of(self, losses: Callable[[], torch.Tensor], lines: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of every line of a microbatch.

        A line is an entry along the first dimension of what the model reads: one for each example, or
        several (a preference's two answers), whose rows then sum to the example's gradient. Each loss has to
        depend on the lines of its own example alone: no mean over the batch or over its tokens, no packing of
        several units into a line. Dividing an example's loss by a number of its own is the caller's affair.

        Args:
            losses: Runs the model once and gives one loss an example, (examples,). Not called for no lines.
            lines: Of the batch, at least 0.

        Returns:
            Gradients (lines, P), which the next call overwrites, and the losses, detached. A line whose loss
            is not finite spoils its own row at most.

        Raises:
            ConfigError: A module does not keep its lines apart, or reads a parameter past its rule; names it.
            InternalError: A gradient lies in a `.grad`, or the losses have another form.
        """
        if lines == 0:
            return self._buffer[:0], self._buffer.new_zeros(0)
        require_no_gradients(self.parameters)
        if len(self._buffer) < lines:
            self._buffer = self._buffer.new_empty(lines, self.size)
        self.lines, self._filled = lines, set()
        try:
            each = losses()
            if each.ndim != 1 or not each.requires_grad:
                raise InternalError(
                    "losses of examples have another form",
                    found=f"shape {tuple(each.shape)}, requires_grad={each.requires_grad}",
                    expected="one loss an example, computed through the adapter",
                )
            each.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        finally:
            self.lines = None
            past = [name for name, p in self.parameters.items() if p.grad is not None]
            for name in past:
                self.parameters[name].grad = None
        if past:
            raise ConfigError(
                "a parameter is read past its own module, where examples cannot be told apart",
                found=", ".join(past[:3]), expected="parameters that only their own modules use",
                remedy="leave the module out of adapter.options.targets and modules_to_save",
            )  # fmt: skip
        for name, parameter in self.parameters.items():
            if id(parameter) not in self._filled:  # in no example's loss
                self._buffer[:lines, self.columns[name]] = 0
        return self._buffer[:lines], each.detach()

    def undefined(self, lines: int) -> tuple[torch.Tensor, torch.Tensor]:
        """NaN for every line, (lines, P) and (lines,): of lines whose gradient nobody could compute."""
        self.forget()
        self._buffer = self._buffer.new_full((lines, self.size), torch.nan)
        return self._buffer, self._buffer.new_full((lines,), torch.nan)

    def forget(self) -> None:
        """Give the buffer's memory back; the next microbatch makes its own."""
        self._buffer = self._buffer.new_empty(0, self.size)

    def add(self, parameter: nn.Parameter, gradients: torch.Tensor) -> None:
        """Put a parameter's gradients (lines, *shape) into the buffer; further uses of it are added."""
        place = self._buffer[: len(gradients), self._places[id(parameter)]].view(gradients.shape)
        if id(parameter) in self._filled:
            place.add_(gradients)
        else:
            place.copy_(gradients)
            self._filled.add(id(parameter))


def require_rules(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse what `record_gradients` would refuse for want of a rule, before anything is spent on it.

    Args:
        model: With its adapter on it.
        parameters: What will train, by its name in the layout.

    Raises:
        ConfigError: A parameter has no rule; names it.
    """
    moving = {id(p) for p in parameters.values()}
    _found(model, {id(p): name for name, p in model.named_parameters() if id(p) in moving})


def _rules(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[nn.Module, tuple[str, Rule]]:
    """Module → its name and rule, for all that trains."""
    named = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if set(named) != {id(p) for p in parameters.values()} or not named:
        raise InternalError(
            "the parameters to record are not those that train",
            found=f"{len(parameters)} given, {len(named)} train",
        )
    return _found(model, named)


def _found(model: nn.Module, named: Mapping[int, str]) -> dict[nn.Module, tuple[str, Rule]]:
    """Module → its name and rule; `named` is what trains, by its identity."""
    found: dict[nn.Module, tuple[str, Rule]] = {}
    refused: set[str] = set()
    taken: set[int] = set()  # bare parameters, which belong to the layer around their dictionary

    def names(parameters: Iterable[nn.Parameter]) -> set[str]:
        return {named[id(p)] for p in parameters if id(p) in named}

    for name, module in model.named_modules():
        if unruled_layer(module):
            refused |= names(_adapter_parameters(module))
        rule = rule_of(module)
        if rule is not None and by_distance(name):
            refused |= names(rule.parameters)
        if rule is not None:
            found[module] = (name, rule)
            taken |= {id(p) for p in rule.parameters}
    for _, module in model.named_modules():
        if module not in found:
            alone = not isinstance(module, nn.ParameterDict)
            refused |= names(p for p in module.parameters(recurse=False) if alone or id(p) not in taken)
    if refused:
        raise ConfigError(
            "no rule gives the gradient of single examples for a parameter that trains",
            found=f"{len(refused)}: " + ", ".join(sorted(refused)[:3]),
            expected="LoRA on linear layers, Conv1D and embeddings; DoRA on the first two, with biases that "
            "stay; in full: linear layers, embeddings, LayerNorm, RMSNorm, and modules made of them",
            remedy="leave the module out of adapter.options.targets and modules_to_save, use plain LoRA, "
            "or train without differential privacy",
        )  # fmt: skip
    return found


def _adapter_parameters(layer: nn.Module) -> Iterator[nn.Parameter]:
    """What a layer of PEFT adds to its base layer."""
    for name, parameter in layer.named_parameters():
        if not name.startswith("base_layer."):
            yield parameter


@dataclass(eq=False)
class _Recorded:
    """Stands in for one module's `forward`."""

    name: str
    plain: Callable[..., Any]
    rule: Rule
    gradients: ExampleGradients

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        lines = self.gradients.lines
        if lines is None:
            return self.plain(*args, **keywords)
        if not args:
            first = next(iter(keywords))
            args = (keywords.pop(first),)
        inputs = args[0]
        if self.rule.looks_up and inputs.shape[0] == 1:
            # GPT-2 looks positions up once for the whole batch, where their gradients would be summed.
            inputs = inputs.expand(lines, *inputs.shape[1:])
        with _held_constant(self.rule.parameters):
            output = self.plain(inputs, *args[1:], **keywords)
        flat = self.rule.looks_up and inputs.ndim == 1  # positions, one for all: as many as lines by chance
        if flat or inputs.shape[0] != lines or output.shape[0] != lines:
            raise ConfigError(
                f"module {self.name} does not keep examples apart along its first dimension",
                found=f"{self._trained()}: input {tuple(inputs.shape)}, output {tuple(output.shape)}",
                expected=f"({lines}, …)",
                remedy="leave it out of adapter.options.targets and modules_to_save",
            )  # fmt: skip
        if not torch.is_grad_enabled():  # the first pass of a reentrant checkpoint
            return output
        kind = inputs.device.type
        if self.rule.multiplies and torch.is_autocast_enabled(kind):
            inputs = inputs.to(torch.get_autocast_dtype(kind))  # what the product read, in half the memory
        return _Tap.apply(output, inputs.detach(), self, *self.rule.parameters)  # type: ignore[no-untyped-call]  # torch leaves apply untyped

    def _trained(self) -> str:
        """Names of the parameters, as in the layout."""
        own = {id(parameter) for parameter in self.rule.parameters}
        return ", ".join(name for name, p in self.gradients.parameters.items() if id(p) in own)


@contextmanager
def _held_constant(parameters: tuple[nn.Parameter, ...]) -> Iterator[None]:
    """No summed gradients for these: the rules give them by example."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class _Tap(torch.autograd.Function):
    """The identity; what comes back through it goes to the rule as well.

    The parameters are arguments so that the output needs a gradient where only they do. Tensors are saved the
    official way, which is what checkpointing recomputes.
    """

    @staticmethod
    def forward(
        ctx: Any, output: torch.Tensor, inputs: torch.Tensor, recorded: _Recorded, *parameters: Any
    ) -> Any:
        ctx.save_for_backward(inputs)
        ctx.recorded, ctx.extra = recorded, len(parameters)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (inputs,) = ctx.saved_tensors
        recorded = ctx.recorded
        for parameter, each in recorded.rule.gradients(inputs, gradients[0]):
            recorded.gradients.add(parameter, each)
        return (gradients[0], None, None, *[None] * ctx.extra)
