"""One shared frozen base with one adapter on it: what every site of a process works at, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from peft import PeftModel
from pydantic import BaseModel
from transformers import PreTrainedModel

from wardround.core.errors import ConfigError, ModelError, TrainingError
from wardround.core.packed import Adapter, Layout
from wardround.core.plan import DataContract
from wardround.core.seeds import Purpose, seed_for
from wardround.training.adapters.contract import AdapterMethod
from wardround.training.base_model import LoadedBase, load_base
from wardround.training.device_memory import Fit
from wardround.training.frozen_products import in_bfloat16, layers_of, round_products
from wardround.training.padding import PaddingFree
from wardround.training.private.per_example import Recording, recording
from wardround.training.settings import BaseModelConfig, Machine
from wardround.training.tasks.contract import Task


class Place(Protocol):
    """Where one site trains: a whole bench, or a seat at one."""

    @property
    def task(self) -> Task:
        """Kind of fine-tuning."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def model(self) -> torch.nn.Module:
        """All of it."""

    @property
    def layout(self) -> Layout:
        """Of the plan's adapter."""

    def load_adapter(self, adapter: Adapter, rest: Adapter | None = None) -> None:
        """Take an adapter, with frozen directions beside it or without."""

    def read_adapter(self) -> Adapter:
        """A copy of it, float32."""

    def training(
        self, frozen: Collection[str], seed: int
    ) -> AbstractContextManager[dict[str, torch.nn.Parameter]]:
        """What moves in a round, by its name in the layout."""

    def recording(self, parameters: Mapping[str, torch.nn.Parameter]) -> AbstractContextManager[Recording]:
        """Of the gradients of single rows, by what moves."""


