"""LoRA: W x + s · B A x with a frozen W, A (r, d_in), B (d_out, r).

Hu et al. 2021, arXiv:2106.09685v2, § 4.1.
s = alpha / r, or alpha / √r with `rslora` (Kalajdzievski 2023, arXiv:2312.03732, § 3). PEFT does the work;
names in the layout are those of PEFT's own checkpoint, so that what federates is what is saved.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, cast, final
from weakref import WeakKeyDictionary

import numpy as np
import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer
from safetensors.numpy import save_file
from torch import nn

from wardround.core.errors import ConfigError, InternalError, ModelError, PeerError
from wardround.core.packed import Adapter, Layout, Role, TensorSpec, pack
from wardround.core.plan import BaseModelSpec, DataContract
from wardround.runtime.files import atomic_folder
from wardround.training.adapters._normalised_head import (
    LEAST_TEXTS,
    MOST_TEXTS,
    head_input,
    normalise_head,
)
from wardround.training.adapters._rank import is_rest, take_rank
from wardround.training.adapters._remembered_features import remember_features
from wardround.training.adapters._saved import base_note, require_base, saved_config, saved_tensors
from wardround.training.adapters._targets import candidates, check_targets
from wardround.training.adapters.contract import CONFIG_FILE, WEIGHTS_FILE
from wardround.training.base_model import LoadedBase, without_peft_noise
from wardround.training.tasks.contract import Task

ADAPTER_NAME: Final = "default"

_SEEN: WeakKeyDictionary[PeftModel, tuple[list[tuple[int, bool]], dict[str, nn.Parameter]]] = (
    WeakKeyDictionary()
)
"""Model → its parameters as they were when their names were last looked up, and those names."""

_HEAD_STD: Final = 0.02


class LoraOptions(BaseModel):
    """Options of the plan's adapter.

    Attributes:
        r: Rank, at least 1.
        alpha: Numerator of the scaling.
        targets: Module names (or name endings), `all-linear` for every linear layer but the head, or `none`
            for the head alone (and `modules_to_save`).
        rslora: Scale by alpha / √r.
        dropout: On the adapter's input, while training.
        bias: Which biases of the base train as well; they federate.
        modules_to_save: Further modules that train in full and federate. Heads that the checkpoint
            lacks are always among them.
        public_texts: What the head reads is normalised by constants of these texts, which everybody may
            know; see `_normalised_head.py`. None leaves it as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = 8
    alpha: float = Field(default=16.0, gt=0)
    targets: tuple[str, ...] | Literal["all-linear", "none"] = "all-linear"
    rslora: bool = False
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: tuple[str, ...] = ()
    public_texts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), max_length=MOST_TEXTS)

    @field_validator("r")
    @classmethod
    def _positive(cls, rank: int) -> int:
        if rank < 1:
            raise ValueError("the rank has to be at least 1: with rank 0 nothing would train")
        return rank

    @field_validator("targets")
    @classmethod
    def _some(cls, targets: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not targets:
            raise ValueError("name at least one module, or all-linear")
        return targets

    @field_validator("public_texts")
    @classmethod
    def _enough(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if 0 < len(texts) < LEAST_TEXTS:
            raise ValueError(
                f"a mean of {len(texts)} texts says little: give at least {LEAST_TEXTS}, or none"
            )
        return texts

    @model_serializer(mode="wrap")
    def _as_before(self, write: Callable[[BaseModel], dict[str, Any]]) -> dict[str, Any]:
        """Without public texts as before there were any: a plan that has none keeps its digest."""
        return {name: value for name, value in write(self).items() if name != "public_texts" or value}


@final
class Lora:
    """See `AdapterMethod` for the contract."""

    name: ClassVar[str] = "lora"
    Options: ClassVar[type[BaseModel]] = LoraOptions

    def attach(
        self, base: LoadedBase, options: BaseModel, task: Task, data: DataContract, seed: int
    ) -> PeftModel:
        """Put a fresh adapter on the base: B = 0, A and lacking heads drawn from the seed on the CPU."""
        options = cast("LoraOptions", options)
        bare, heads = base.model, base.missing_heads
        check_targets(bare, options.targets, options.modules_to_save)
        if options.targets == "none" and not (heads or options.modules_to_save):
            raise ModelError(
                "nothing would train: no targets, and the checkpoint brings its head with it",
                remedy="name the head in adapter.options.modules_to_save",
            )
        if getattr(bare, "is_quantized", False):
            bare = peft.prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]  # PEFT leaves it unannotated
                bare, use_gradient_checkpointing=False
            )
        targets = DUMMY_TARGET_MODULES if options.targets == "none" else options.targets
        config = LoraConfig(
            task_type=task.peft_task_type, r=options.r,
            lora_alpha=cast("int", options.alpha),  # PEFT only divides it: its annotation is too narrow
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=options.rslora, lora_dropout=options.dropout, bias=options.bias,
            modules_to_save=sorted({*options.modules_to_save, *heads}) or None,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]), without_peft_noise():
            torch.default_generator.manual_seed(seed)
            for head in heads:
                _initialise_head(bare.get_submodule(head))
            try:
                model = get_peft_model(bare, config, adapter_name=ADAPTER_NAME)
            except ValueError as error:
                raise ModelError(
                    "LoRA cannot be put on this model", found=error,
                    expected="targets among " + ", ".join(candidates(bare)),
                    remedy="correct adapter.options.targets",
                ) from error  # fmt: skip
        config.modules_to_save = sorted(set(config.modules_to_save or ())) or None
        attached = cast("PeftModel", model)
        _train_in_float32(attached, keep_output=frozenset(heads))
        trained = self.parameters(attached)
        _require_float32(trained)
        if options.public_texts:
            normalise_head(
                attached, trained, base.tokenizer, options.public_texts, data.max_length, drawn=bool(heads)
            )
        full = [m for m in bare.modules() if isinstance(m, peft.utils.ModulesToSaveWrapper)]
        still = options.targets == options.bias == "none" and base.config.dropout == "off"
        if still and len(full) == 1:
            remember_features(bare, full[0], base.tokenizer)
        return attached

    def parameters(self, model: PeftModel) -> dict[str, nn.Parameter]:
        """Every tensor that trains, by PEFT's saved name, in the model's own order."""
        # Asked for several times a site and round; PEFT walks the model many times to say it.
        present = [(id(parameter), parameter.requires_grad) for parameter in model.parameters()]
        seen = _SEEN.get(model)
        if seen is None or seen[0] != present:
            seen = _SEEN[model] = (present, self._parameters(model))
        return dict(seen[1])

    def _parameters(self, model: PeftModel) -> dict[str, nn.Parameter]:
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

    def layout(self, model: PeftModel) -> Layout:
        """Every tensor that federates, sorted by PEFT's saved name."""
        return self._layout(model, self.parameters(model))

    def _layout(self, model: PeftModel, parameters: dict[str, nn.Parameter]) -> Layout:
        factors = {id(parameter): (role, scaling) for parameter, role, scaling in _factors(model)}
        specs = []
        for name, parameter in sorted(parameters.items()):
            role, scaling = factors.get(id(parameter), ("dense", 1.0))
            module = name.partition(".lora_")[0] if role != "dense" else ""
            specs.append(
                TensorSpec(name=name, shape=tuple(parameter.shape), role=role, module=module, scaling=scaling)
            )
        return Layout(tensors=tuple(specs))

    def read(self, model: PeftModel, layout: Layout) -> Adapter:
        """Copy the adapter out, float32."""
        tensors = {name: p.detach().cpu().numpy() for name, p in self.parameters(model).items()}
        return pack(layout, tensors, np.float32)

    def write(self, model: PeftModel, adapter: Adapter, rest: Adapter | None = None) -> None:
        """Copy the adapter in, and frozen directions beside it; the model's factors take the adapter's rank.

        Raises:
            PeerError: Other modules than the model's, or not float32; nothing was changed.
        """
        parameters = self.parameters(model)
        layout = self._layout(model, parameters)
        if take_rank(model, ADAPTER_NAME, layout, adapter.layout, rest):
            parameters, layout = self.parameters(model), self.layout(model)
        if adapter.layout.digest != layout.digest or adapter.vector.dtype != np.float32:
            raise PeerError(
                "the adapter does not fit the model that it is loaded into",
                found=f"layout {adapter.layout.digest[:12]}, {adapter.vector.dtype}",
                expected=f"layout {layout.digest[:12]}, float32",
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(np.array(adapter[name], dtype=np.float32)))

    def save(self, model: PeftModel, folder: Path, base_name: str, base: BaseModelSpec | None = None) -> None:
        """Write PEFT's two files; plain `PeftModel.from_pretrained` reads them."""
        config = copy.copy(model.peft_config[ADAPTER_NAME])
        config.base_model_name_or_path = base_name
        config.inference_mode = True
        tensors = self.read(model, self.layout(model)).tensors()
        normalised = head_input(model)
        if normalised is not None:
            tensors = normalised.plain(tensors)
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        # What holds more than an adapter is not ours to replace.
        with atomic_folder(folder, replace=there <= {CONFIG_FILE, WEIGHTS_FILE}) as staged:
            # As PeftModel.save_pretrained does, but exactly the layout's tensors and no model card.
            save_file(tensors, staged / WEIGHTS_FILE, metadata={"format": "pt", **base_note(base)})
            config.save_pretrained(str(staged))

    def read_saved(self, folder: Path, model: PeftModel, base: BaseModelSpec | None = None) -> Adapter:
        """The state of a saved adapter folder.

        Raises:
            ModelError: As `saved_tensors`, its tensors are not those of the layout, or they were trained on
                another base.
            ConfigError: Its factors are scaled in another way.
        """
        tensors, layout = saved_tensors(folder), self.layout(model)
        normalised = head_input(model)
        try:
            adapter = pack(layout, tensors, np.float32)
            if normalised is not None:
                adapter = pack(layout, normalised.normalised(adapter.tensors()), np.float32)
        except PeerError as error:
            raise ModelError(
                f"the adapter in {folder} does not fit this one: {error.what}",
                found=error.found, expected=error.expected,
                remedy="train with the rank, targets and heads of the saved adapter, or start from none",
            ) from error  # fmt: skip
        _require_scaling(folder, layout)
        if base is not None:
            require_base(folder, base)
        return adapter

    def changed_weights(self, folder: Path) -> list[str]:
        """Weights whose saved product B A is not zero.

        Raises:
            ModelError: As `saved_tensors`.
        """
        factors: dict[str, list[bool]] = {}
        for name, tensor in saved_tensors(folder).items():
            module, separator, _ = name.partition(".lora_")
            if separator:
                factors.setdefault(module, []).append(bool(np.any(tensor)))
        nonzero = [module.removeprefix("base_model.model.") for module, both in factors.items() if all(both)]
        return sorted(f"{module}.weight" for module in nonzero)


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


