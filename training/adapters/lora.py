"""LoRA: W x + s · B A x with a frozen W, A (r, d_in), B (d_out, r).

Hu et al. 2021, arXiv:2106.09685v2, § 4.1.
s = alpha / r, or alpha / √r with `rslora` (Kalajdzievski 2023, arXiv:2312.03732, § 3). With `dora` the weight
W + s · B A only gives the direction of each output, and a magnitude that trains its length: `_magnitudes.py`.
PEFT does the work; names in the layout are those of PEFT's own checkpoint, so that what federates is what is
saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast, final

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from pydantic import BaseModel, model_validator
from torch import nn

from wardround.core.packed import Adapter, Layout, Role, TensorSpec
from wardround.core.plan import BaseModelSpec, DataContract
from wardround.training.adapters._attached import finish, put_on
from wardround.training.adapters._magnitudes import SAVED, decompose, require_readable
from wardround.training.adapters._options import FactorOptions
from wardround.training.adapters._plain_lora import changed_by_products, read_plain, save_plain
from wardround.training.adapters._rank import take_rank
from wardround.training.adapters._trained import (
    ADAPTER_NAME,
    read_parameters,
    trained_parameters,
    write_parameters,
)
from wardround.training.base_model import LoadedBase
from wardround.training.tasks.contract import Task


@final
class LoraOptions(FactorOptions):
    """Options of the plan's adapter, beside those of `FactorOptions`.

    Attributes:
        dora: Whether a layer's weight is decomposed into magnitudes, which train as well, and directions.
    """

    added: ClassVar[frozenset[str]] = FactorOptions.added | {"dora"}

    dora: bool = False

    @model_validator(mode="after")
    def _something_to_decompose(self) -> LoraOptions:
        if self.dora and self.targets == "none":
            raise ValueError(
                "dora decomposes the weights that LoRA adapts, and targets=none adapts none: name targets, "
                "or set dora to false"
            )
        return self


@final
class Lora:
    """See `AdapterMethod` for the contract."""

    name: ClassVar[str] = "lora"
    Options: ClassVar[type[BaseModel]] = LoraOptions

    def attach(
        self, base: LoadedBase, options: BaseModel, task: Task, data: DataContract, seed: int
    ) -> PeftModel:
        """Put a fresh adapter on the base: B = 0, A and lacking heads drawn from the seed on the CPU.

        Raises:
            ModelError: As `put_on` and, with `dora`, `require_readable` and `decompose`.
        """
        options = cast("LoraOptions", options)
        if options.dora:
            require_readable(base)
        model = put_on(base, options, task, seed, dora=options.dora)
        if options.dora:
            decompose(model, ADAPTER_NAME)
        finish(model, base, options, data)
        return model

    def plan_options(self, model: PeftModel) -> Mapping[str, Any]:  # noqa: ARG002 - the contract has it
        """Nothing: what is frozen is the base, which the plan names by its digest."""
        return {}

    def parameters(self, model: PeftModel) -> dict[str, nn.Parameter]:
        """Every tensor that trains, by PEFT's saved name, in the model's own order."""
        return trained_parameters(model)

    def layout(self, model: PeftModel) -> Layout:
        """Every tensor that federates, sorted by PEFT's saved name."""
        factors = {id(parameter): (role, scaling) for parameter, role, scaling in _factors(model)}
        specs = []
        for name, parameter in sorted(trained_parameters(model).items()):
            other: Role = "magnitude" if name.endswith(SAVED) else "dense"
            role, scaling = factors.get(id(parameter), (other, 1.0))
            module = name.partition(".lora_")[0] if role != "dense" else ""
            specs.append(
                TensorSpec(name=name, shape=tuple(parameter.shape), role=role, module=module, scaling=scaling)
            )
        return Layout(tensors=tuple(specs))

    def read(self, model: PeftModel, layout: Layout) -> Adapter:
        """Copy the adapter out, float32."""
        return read_parameters(trained_parameters(model), layout)

    def write(self, model: PeftModel, adapter: Adapter, rest: Adapter | None = None) -> None:
        """Copy the adapter in, and frozen directions beside it; the model's factors take the adapter's rank.

        Raises:
            PeerError: Other modules than the model's, or not float32; nothing was changed.
        """
        layout = self.layout(model)
        if take_rank(model, ADAPTER_NAME, layout, adapter.layout, rest):
            layout = self.layout(model)
        write_parameters(trained_parameters(model), layout, adapter)

    def save(self, model: PeftModel, folder: Path, base_name: str, base: BaseModelSpec | None = None) -> None:
        """Write PEFT's two files; plain `PeftModel.from_pretrained` reads them."""
        save_plain(model, folder, self.read(model, self.layout(model)).tensors(), base_name, base)

    def read_saved(self, folder: Path, model: PeftModel, base: BaseModelSpec | None = None) -> Adapter:
        """The state of a saved adapter folder.

        Raises:
            ModelError: As `read_plain`.
            ConfigError: Its factors are scaled in another way.
        """
        return read_plain(folder, model, self.layout(model), base)

    def changed_weights(self, folder: Path) -> list[str]:
        """Weights whose saved product B A is not zero; what magnitudes alone change the base has to tell.

        Raises:
            ModelError: As `saved_tensors`.
        """
        return changed_by_products(folder)


ADAPTER = Lora()


def _factors(model: nn.Module) -> Iterator[tuple[nn.Parameter, Role, float]]:
    """Every matrix of a product s · B A, with its role and s."""
    for module in model.modules():
        if not isinstance(module, LoraLayer) or ADAPTER_NAME not in module.scaling:
            continue
        scaling = float(module.scaling[ADAPTER_NAME])
        pairs: tuple[tuple[Any, Role], ...] = (
            (module.lora_A, "lora_a"),
            (module.lora_B, "lora_b"),
            (module.lora_embedding_A, "lora_a"),
            (module.lora_embedding_B, "lora_b"),
        )
        for holder, role in pairs:
            if ADAPTER_NAME in holder:
                weight = getattr(holder[ADAPTER_NAME], "weight", holder[ADAPTER_NAME])
                if weight.ndim == 2:  # noqa: PLR2004 - a convolution's factors form no matrix product
                    yield weight, role, scaling
