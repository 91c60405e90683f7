"""A trained core between frozen factors: W x + s · B R A x; only R (r, r) trains and federates.

LoRA-XS: Bałazy et al. 2024, arXiv:2405.17604, § 3. LoRA-SB: Singhal et al. 2024, arXiv:2411.19557, § 3.
Federated it is Fed-SB: Singhal et al. 2025, arXiv:2502.15436, § 4. B and A are the same at every site, so
that

    Σ w_i B R_i A = B (Σ w_i R_i) A,

and the plain mean of the R_i (strategy `fedavg`) is the exact mean of the products, at r² numbers a matrix.
Noise on R is noise on the update, without the product of two noises that LoRA's factors have under
differential privacy.

B has orthonormal columns and A orthonormal rows, so that R's gradient s Bᵀ G Aᵀ is that of the weight, seen
in the r² directions that there are: it is not zero at R = 0, where W is the base's own. They are drawn from
the seed, or are the first singular vectors of W, as in LoRA-XS (whose A is scaled by the singular values, and
whose R starts at N(0, 1e-5²)). LoRA-SB takes them from the gradient of W on the first rows, and starts R at
its singular values; a plan is made without any site's rows, so that start is not offered.

B and A stay on each machine: `_frozen_factors.py` says how all get the same, and what a plan carries so that
a site notices if not. s = alpha / r, or alpha / √r with `rslora`. Saved is a plain LoRA adapter of rank r,
with B R in place of B.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, cast, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from pydantic import BaseModel, Field, FiniteFloat, field_validator
from torch import nn
from torch.nn import functional as F

from wardround.core.errors import ConfigError, ModelError
from wardround.core.packed import Adapter, Array, Layout, TensorSpec, pack
from wardround.core.plan import BaseModelSpec, DataContract
from wardround.training.adapters._attached import finish, put_on
from wardround.training.adapters._frozen_factors import (
    PROBES,
    Factors,
    drawn_pair,
    fingerprint_of,
    leading_pair,
    recovered,
    require_fingerprint,
)
from wardround.training.adapters._options import FactorOptions
from wardround.training.adapters._plain_lora import PREFIX, changed_by_products, read_plain, save_plain
from wardround.training.adapters._trained import (
    ADAPTER_NAME,
    read_parameters,
    trained_parameters,
    write_parameters,
)
from wardround.training.base_model import LoadedBase
from wardround.training.tasks.contract import Task

_LINEAR: Final = frozenset({"Linear", "Linear8bitLt", "Linear4bit"})
"""PEFT's layers on matrices, GPT-2's Conv1D among them."""
CORE: Final = ".lora_R."
"""In a core's name in the layout."""
_HELD: Final = f".lora_B.{ADAPTER_NAME}.core."
"""In its name as PEFT sees it."""
_NEAR: Final = 1e-5
"""A saved product so near to a core's, relatively, is one: B R is rounded to float32 once."""


@final
class LoraSbOptions(FactorOptions):
    """Options of the plan's adapter, beside those of `FactorOptions`.

    Attributes:
        start: Of the frozen factors: `random`, from the plan's seed, or `svd`, the first singular vectors of
            the frozen weights.
        fingerprint: Of the factors that the plan was made with. Written into the plan; nobody sets it.
    """

    start: Literal["random", "svd"] = "svd"
    fingerprint: tuple[FiniteFloat, ...] = Field(default=())

    @field_validator("fingerprint")
    @classmethod
    def _whole(cls, numbers: tuple[float, ...]) -> tuple[float, ...]:
        if len(numbers) not in (0, PROBES):
            raise ValueError(f"a fingerprint has {PROBES} numbers; leave it out, the plan brings it")
        return numbers


