"""Whether the modules that a configuration names exist in the model."""

from __future__ import annotations

from typing import Final

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from wardround.core.errors import ModelError, nearest

_TARGET_TYPES: Final = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, Conv1D)


def check_targets(
    base: PreTrainedModel, targets: tuple[str, ...] | str, modules_to_save: tuple[str, ...]
) -> None:
    """Every target and every module to save has to exist, and none may be a tied embedding.

    PEFT alone would pass over a name that matches nothing, as long as another one matches.

    Args:
        base: Model without an adapter.
        targets: Module names or name endings, or the word `all-linear`.
        modules_to_save: Likewise, of modules that train in full.

    Raises:
        ModelError: Lists the names that there are and proposes the nearest.
    """
    names = [name for name, _ in base.named_modules() if name]
    layers = _layers(base)
    named = () if isinstance(targets, str) else targets
    for what, wanted, known in (("targets", named, layers), ("modules_to_save", modules_to_save, names)):
        for name in wanted:
            if not _matching(name, known):
                guess = nearest(name, _suffixes(known))
                raise ModelError(
                    f"adapter.options.{what}: {name!r} matches no module of this model",
                    expected=f"one of {', '.join(_suffixes(layers))}",
                    remedy=f"did you mean {guess!r}?"
                    if guess
                    else "name a module of the model, or all-linear",
                )
    tied = set(_tied_modules(base))
    hit = sorted(tied.intersection(m for name in (*named, *modules_to_save) for m in _matching(name, names)))
    if hit:
        raise ModelError(
            "a tied embedding cannot be adapted: merging would change the other end with it",
            found=", ".join(hit), expected="modules whose weights nothing else shares",
            remedy="leave the input and output embeddings out of targets and modules_to_save",
        )  # fmt: skip


def _tied_modules(base: PreTrainedModel) -> list[str]:
    """Names of modules that share their weight tensor with another one."""
    owners: dict[int, list[str]] = {}
    for name, module in base.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            owners.setdefault(id(weight), []).append(name)
    return [name for shared in owners.values() if len(shared) > 1 for name in shared]


def _matching(name: str, known: list[str]) -> list[str]:
    return [candidate for candidate in known if candidate == name or candidate.endswith(f".{name}")]


def _suffixes(names: list[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})


def _layers(base: PreTrainedModel) -> list[str]:
    return [name for name, module in base.named_modules() if isinstance(module, _TARGET_TYPES)]


def candidates(base: PreTrainedModel) -> list[str]:
    """Name endings of the layers that an adapter can sit on."""
    return _suffixes(_layers(base))