@dataclass(frozen=True)
class Workbench:
    """A base model with an adapter that sites load, train and read in turn.

    Attributes:
        base: What was loaded, with its digest; its modules now carry the adapter.
        model: The same through PEFT, in evaluation mode between rounds.
        task: Kind of fine-tuning.
        data: Data contract with the tokenizer's digests and token ids filled in.
        method: Adapter method.
        layout: Every tensor that federates.
        fresh: The adapter as the seed tree made it, before anything was loaded.
        machine: This machine's choices.
        device: Where the model is.
        padding: How its layers go without padding.
        fit: What its memory has shown.
        apart: Sets of names that were seen to keep examples apart (`private/dry_pass.py`).
    """

    base: LoadedBase
    model: PeftModel
    task: Task
    data: DataContract
    method: AdapterMethod
    layout: Layout
    fresh: Adapter
    machine: Machine
    device: torch.device
    padding: PaddingFree
    fit: Fit = field(default_factory=Fit, compare=False, repr=False)
    apart: set[frozenset[str]] = field(default_factory=set, compare=False, repr=False)
    _loaded: list[Layout] = field(default_factory=list, compare=False, repr=False)
    """Layout of the adapter that was loaded last, where it has another rank than `layout`."""

    @property
    def tokenizer(self) -> Any:
        """What the task's processor loaded: the base model's tokenizer, as a rule."""
        return self.base.tokenizer

    def initial_adapter(self) -> Adapter:
        """The adapter as the seed tree made it, whatever has been loaded since."""
        return self.fresh

    def load_adapter(self, adapter: Adapter, rest: Adapter | None = None) -> None:
        """Copy an adapter into the model, which takes its rank, with frozen directions beside it or without.

        Raises:
            PeerError: It is of other modules.
        """
        self.method.write(self.model, adapter, rest)
        self._loaded[:] = [] if adapter.layout.digest == self.layout.digest else [adapter.layout]

    def read_adapter(self) -> Adapter:
        """Copy the adapter out of the model, at the rank at which it was loaded, float32."""
        return self.method.read(self.model, self._loaded[0] if self._loaded else self.layout)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's tensors by their names in the layout, in the model's own order."""
        return self.method.parameters(self.model)

    @contextmanager
    def training(self, frozen: Collection[str], seed: int) -> Iterator[dict[str, torch.nn.Parameter]]:
        """Training mode over the tensors that move, under the dropout seed; all is put back afterwards.

        Raises:
            TrainingError: `nothing_trains`.
        """
        parameters = self.parameters()
        moving = moving_of(parameters, frozen)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            try:
                for name, parameter in parameters.items():
                    parameter.requires_grad_(name in moving)
                self.model.train()
                yield moving
            finally:
                self.model.train(False)
                for parameter in parameters.values():
                    parameter.requires_grad_(True)
                    parameter.grad = None

    def recording(self, parameters: Mapping[str, torch.nn.Parameter]) -> AbstractContextManager[Recording]:
        """Of the gradients of single rows by what moves; listens for as long as it is open.

        Raises:
            ConfigError: As `record_gradients`.
            InternalError: Likewise, or a weight outside the adapter moved.
        """
        return recording(self.model, parameters)


def moving_of(
    parameters: Mapping[str, torch.nn.Parameter], frozen: Collection[str]
) -> dict[str, torch.nn.Parameter]:
    """What trains in a round.

    Raises:
        TrainingError: `nothing_trains`.
    """
    moving = {name: parameter for name, parameter in parameters.items() if name not in frozen}
    if not moving:
        raise TrainingError("nothing_trains", "the strategy froze every tensor of the adapter")
    return moving


def open_workbench(
    config: BaseModelConfig,
    task: Task,
    data: DataContract,
    method: AdapterMethod,
    options: BaseModel,
    machine: Machine,
    *,
    seed: int,
) -> Workbench:
    """Load the base model, put a fresh adapter on it.

    Args:
        config: Base model.
        task: Kind of fine-tuning.
        data: Its label list sizes a classifier's head.
        method: Adapter method.
        options: The method's own, already checked.
        machine: Device, threads, sizes.
        seed: Root of the seed tree.

    Raises:
        ModelError: See `load_base` and the method's `attach`.
        ConfigError: The device is not there.
    """
    device = pick_device(machine.device)
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    base = load_base(config, task, data, device=device)
    # A cache of keys and values serves generation only, which asks for it itself.
    base.model.config.use_cache = False
    products = layers_of(base.model)  # before there are an adapter's own
    model = method.attach(base, options, task, data, seed_for(seed, Purpose.INITIALISATION))
    if machine.gradient_checkpointing:
        checkpoint_activations(base.model)
    model.train(False)
    if in_bfloat16(machine.precision, device):
        round_products(products)
    layout = method.layout(model)
    return Workbench(
        base,
        model,
        task,
        with_tokenizer(data, base, task),
        method,
        layout,
        method.read(model, layout),
        machine,
        device,
        PaddingFree(model, machine.padding_free),
    )


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; not reentrantly, which a frozen base breaks.

    Raises:
        ConfigError: The architecture cannot.
    """
    # transformers 5 renamed it; the old name is all that version 4 has.
    renamed = getattr(model, "activation_checkpointing_enable", None)
    enable = renamed or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            "this base model cannot recompute its activations",
            found=type(model).__name__,
            remedy="set machine.gradient_checkpointing=false",
        ) from error


def with_tokenizer(data: DataContract, base: LoadedBase, task: Task) -> DataContract:
    """The data contract completed by what the task reads rows through; what the plan has fixed has to agree.

    Raises:
        ModelError: The tokenizer (or the task's other processor) is not the plan's; names what differs.
    """
    found = task.processor.contract(base.tokenizer, base.model)
    wrong = [name for name, value in found.items() if data.tokenizer_digest and getattr(data, name) != value]
    if wrong:
        raise ModelError(
            f"the tokenizer of {base.name!r} is not the one of the plan",
            found="another " + ", ".join(wrong), expected=f"tokenizer {data.tokenizer_digest[:12]}",
            remedy="get the base model that the plan names", code="tokenizer",
        )  # fmt: skip
    return data.model_copy(update=found)


def pick_device(choice: Literal["auto", "cpu", "cuda", "mps"]) -> torch.device:
    """The device of a choice.

    Raises:
        ConfigError: It is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        return torch.device(next(name for name, usable in there.items() if usable))
    if not there[choice]:
        raise ConfigError(
            f"machine.device={choice} is not there",
            found="usable: " + ", ".join(name for name, usable in there.items() if usable),
            remedy="set machine.device=auto, or install a torch build for that device",
        )
    return torch.device(choice)
