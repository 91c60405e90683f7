"""Local rounds of several sites together: a step is one forward and one backward pass of their shared base.

The frozen base runs once over rows that belong to several adapters. Each layer that trains is linear: where
one stands, the rows of each site are multiplied by that site's own tensor, in one batched product, and by its
own magnitudes, where there are any. So the sum
of all sites' mean losses has each site's own gradient as its derivative by that site's tensors; optimiser,
clipping and a strategy's terms are each site's own, by the one loop of `local_round.py`.

Sites may be of different ranks, with frozen directions beside those that train: in the product each stands as
one pair of factors, all its directions behind each other, filled up with zeros to the largest of the lot.

What comes out is what each site alone gives, up to the rounding of sums in another order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from wardround.core.errors import ConfigError, InternalError
from wardround.core.packed import Adapter, Array, Layout
from wardround.core.ranks import directions_axis, same_but_for_ranks
from wardround.training.adapters._magnitudes import LinearMagnitudes
from wardround.training.adapters._trained import read_parameters
from wardround.training.base_model import drops_out
from wardround.training.batches import Indices
from wardround.training.local_round import LocalJob, LocalResult, Wanted, local_round
from wardround.training.padding import Tokens
from wardround.training.private.guards import require_examples_apart
from wardround.training.tasks.contract import Encoded, Task
from wardround.training.workbench import Workbench, moving_of

Tensors = Mapping[str, nn.Parameter]
Layers = Mapping[nn.Module, Mapping[str, str]]
"""Layer that trains → its attribute → name in the layout."""
Frozen = Mapping[str, tuple[torch.Tensor, int]]
"""Name of a factor → directions that stand frozen beside those that train, and the axis they lie along."""


@dataclass
class Seat:
    """A place at a bench for one site's adapter: tensors of its own, beside the model that all share.

    Attributes:
        shared: The bench.
        own: Name in the layout → the site's tensor, in the model's order; empty until an adapter is loaded.
        rest: What stands frozen beside the site's own.
    """

    shared: Workbench
    own: dict[str, nn.Parameter] = field(default_factory=dict)
    rest: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)
    _loaded: Layout | None = None

    @property
    def task(self) -> Task:
        """The bench's."""
        return self.shared.task

    @property
    def device(self) -> torch.device:
        """Likewise."""
        return self.shared.device

    @property
    def layout(self) -> Layout:
        """Likewise."""
        return self.shared.layout

    def load_adapter(self, adapter: Adapter, rest: Adapter | None = None) -> None:
        """Take an adapter of the bench's modules, of any rank, with frozen directions beside it or without.

        Raises:
            InternalError: It is of other modules.
        """
        if not same_but_for_ranks(adapter.layout, self.layout):
            raise InternalError("a site's adapter is of other modules than its bench")
        self._loaded = adapter.layout
        for name in self.shared.parameters():
            self.own[name] = nn.Parameter(self._there(adapter[name]))
        self.rest = {}
        if rest is not None:
            for spec in rest.layout.tensors:
                self.rest[spec.name] = self._there(rest[spec.name]), directions_axis(spec)

    def _there(self, values: Array) -> torch.Tensor:
        return torch.from_numpy(np.array(values, dtype=np.float32)).to(self.device)

    def read_adapter(self) -> Adapter:
        """A copy, at the rank at which it was loaded, float32."""
        return read_parameters(self.own, self._loaded or self.layout)

    @contextmanager
    def training(self, frozen: Collection[str], seed: int) -> Iterator[dict[str, nn.Parameter]]:  # noqa: ARG002 - nothing is drawn
        """What moves; the model's own mode is whoever computes the gradients' business.

        Raises:
            TrainingError: `nothing_trains`.
        """
        moving = moving_of(self.own, frozen)
        for name, parameter in self.own.items():
            parameter.requires_grad_(name in moving)
        yield moving


@dataclass(frozen=True)
class Share:
    """One site's part of a shared step.

    Attributes:
        parameters: Every tensor of its adapter by its name in the layout; `.grad` is written into those that
            require one.
        rows: The site's rows.
        batch: Indices into them, at least one.
        rest: What stands frozen beside them.
    """

    parameters: Tensors
    rows: Sequence[Encoded]
    batch: Indices
    rest: Frozen = field(default_factory=dict)

    def whole(self, name: str) -> torch.Tensor:
        """What the model multiplies by: the site's own tensor, with all that stands frozen beside it."""
        own = self.parameters[name]
        if name not in self.rest:
            return own
        frozen, axis = self.rest[name]
        return torch.cat([own, frozen], dim=axis)


