"""What an adapter method is: how it attaches to a base model, and how its state is read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from pydantic import BaseModel

from wardround.core.packed import Adapter, Layout
from wardround.core.plan import BaseModelSpec, DataContract
from wardround.training.tasks.contract import Task

if TYPE_CHECKING:  # so that the names of the methods are known without torch
    import torch
    from peft import PeftModel

    from wardround.training.base_model import LoadedBase

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
"""PEFT's two files of a saved adapter, whatever the method."""


class AdapterMethod(Protocol):
    """One parameter-efficient method. Stateless."""

    name: ClassVar[str]
    Options: ClassVar[type[BaseModel]]

    def attach(
        self, base: LoadedBase, options: BaseModel, task: Task, data: DataContract, seed: int
    ) -> PeftModel:
        """Put a fresh adapter on the base, whose lacking heads federate as well.

        Raises:
            ModelError: Targets match nothing, the rank is not positive, or what the method freezes on this
                machine is not what the options say of it.
        """

    def plan_options(self, model: PeftModel) -> Mapping[str, Any]:
        """Options that a plan has to say of the adapter as it was attached, beside those that were chosen.

        What a method freezes without federating it has to be the same at every site: its fingerprint stands
        here, and `attach` holds the site's own against it. Empty for a method that freezes nothing.
        """

    def layout(self, model: PeftModel) -> Layout:
        """Every tensor that federates, by PEFT's own names, in a fixed order."""

    def parameters(self, model: PeftModel) -> dict[str, torch.nn.Parameter]:
        """Every tensor that trains, by its name in the layout, in the model's own order."""

    def read(self, model: PeftModel, layout: Layout) -> Adapter:
        """Copy the adapter out, float32."""

    def write(self, model: PeftModel, adapter: Adapter, rest: Adapter | None = None) -> None:
        """Copy the adapter in.

        Args:
            model: Takes the adapter's rank, where the method has ranks.
            adapter: Of the model's modules.
            rest: Directions of the same modules that stand frozen beside it; None: none do.

        Raises:
            PeerError: It does not fit the model.
            ConfigError: The method has one rank, and another was asked for.
        """

    def save(self, model: PeftModel, folder: Path, base_name: str, base: BaseModelSpec | None = None) -> None:
        """PEFT's own format: `adapter_model.safetensors` and `adapter_config.json`.

        Args:
            base: The base model that it was trained on, to be noted beside the weights, or None.

        Raises:
            StorageError: Could not be written; nothing is left half-written.
        """

    def read_saved(self, folder: Path, model: PeftModel, base: BaseModelSpec | None = None) -> Adapter:
        """The state of a saved adapter folder, to start from.

        Args:
            model: With the configured adapter on it; it is not changed.
            base: The base model that it is to go on from, or None to let any pass.

        Raises:
            ModelError: No adapter is there, it does not fit the layout, or it was trained on another base.
            ConfigError: Its numbers mean another product under the configured options: another scaling.
        """

    def changed_weights(self, folder: Path) -> list[str]:
        """Names, in the base model, of the weights that merging the saved adapter has to change.

        Raises:
            ModelError: No whole adapter is there, or it holds NaN or infinity.
        """
