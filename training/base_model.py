"""The frozen base model: how it is loaded, and the digests by which sites agree on it.

Nothing of a model's own code is ever run (`trust_remote_code=False`) and weights are read from
safetensors only: no pickle.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from wardround.core.errors import ModelError
from wardround.core.plan import DataContract
from wardround.training.digests import chat_template_digest, files_digest, tokenizer_digest, weights_digest
from wardround.training.processors import end_tokens
from wardround.training.quantised_base import keep_weights_as_loaded, quantised_keywords
from wardround.training.settings import BaseModelConfig, resolve
from wardround.training.tasks.contract import Task

__all__ = [
    "BaseModelConfig",
    "LoadedBase",
    "chat_template_digest",
    "end_tokens",
    "load_base",
    "quiet",
    "require_digest",
    "tokenizer_digest",
    "without_peft_noise",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_LOAD_FAILURES = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError)


@dataclass(frozen=True)
class LoadedBase:
    """A base model before any adapter is on it.

    Attributes:
        config: What was asked for.
        model: In evaluation mode, every parameter frozen, on its device.
        tokenizer: What the task's processor loaded. A tokenizer as a rule, with a pad token (the end token
            where the model has none of its own); None or something else where the task reads no texts.
        digest: See `weights_digest` and, for a quantised base, `files_digest`.
        missing_heads: Modules that the checkpoint lacks entirely and that therefore federate.
        name: Folder or hub name, for people.
    """

    config: BaseModelConfig
    model: PreTrainedModel
    tokenizer: Any
    digest: str
    missing_heads: tuple[str, ...]
    name: str


def load_base(config: BaseModelConfig, task: Task, data: DataContract, *, device: torch.device) -> LoadedBase:
    """Load model and processor, digest what was loaded, find the heads that the checkpoint lacks.

    The process's random state is left as it was; heads are initialised by the adapter method.

    Raises:
        ModelError: Nothing there, not a model of this task, no safetensors, no tokenizer (or what else
            the task reads rows through), a checkpoint that holds only part of a module, or no bitsandbytes
            for a quantised base.
    """
    path, name = resolve(config)
    keywords: dict[str, Any] = {
        "dtype": DTYPES[config.dtype],
        "attn_implementation": config.attention,
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    revision = {} if config.revision is None else {"revision": config.revision}
    if config.quantisation != "none":
        keywords |= quantised_keywords(config.quantisation, DTYPES[config.dtype], device)
    with _loading(config), quiet(), torch.random.fork_rng(devices=[]):
        model, info = task.load_model(path, data, **keywords, **revision)
        processor = task.processor.load(path, **revision)
    # A task may let a head of another size be replaced; it is as fresh as one that is missing.
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info.get("mismatched_keys", ()))})
    heads = missing_modules(model, missing)
    task.processor.settle(processor, model, name)
    if config.dropout == "off":
        switch_dropout_off(model)
    model.requires_grad_(False)
    model.train(False)
    if config.quantisation == "none":
        digest = weights_digest(model, missing)
        cast("torch.nn.Module", model).to(device)
    else:
        keep_weights_as_loaded(model)
        digest = files_digest(path, config.revision)
    loaded = LoadedBase(config, model, processor, digest, heads, name)
    if config.digest is not None:
        require_digest(loaded, config.digest)
    return loaded


def switch_dropout_off(model: torch.nn.Module) -> None:
    """Set every dropout probability in the model to 0, in place; an adapter put on later keeps its own.

    Layers such as `torch.nn.Dropout` hold it as `p`; modules that drop by a function hold a float that says
    so in its name (`attention_dropout`, `layerdrop`, `drop_prob`).
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):  # noqa: SLF001 - torch names no public base
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and "drop" in name.lower():
                setattr(module, name, 0.0)