def why_alone(bench: Workbench) -> str:
    """What keeps the sites of a bench from being trained together; empty where nothing does."""
    if drops_out(bench.model):
        return "dropout draws masks for a batch as a whole"
    try:
        require_examples_apart(bench.model)
        linear_layers(bench)
    except ConfigError as error:
        return f"{error.what}: {error.found}"
    return ""


def train_together(bench: Workbench, jobs: Sequence[LocalJob]) -> list[LocalResult | Exception]:
    """Several sites' local rounds, step by step side by side; who has fewer steps is done sooner.

    Args:
        bench: Of which `why_alone` says nothing.
        jobs: Not private, and not resumed.

    Returns:
        What each gave, or why it failed: one site's loss that is not finite is no other's.
    """
    seats = [Seat(bench) for _ in jobs]
    found: list[LocalResult | Exception | None] = [None] * len(jobs)
    bench.load_adapter(bench.initial_adapter())  # what stood frozen beside another one's goes
    layers = linear_layers(bench)
    with ExitStack() as opened:
        rounds = [
            opened.enter_context(closing(local_round(seat, job)))
            for seat, job in zip(seats, jobs, strict=True)
        ]
        wanted: dict[int, Wanted] = {}

        def go_on(index: int, gradient: tuple[torch.Tensor, int] | None) -> None:
            """To the site's next step, or to its end."""
            wanted.pop(index, None)
            try:
                wanted[index] = next(rounds[index]) if gradient is None else rounds[index].send(gradient)
            except StopIteration as done:
                found[index] = done.value
            except Exception as error:  # noqa: BLE001 - raised where that site answers for itself
                found[index] = error

        for index in range(len(jobs)):
            go_on(index, None)
        opened.enter_context(_training_mode(bench))
        while wanted:
            now = dict(wanted)
            shares = [
                Share(seats[index].own, step.rows, step.batch, seats[index].rest)
                for index, step in now.items()
            ]
            for index, gradient in zip(now, gradients_together(bench, shares, layers), strict=True):
                go_on(index, gradient)
    return [result for result in found if result is not None]


@contextmanager
def _training_mode(bench: Workbench) -> Iterator[None]:
    bench.model.train()
    try:
        yield
    finally:
        bench.model.train(False)


def gradients_together(
    bench: Workbench, shares: Sequence[Share], layers: Layers
) -> list[tuple[torch.Tensor, int]]:
    """Put ∇ (Σ loss terms / number of terms) of each site's batch into that site's own `.grad`.

    A site with fewer rows than another is filled up by a row that weighs nothing.

    Args:
        bench: Model, task and device; in training mode.
        shares: At least one.
        layers: Of `linear_layers`.

    Returns:
        For each site its summed loss in nats, a scalar on the device, and the number of its terms.
    """
    task, device = bench.task, bench.device
    most = max(len(share.batch) for share in shares)
    rows: list[Encoded] = []
    counts: list[int] = []
    weights = np.zeros((len(shares), most), dtype=np.float32)
    for number, share in enumerate(shares):
        own = [share.rows[index] for index in share.batch]
        counts.append(sum(task.targets(row) for row in own))
        weights[number, : len(own)] = 1.0
        rows += [*own, *(own[:1] * (most - len(own)))]
    tensors = {name: tensor.to(device) for name, tensor in task.collate(rows, bench.data).items()}
    with (
        bench.padding.of(tensors) as tokens,
        _as_shares(layers, shares, tokens),
    ):
        losses = task.example_losses(bench.model, tensors).view(len(shares), most)
        sums = (losses * torch.from_numpy(weights).to(device)).sum(dim=1)
        (sums / torch.tensor(counts, device=device)).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    return list(zip(sums.detach(), counts, strict=True))


@contextmanager
def _as_shares(layers: Layers, shares: Sequence[Share], tokens: Tokens | None) -> Iterator[None]:
    """Let each trained layer of the model multiply every share of its rows by that site's own tensors."""
    sizes = None if tokens is None else tokens.by_share(len(shares))
    before = {layer: layer.__dict__.get("forward") for layer in layers}
    try:
        for layer, names in layers.items():
            stacks = {
                attribute: _stacked([share.whole(name) for share in shares])
                for attribute, name in names.items()
            }
            layer.__dict__["forward"] = (
                _SharedMagnitudes(layer, stacks["weight"], sizes)
                if isinstance(layer, LinearMagnitudes)
                else _Shared(stacks["weight"], stacks.get("bias"), sizes)
            )
        yield
    finally:
        for layer, forward in before.items():
            if forward is None:
                del layer.__dict__["forward"]
            else:
                layer.__dict__["forward"] = forward