@final
class Fixed(nn.Module):
    """y = W x with a W that is no parameter: nothing trains it, and nothing sets it free to be trained."""

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, d_in) → (…, d_out)."""
        return F.linear(x, self.weight)


@dataclass(frozen=True)
class _Frozen:
    """Of one model: module, as the base calls it → (B, A) and s; and the fingerprint of all."""

    factors: Mapping[str, Factors]
    scalings: Mapping[str, float]
    fingerprint: tuple[float, ...]


_FROZEN: Final[WeakKeyDictionary[PeftModel, _Frozen]] = WeakKeyDictionary()


@final
class LoraSb:
    """See `AdapterMethod` for the contract."""

    name: ClassVar[str] = "lora_sb"
    Options: ClassVar[type[BaseModel]] = LoraSbOptions

    def attach(
        self, base: LoadedBase, options: BaseModel, task: Task, data: DataContract, seed: int
    ) -> PeftModel:
        """Put fresh cores on the base: R = 0; lacking heads drawn from the seed on the CPU.

        Raises:
            ModelError: As `put_on`; a target is no linear layer, is smaller than the rank, or is quantised
                under start=svd; the frozen factors are not those of the options' fingerprint.
        """
        options = cast("LoraSbOptions", options)
        model = put_on(base, options, task, seed)
        factors: dict[str, Factors] = {}
        scalings: dict[str, float] = {}
        for name, layer in _layers(model):
            factors[name] = b, a = _outer(name, layer, options, seed)
            scalings[name] = float(layer.scaling[ADAPTER_NAME])
            _put_core(layer, b, a)
        found = fingerprint_of(factors, seed)
        if options.fingerprint:
            require_fingerprint(found, options.fingerprint)
        _FROZEN[model] = _Frozen(factors, scalings, found)
        finish(model, base, options, data)
        return model

    def plan_options(self, model: PeftModel) -> Mapping[str, Any]:
        """The fingerprint of the frozen factors."""
        return {"fingerprint": list(_FROZEN[model].fingerprint)}

    def parameters(self, model: PeftModel) -> dict[str, nn.Parameter]:
        """Every tensor that trains; a module's core is called `lora_R.weight`."""
        return {name.replace(_HELD, CORE): p for name, p in trained_parameters(model).items()}

    def layout(self, model: PeftModel) -> Layout:
        """Every tensor that federates, sorted by name. Cores are dense: a mean of them is what it says."""
        return Layout(
            tensors=tuple(
                TensorSpec(
                    name=name, shape=tuple(parameter.shape),
                    module=name.partition(CORE)[0] if CORE in name else "",
                )
                for name, parameter in sorted(self.parameters(model).items())
            )
        )  # fmt: skip

    def read(self, model: PeftModel, layout: Layout) -> Adapter:
        """Copy the adapter out, float32."""
        return read_parameters(self.parameters(model), layout)

    def write(self, model: PeftModel, adapter: Adapter, rest: Adapter | None = None) -> None:
        """Copy the adapter in.

        Raises:
            PeerError: Another layout than the model's, or not float32; nothing was changed.
            ConfigError: Directions beside it: a core has one rank.
        """
        if rest is not None:
            raise ConfigError(
                "a core between frozen factors has one rank", remedy="leave the sites' ranks out"
            )
        write_parameters(self.parameters(model), self.layout(model), adapter)

    def save(self, model: PeftModel, folder: Path, base_name: str, base: BaseModelSpec | None = None) -> None:
        """Write a plain LoRA adapter, A and B R; plain `PeftModel.from_pretrained` reads it."""
        tensors = self.read(model, self.layout(model)).tensors()
        plain = {name: tensor for name, tensor in tensors.items() if CORE not in name}
        for module, (b, a) in _FROZEN[model].factors.items():
            core = tensors[f"{PREFIX}{module}{CORE}weight"].astype(np.float64)
            first, second = _saved_names(module)
            plain |= {first: a, second: (b.astype(np.float64) @ core).astype(np.float32)}
        save_plain(model, folder, plain, base_name, base)

    def read_saved(self, folder: Path, model: PeftModel, base: BaseModelSpec | None = None) -> Adapter:
        """The cores of a saved plain LoRA adapter whose products lie between this model's frozen factors.

        Raises:
            ModelError: As `read_plain`, or a product does not lie there.
            ConfigError: Its factors are scaled in another way.
        """
        layout, frozen = self.layout(model), _FROZEN[model]
        saved = read_plain(folder, model, _plain_layout(layout, frozen), base).tensors()
        tensors: dict[str, Array] = {name: saved[name] for name in layout.offsets if CORE not in name}
        for module, (b, a) in frozen.factors.items():
            first, second = _saved_names(module)
            core, apart = recovered(b, a, saved[second], saved[first])
            if not apart <= _NEAR:
                raise ModelError(
                    f"the adapter in {folder} is none of this method with these frozen factors",
                    found=f"{module}: {apart:.2g} of its product lies outside of B R A",
                    expected=f"at most {_NEAR:g}",
                    remedy="start from an adapter that lora_sb saved, of the same base, rank and "
                    "adapter.options.start (with start=random of the same seed as well), or from none",
                )  # fmt: skip
            tensors[f"{PREFIX}{module}{CORE}weight"] = core
        return pack(layout, tensors, np.float32)

    def changed_weights(self, folder: Path) -> list[str]:
        """Weights whose saved product B R A is not zero.

        Raises:
            ModelError: As `saved_tensors`.
        """
        return changed_by_products(folder)