@contextlib.contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """No dropout, the adapter's neither; probabilities and modes are put back afterwards."""
    before = {
        module: {name: value for name, value in vars(module).items() if isinstance(value, float)}
        for module in model.modules()
    }
    modes = {module: module.training for module in model.modules()}
    try:
        switch_dropout_off(model)
        yield
    finally:
        for module, values in before.items():
            for name, value in values.items():
                if vars(module).get(name) != value:
                    setattr(module, name, value)
        for module, mode in modes.items():
            module.training = mode


def drops_out(model: torch.nn.Module) -> bool:
    """Whether anything in the model drops out while it trains, an adapter's layers included."""
    return any(
        (isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0)  # noqa: SLF001 - torch names no public base
        or any(
            isinstance(value, float) and "drop" in name.lower() and value > 0
            for name, value in vars(module).items()
        )
        for module in model.modules()
    )


@contextlib.contextmanager
def _loading(config: BaseModelConfig) -> Iterator[None]:
    try:
        yield
    except _LOAD_FAILURES as error:
        if "scaled_dot_product_attention" in str(error):
            raise ModelError(
                f"the base model {config.path!r} has no attention of the kind {config.attention!r}",
                remedy="set model.attention=eager",
            ) from error
        reason = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"the base model {config.path!r} cannot be loaded",
            found=f"{type(error).__name__}: {reason[0][:300]}",
            expected="a model of this task with safetensors weights, a tokenizer and no code of its own",
            remedy="give a folder that from_pretrained can load; a hub name needs the network "
            "(HF_HUB_OFFLINE unset) or a filled cache, and access where the model is gated",
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no load report of transformers: what matters in them becomes an error."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated


@contextlib.contextmanager
def without_peft_noise() -> Iterator[None]:
    """PEFT's own warnings that nobody can act on; every other one passes."""
    with warnings.catch_warnings():
        # It finds out by itself that Conv1D (GPT-2) stores its weight transposed, and says so.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # peft 0.21.2 reads an alias that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield


def missing_modules(model: PreTrainedModel, missing_keys: list[str]) -> tuple[str, ...]:
    """The largest modules all of whose weights the checkpoint lacks, sorted.

    Raises:
        ModelError: The checkpoint lacks the model's body, or only part of a module's weights.
    """
    missing, heads = set(missing_keys), set()
    for key in sorted(missing):
        parts = key.split(".")[:-1]
        above = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        whole = [name for name in above if _weights_of(model, name) <= missing]
        if not whole or _is_body(model, whole[0]):
            raise ModelError(
                "the checkpoint does not hold this model",
                found=f"{len(missing)} weights are missing, {key!r} among them",
                expected="every weight of the body; only whole heads (and poolers) may be missing",
                remedy="give the folder of a checkpoint of this architecture",
            )
        heads.add(whole[0])
    return tuple(sorted(heads))


def _weights_of(model: torch.nn.Module, module: str) -> set[str]:
    return {f"{module}.{name}" for name in model.get_submodule(module).state_dict()}


def _is_body(model: PreTrainedModel, module: str) -> bool:
    """Whether it lies in the body (a pooler aside), or holds the embeddings in or out."""
    embeddings = set(map(id, _embeddings(model)))
    inside = {id(part) for part in model.get_submodule(module).modules()}
    in_body = f"{module}.".startswith(f"{model.base_model_prefix}.") and not module.endswith(".pooler")
    return in_body or bool(embeddings & inside)


def _embeddings(model: PreTrainedModel) -> tuple[object, ...]:
    """Modules that turn ids into vectors and back, or what stands for them; a model on sound has none."""
    try:
        return model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]  # left unannotated there
    except NotImplementedError:
        return ()


def require_digest(loaded: LoadedBase, expected: str) -> None:
    """Refuse a base model that is not the plan's.

    Raises:
        ModelError: Names both digests.
    """
    if loaded.digest != expected:
        raise ModelError(
            f"the weights of {loaded.name!r} are not the expected ones",
            found=loaded.digest,
            expected=expected,
            remedy="get the base that the plan or model.digest names: revision, dtype, quantisation",
            code="model_differs",
        )