def _stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One behind the other; factors of a smaller rank get directions of zero, which add nothing."""
    most = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return torch.stack(
        [
            tensor
            if list(tensor.shape) == most
            else nn.functional.pad(tensor, (0, most[-1] - tensor.shape[-1], 0, most[0] - tensor.shape[0]))
            for tensor in tensors
        ]
    )


def linear_layers(bench: Workbench) -> Layers:
    """Layer → attribute → name in the layout, of all that trains.

    Raises:
        ConfigError: Something else than a linear layer trains.
    """
    names = {id(parameter): name for name, parameter in bench.parameters().items()}
    found: dict[nn.Module, dict[str, str]] = {}
    for path, module in bench.model.named_modules():
        own = {
            attribute: names[id(parameter)]
            for attribute, parameter in module.named_parameters(recurse=False)
            if id(parameter) in names
        }
        if not own:
            continue
        if type(module) not in (nn.Linear, LinearMagnitudes) or "weight" not in own:
            raise ConfigError(
                "sites are trained together through linear layers alone", found=f"{path} trains",
                expected="LoRA on linear layers and linear heads", remedy="train them one at a time",
            )  # fmt: skip
        found[module] = own
    return found


@dataclass(frozen=True)
class _Shared:
    """A linear layer of so many sites; rows are in order of the sites.

    Attributes:
        weight: (sites, d_out, d_in).
        bias: (sites, d_out).
        sizes: Tokens of each site's rows where they come without padding, (1, tokens, d_in); None: padded.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    sizes: list[int] | None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if _ragged(inputs, self.sizes):
            product = cast("torch.Tensor", _Segments.apply(inputs[0], self.weight, self.sizes))[None]  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return product if self.bias is None else product + _by_token(self.bias, self.sizes)
        sites = len(self.weight)
        shares = inputs.reshape(sites, -1, inputs.shape[-1])
        turned = self.weight.transpose(1, 2)
        made: Any = (
            torch.bmm(shares, turned)
            if self.bias is None
            else torch.baddbmm(self.bias[:, None], shares, turned)
        )
        return made.reshape(*inputs.shape[:-1], -1)  # type: ignore[no-any-return]  # a tensor


class _Segments(torch.autograd.Function):
    """Each site's tokens by that site's weight: (tokens, d_in), (sites, d_out, d_in) → (tokens, d_out)."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.sizes = sizes
        made = inputs.new_empty(len(inputs), weight.shape[1])
        for own, given, out in zip(weight, torch.split(inputs, sizes), torch.split(made, sizes), strict=True):
            torch.mm(given, own.T, out=out)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        parts = torch.split(gradients[0], ctx.sizes)
        by_input = by_weight = None
        if ctx.needs_input_grad[0]:
            by_input = torch.empty_like(inputs)
            for own, part, out in zip(weight, parts, torch.split(by_input, ctx.sizes), strict=True):
                torch.mm(part, own, out=out)
        if ctx.needs_input_grad[1]:
            by_weight = torch.empty_like(weight)
            for given, part, out in zip(torch.split(inputs, ctx.sizes), parts, by_weight, strict=True):
                torch.mm(part.T, given, out=out)
        return by_input, by_weight, None


def _ragged(inputs: torch.Tensor, sizes: list[int] | None) -> bool:
    """Whether these are the rows of all sites without padding."""
    return sizes is not None and inputs.shape[:-1] == (1, sum(sizes))


def _by_token(values: torch.Tensor, sizes: list[int] | None) -> torch.Tensor:
    """(sites, d) → (1, tokens, d): to each token what its site has."""
    return values.repeat_interleave(torch.tensor(sizes, device=values.device), dim=0)[None]


@dataclass(frozen=True)
class _SharedMagnitudes:
    """What DoRA adds to a layer's output, of so many sites; the modules of their factors are `_Shared`.

    Attributes:
        layer: That stands there otherwise.
        weight: m (sites, d_out).
        sizes: As of `_Shared`.
    """

    layer: LinearMagnitudes
    weight: torch.Tensor
    sizes: list[int] | None

    def __call__(self, inputs: torch.Tensor, **given: Any) -> torch.Tensor:
        b, a = (given[side].__dict__["forward"].weight for side in ("lora_B", "lora_A"))
        factor = self.weight / self.layer.norms(b, a)
        own, learnt = self.layer.parts(inputs, **given)
        if _ragged(inputs, self.sizes):
            factor = _by_token(factor, self.sizes)
            return (factor - 1) * own + factor * learnt
        shape = own.shape
        own, learnt = (part.reshape(len(self.weight), -1, part.shape[-1]) for part in (own, learnt))
        factor = factor[:, None]
        return ((factor - 1) * own + factor * learnt).reshape(shape)