def _require_scaling(folder: Path, layout: Layout) -> None:
    """Refuse a saved adapter whose product the configured options would scale in another way.

    Raises:
        ModelError: Its configuration cannot be read.
        ConfigError: Names both scalings of the first module that differs, and what they are made of.
    """
    config = saved_config(folder)
    try:
        for spec in layout.tensors:
            if spec.role != "lora_a":
                continue
            module = spec.module.removeprefix("base_model.model.")
            patterns: dict[str, float] = config.get("alpha_pattern") or {}
            own = patterns.get(get_pattern_key(list(patterns), module))
            alpha = float(config["lora_alpha"] if own is None else own)
            rank, root = spec.shape[0], bool(config.get("use_rslora"))
            scaling = alpha / (math.sqrt(rank) if root else rank)
            if not math.isclose(scaling, spec.scaling, rel_tol=1e-6):
                raise ConfigError(
                    f"the adapter in {folder} is scaled in another way than the configured one",
                    found=f"{scaling:g} at {module} (r={rank}, alpha={alpha:g}, rslora={str(root).lower()})",
                    expected=f"{spec.scaling:g}, by adapter.options",
                    remedy=f"set adapter.options.alpha={alpha:g}, adapter.options.rslora={str(root).lower()}"
                    if not patterns
                    else "start from an adapter with one alpha for all modules",
                )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the configuration of the adapter in {folder} cannot be read",
            found=f"{type(error).__name__} in {CONFIG_FILE}",
            expected="lora_alpha, and use_rslora and alpha_pattern where they are used, as PEFT writes them",
            remedy="copy the adapter's folder again, or take another run's",
        ) from error


