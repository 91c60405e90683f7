"""What of a model trains, by PEFT's saved names, and how it is copied out and in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from wardround.core.errors import InternalError, PeerError
from wardround.core.packed import Adapter, Layout, pack
from wardround.training.adapters._rank import is_rest

ADAPTER_NAME: Final = "default"

_SEEN: WeakKeyDictionary[PeftModel, tuple[list[tuple[int, bool]], dict[str, nn.Parameter]]] = (
    WeakKeyDictionary()
)
"""Model → its parameters as they were when their names were last looked up, and those names."""


def trained_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """Every tensor that trains, by PEFT's saved name, in the model's own order.

    Raises:
        InternalError: A parameter trains that is not the adapter's.
    """
    # Asked for several times a site and round; PEFT walks the model many times to say it.
    present = [(id(parameter), parameter.requires_grad) for parameter in model.parameters()]
    seen = _SEEN.get(model)
    if seen is None or seen[0] != present:
        seen = _SEEN[model] = (present, _named(model))
    return dict(seen[1])


def _named(model: PeftModel) -> dict[str, nn.Parameter]:
    saved = get_peft_model_state_dict(
        model, model.state_dict(keep_vars=True), ADAPTER_NAME, save_embedding_layers=False
    )
    # bias="all" lists a saved module's bias under its inner name as well (the plain one, which is the
    # shorter, is loadable), and the bias of the original that the saved one replaces.
    names = {
        id(tensor): name
        for name, tensor in sorted(saved.items(), key=lambda item: -len(item[0]))
        if isinstance(tensor, nn.Parameter) and not (".original_module." in name or is_rest(name))
    }
    trainable = [parameter for parameter in model.parameters() if id(parameter) in names]
    stray = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in names]
    if stray or not trainable:
        raise InternalError("a parameter trains that the adapter does not hold", found=stray[:3])
    return {names[id(parameter)]: parameter for parameter in trainable}


def read_parameters(parameters: Mapping[str, nn.Parameter], layout: Layout) -> Adapter:
    """Copies, float32."""
    return pack(layout, {name: p.detach().cpu().numpy() for name, p in parameters.items()}, np.float32)


def write_parameters(parameters: Mapping[str, nn.Parameter], layout: Layout, adapter: Adapter) -> None:
    """Copy an adapter in.

    Args:
        parameters: By their names in the layout.
        layout: The model's.
        adapter: float32.

    Raises:
        PeerError: Another layout than the model's, or not float32; nothing was changed.
    """
    if adapter.layout.digest != layout.digest or adapter.vector.dtype != np.float32:
        raise PeerError(
            "the adapter does not fit the model that it is loaded into",
            found=f"layout {adapter.layout.digest[:12]}, {adapter.vector.dtype}",
            expected=f"layout {layout.digest[:12]}, float32",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.array(adapter[name], dtype=np.float32)))