ADAPTER = LoraSb()


def _layers(model: PeftModel) -> list[tuple[str, Any]]:
    """PEFT's layers on linear ones, by the base's name of the module.

    Raises:
        ModelError: There is one on something else.
    """
    found = [
        (name.removeprefix(PREFIX), layer)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and ADAPTER_NAME in layer.scaling
    ]
    other = [name for name, layer in found if type(layer).__name__ not in _LINEAR]
    if other:
        raise ModelError(
            "lora_sb has no core for this kind of layer", found=", ".join(other[:3]),
            expected="linear layers", remedy="leave it out of adapter.options.targets, or set adapter=lora",
        )  # fmt: skip
    return found


def _outer(name: str, layer: Any, options: LoraSbOptions, seed: int) -> Factors:
    """B and A of one layer.

    Raises:
        ModelError: The rank is larger than the layer, or its weights cannot be read as they are.
    """
    d_out, d_in, r = int(layer.out_features), int(layer.in_features), options.r
    if r > min(d_out, d_in):
        raise ModelError(
            "the rank is larger than a layer", found=f"{r} at {name} ({d_out}, {d_in})",
            expected=f"at most {min(d_out, d_in)}", remedy="lower adapter.options.r, or leave the layer out",
        )  # fmt: skip
    if options.start == "random":
        return drawn_pair(d_out, d_in, r, seed, name)
    weight = layer.get_base_layer().weight
    if not weight.is_floating_point() or tuple(weight.shape) not in ((d_out, d_in), (d_in, d_out)):
        raise ModelError(
            "start=svd reads weights as they are, and those of a quantised base are codes", found=name,
            expected="model.quantisation=none", remedy="set adapter.options.start=random",
        )  # fmt: skip
    matrix = weight.detach().cpu().to(torch.float64).numpy()
    return leading_pair(matrix.T if layer.fan_in_fan_out else matrix, r, name)


def _put_core(layer: Any, b: Array, a: Array) -> None:
    """A and B become constants, with R = 0 between them."""
    device, r = layer.lora_A[ADAPTER_NAME].weight.device, len(a)
    core = nn.Linear(r, r, bias=False, device="meta")  # draws nothing
    core.weight = nn.Parameter(torch.zeros(r, r, device=device))
    outer, inner = (Fixed(torch.from_numpy(np.ascontiguousarray(x)).to(device)) for x in (b, a))
    layer.lora_A[ADAPTER_NAME] = inner
    layer.lora_B[ADAPTER_NAME] = nn.Sequential(OrderedDict(core=core, outer=outer))


def _saved_names(module: str) -> tuple[str, str]:
    """PEFT's names of a module's A and B."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _plain_layout(layout: Layout, frozen: _Frozen) -> Layout:
    """Of what is saved: A and B in place of R."""
    specs = [spec for spec in layout.tensors if CORE not in spec.name]
    for module, (b, a) in frozen.factors.items():
        first, second = _saved_names(module)
        place: dict[str, Any] = {"module": f"{PREFIX}{module}", "scaling": frozen.scalings[module]}
        specs += [
            TensorSpec(name=first, shape=a.shape, role="lora_a", **place),
            TensorSpec(name=second, shape=b.shape, role="lora_b", **place),
        ]
    return Layout(tensors=tuple(sorted(specs, key=lambda spec: spec.name)))
