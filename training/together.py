"""Local rounds of several sites together: a step is one forward and one backward pass of their shared base.

The frozen base runs once over rows that belong to several adapters. Each layer that trains is linear: where
one stands, the rows of each site are multiplied by that site's own tensor, in one batched product, and by its
own magnitudes, where there are any. So the sum
of all sites' mean losses has each site's own gradient as its derivative by that site's tensors; optimiser,
clipping and a strategy's terms are each site's own, by the one loop of `local_round.py`. In private rounds
the pass gives each row's gradient, and each site the clipped sum of its own; noise is the site's alone.

Sites may be of different ranks, with frozen directions beside those that train: in the product each stands as
one pair of factors, all its directions behind each other, filled up with zeros to the largest of the lot.

What comes out is what each site alone gives, up to the rounding of sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

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
from wardround.training.gradients import Wanted
from wardround.training.local_round import LocalJob, LocalResult, local_round
from wardround.training.padding import Tokens
from wardround.training.private.guards import FrozenWeights, require_examples_apart
from wardround.training.private.per_example import Recording, recorder_of
from wardround.training.private.summing import Summed, WantedSum, clipped_sums
from wardround.training.shared_layers import Cut, SharedLinear, SharedMagnitudes
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
        recorded: The gradients of single rows, everybody's; None where nobody's round is private.
    """

    shared: Workbench
    own: dict[str, nn.Parameter] = field(default_factory=dict)
    rest: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)
    recorded: Recording | None = None
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
    def model(self) -> nn.Module:
        """Likewise."""
        return self.shared.model

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

    def recording(self, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[Recording]:  # noqa: ARG002 - it is of all who share
        """Everybody's, which listens while a pass is shared.

        Raises:
            InternalError: There is none.
        """
        if self.recorded is None:
            raise InternalError("a private round sits where no gradients of single rows are recorded")
        return nullcontext(self.recorded)


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
    bench.model.train()  # as it will be
    try:
        require_examples_apart(bench.model)
        linear_layers(bench)
    except ConfigError as error:
        return f"{error.what}: {error.found}"
    finally:
        bench.model.train(False)
    return ""


def train_together(bench: Workbench, jobs: Sequence[LocalJob]) -> list[LocalResult | Exception]:
    """Several sites' local rounds, step by step side by side; who has fewer steps is done sooner.

    Args:
        bench: Of which `why_alone` says nothing.
        jobs: Not resumed; private ones are of the plan's rank and freeze the same tensors.

    Returns:
        What each gave, or why it failed: one site's loss that is not finite is no other's.

    Raises:
        ConfigError: A tensor trains that has no gradient of single rows.
        InternalError: A weight of the model moved in private rounds.
    """
    found: list[LocalResult | Exception | None] = [None] * len(jobs)
    bench.load_adapter(bench.initial_adapter())  # what stood frozen beside another one's goes
    layers = linear_layers(bench)
    private = [job for job in jobs if job.private is not None]
    with ExitStack() as opened:
        moving = opened.enter_context(bench.training(private[0].rules.frozen if private else (), seed=0))
        recorded = (
            Recording(recorder_of(bench.model, moving), FrozenWeights(bench.model, ())) if private else None
        )
        seats = [Seat(bench, recorded=recorded) for _ in jobs]
        rounds = [
            opened.enter_context(closing(local_round(seat, job)))
            for seat, job in zip(seats, jobs, strict=True)
        ]
        means: dict[int, Wanted] = {}
        sums: dict[int, WantedSum] = {}

        def go_on(index: int, computed: tuple[torch.Tensor, int] | Summed | None) -> None:
            """To the site's next step, or to its end."""
            means.pop(index, None)
            sums.pop(index, None)
            try:
                wanted = next(rounds[index]) if computed is None else rounds[index].send(computed)
                if isinstance(wanted, WantedSum):
                    sums[index] = wanted
                else:
                    means[index] = wanted
            except StopIteration as done:
                found[index] = done.value
            except Exception as error:  # noqa: BLE001 - raised where that site answers for itself
                found[index] = error

        for index in range(len(jobs)):
            go_on(index, None)
        while means or sums:
            if means:
                now = dict(means)
                shares = [
                    Share(seats[index].own, step.rows, step.batch, seats[index].rest)
                    for index, step in now.items()
                ]
                for index, gradient in zip(now, gradients_together(bench, shares, layers), strict=True):
                    go_on(index, gradient)
            if sums:
                asked = dict(sums)
                adapters = [seats[index].own for index in asked]
                summed = sums_together(bench, list(asked.values()), adapters, layers)
                for index, own in zip(asked, summed, strict=True):
                    go_on(index, own)
        if recorded is not None:
            recorded.frozen.require_unmoved(exact=True)
    return [result for result in found if result is not None]


def sums_together(
    bench: Workbench, wanted: Sequence[WantedSum], adapters: Sequence[Tensors], layers: Layers
) -> list[Summed]:
    """The clipped sum of each site's batch, by its own adapter; rows stand padded, as alone.

    Args:
        bench: Model, task and device; in training mode.
        wanted: At least one.
        adapters: Of each site, every tensor by its name in the layout.
        layers: Of `linear_layers`.
    """
    # No pass but the recorder's may reach what trains privately.
    constants = [{name: tensor.detach() for name, tensor in own.items()} for own in adapters]

    @contextmanager
    def shares(rows: Sequence[int]) -> Iterator[None]:
        with (
            _as_shares(layers, [own.__getitem__ for own in constants], None, rows),
            wanted[0].recording.gradients.listening(),
        ):
            yield

    return clipped_sums(bench, wanted, shares)


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
        _as_shares(layers, [share.whole for share in shares], tokens),
    ):
        losses = task.example_losses(bench.model, tensors).view(len(shares), most)
        sums = (losses * torch.from_numpy(weights).to(device)).sum(dim=1)
        (sums / torch.tensor(counts, device=device)).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    return list(zip(sums.detach(), counts, strict=True))


@contextmanager
def _as_shares(
    layers: Layers,
    adapters: Sequence[Callable[[str], torch.Tensor]],
    tokens: Tokens | None,
    rows: Sequence[int] | None = None,
) -> Iterator[None]:
    """Let each trained layer of the model multiply every share of its rows by that site's own tensors.

    Args:
        layers: Of `linear_layers`.
        adapters: Of each site: gives a tensor by its name in the layout.
        tokens: Of rows without padding.
        rows: Of each site; None: all have as many.
    """
    cut = Cut(None if tokens is None else tokens.by_share(len(adapters)), rows)
    stacks = {
        layer: {
            attribute: _stacked([tensor_of(name) for tensor_of in adapters])
            for attribute, name in names.items()
        }
        for layer, names in layers.items()
    }
    standing: dict[nn.Module, dict[str, Any]] = {}
    for layer, own in stacks.items():
        if isinstance(layer, LinearMagnitudes):
            b, a = (stacks[side]["weight"] for side in layer.sides())
            shared = SharedMagnitudes(layer, own["weight"], b, a, cut)
            standing[layer] = {"forward": shared, "directions": shared.directions}
        else:
            standing[layer] = {"forward": SharedLinear(own["weight"], own.get("bias"), cut)}
    before = {layer: {name: layer.__dict__.get(name) for name in made} for layer, made in standing.items()}
    try:
        for layer, made in standing.items():
            layer.__dict__.update(made)
        yield
    finally:
        for layer, held in before.items():
            for name, there in held.items():
                if there is None:
                    del layer.__dict__[name]
                else:
                    layer.__dict__[name] = there


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