def _require_float32(parameters: dict[str, nn.Parameter]) -> None:
    other = sorted(name for name, parameter in parameters.items() if parameter.dtype != torch.float32)
    if other:
        raise ModelError(
            "adapter tensors are float32, and this base would train tensors of its own in half precision",
            found=", ".join(other[:3]),
            expected="no bias of the base among the trained tensors",
            remedy="set adapter.options.bias=none, or model.dtype=float32",
        )


def _initialise_head(head: nn.Module) -> None:
    """Normal(0, 0.02) for matrices, ones for the scales of a norm, zeros for biases; drawn on the CPU."""
    with torch.no_grad():
        for name, parameter in sorted(head.named_parameters()):
            if parameter.ndim > 1:
                fresh = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, _HEAD_STD)
            else:
                fresh = torch.full(parameter.shape, 1.0 if name.endswith("weight") else 0.0)
            parameter.copy_(fresh)


def _train_in_float32(model: PeftModel, keep_output: frozenset[str]) -> None:
    """Freeze the originals, and let modules that train in full work in float32 on a half-precision base.

    Their input is cast on the way in and, unless they are heads whose output is the model's, their
    output on the way out.
    """
    for name, wrapper in model.named_modules():
        if not isinstance(wrapper, peft.utils.ModulesToSaveWrapper):
            continue
        wrapper.original_module.requires_grad_(False)
        module = wrapper.modules_to_save[ADAPTER_NAME]
        halves = {p.dtype for p in module.parameters()} - {torch.float32}
        if halves:
            module.to(torch.float32)
            is_head = any(name == head or name.endswith(f".{head}") for head in keep_output)
            _cast_around(module, back=None if is_head else halves.pop())


def _cast_around(module: nn.Module, *, back: torch.dtype | None) -> None:
    def cast_in(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in args)

    def cast_out(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return output.to(back) if torch.is_tensor(output) else output

    module.register_forward_pre_hook(cast_in)
    if back is not None:
        module.register_forward_hook(cast_out)
