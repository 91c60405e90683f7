"""What a head reads, shifted and scaled by constants of public texts: z = (x − μ) / s.

μ is the mean of the texts' features, s their mean distance from it. Features of a pretrained encoder share a
large mean. It would use up the clip norm of a private gradient on what tells no row from another, and noise
along it would move the scores of all rows at once (Sun, Suresh and Menon 2024, arXiv:2307.11106, who take the
constants from private rows and pay for them).

What federates is the head over z, W (classes, features) and b (classes,). What is saved is the same function
of x, W / s and b − W μ / s: whoever uses the adapter needs no constants. W x and W μ nearly cancel there
where |μ| is far above s: use it in float32, half precision loses |μ| / s times what it always loses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from wardround.core.errors import ConfigError
from wardround.core.packed import Array

LEAST_TEXTS: Final = 8
MOST_TEXTS: Final = 1024


@dataclass(frozen=True)
class HeadInput:
    """The constants of one head.

    Attributes:
        weight: Name in the layout of the head's matrix (classes, features).
        bias: Of its bias (classes,).
        mean: μ (features,), float64.
        distance: s, above 0.
    """

    weight: str
    bias: str
    mean: Array
    distance: float

    def plain(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The same function of x: W / s and b − W μ / s, float32; other tensors as they are."""
        weight = tensors[self.weight].astype(np.float64) / self.distance
        bias = tensors[self.bias].astype(np.float64) - weight @ self.mean
        return self._with(tensors, weight, bias)

    def normalised(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Back again, but for what float32 rounds off."""
        plain = tensors[self.weight].astype(np.float64)
        bias = tensors[self.bias].astype(np.float64) + plain @ self.mean
        return self._with(tensors, plain * self.distance, bias)

    def _with(self, tensors: Mapping[str, Array], weight: Array, bias: Array) -> dict[str, Array]:
        changed = {self.weight: weight.astype(np.float32), self.bias: bias.astype(np.float32)}
        return {**tensors, **changed}


_INPUTS: Final[WeakKeyDictionary[nn.Module, HeadInput]] = WeakKeyDictionary()


def head_input(model: nn.Module) -> HeadInput | None:
    """The constants of a model whose head was normalised; None where none was."""
    return _INPUTS.get(model)


def normalise_head(
    model: PeftModel,
    parameters: Mapping[str, nn.Parameter],
    tokenizer: Any,
    texts: Sequence[str],
    tokens: int,
    *,
    drawn: bool,
) -> None:
    """Let the model's one linear head read normalised features from now on.

    A head that the checkpoint brings answers as before; one that was drawn is taken as drawn over z.

    Args:
        model: With a fresh adapter on it.
        parameters: What trains, by name.
        tokenizer: The base model's.
        texts: Public: they stand in the plan.
        tokens: Longest text; what is beyond is cut, as in a row.
        drawn: Whether the head was drawn with the adapter, because the checkpoint lacks it.

    Raises:
        ConfigError: There is not one linear head with a bias that reads one vector a row, the task reads no
            texts, or the texts have all the same features.
    """
    weight, bias, head = _head(model, parameters)
    if not callable(tokenizer):
        raise ConfigError(
            "adapter.options.public_texts needs a task that reads texts", found=type(tokenizer).__name__
        )
    features = _features(model, head, tokenizer, texts, tokens)
    mean = features.mean(axis=0)
    distance = float(np.linalg.norm(features - mean, axis=1).mean())
    if not distance > 0:
        raise ConfigError(
            "adapter.options.public_texts say nothing of how far rows lie apart",
            found="texts that the base model takes for one and the same", expected="texts that differ",
        )  # fmt: skip
    shift = torch.from_numpy(mean.astype(np.float32)).to(head.weight.device)

    def normalise(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return ((args[0].float() - shift) / distance, *args[1:])

    head.register_forward_pre_hook(normalise)
    constants = _INPUTS[model] = HeadInput(weight, bias, mean, distance)
    if not drawn:
        own = {name: parameters[name].detach().cpu().numpy() for name in (weight, bias)}
        rewritten = constants.normalised(own)  # both before either is changed: `own` are views
        with torch.no_grad():
            for name, array in rewritten.items():
                parameters[name].copy_(torch.from_numpy(array))


def _head(model: PeftModel, parameters: Mapping[str, nn.Parameter]) -> tuple[str, str, nn.Linear]:
    """Names and module of the only linear layer that trains in full."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) in names]
    heads = [head for head in heads if ".lora_" not in names[id(head.weight)]]
    if len(heads) != 1 or heads[0].bias is None:
        raise ConfigError(
            "adapter.options.public_texts needs one linear head with a bias",
            found=", ".join(names[id(head.weight)] for head in heads[:3]) or "no layer that trains in full",
            expected="a classifier such as BERT's: the mean of its features goes into the bias",
            remedy="leave adapter.options.public_texts out",
        )  # fmt: skip
    return names[id(heads[0].weight)], names[id(heads[0].bias)], heads[0]


def _features(
    model: PeftModel, head: nn.Linear, tokenizer: Any, texts: Sequence[str], tokens: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the head reads of each text, (texts, features); one at a time, so that padding plays no part."""
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().float().cpu()))
    training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            for text in texts:
                read = tokenizer(text, truncation=True, max_length=tokens, return_tensors="pt")
                model(**{name: tensor.to(head.weight.device) for name, tensor in read.items()})
    finally:
        hook.remove()
        model.train(training)
    if any(x.shape != (1, head.in_features) for x in seen) or len(seen) != len(texts):
        raise ConfigError(
            "adapter.options.public_texts needs a head that reads one vector a row",
            found=f"shape {tuple(seen[0].shape)}" if seen else "a head that the model does not use",
            remedy="leave adapter.options.public_texts out",
        )  # fmt: skip
    return torch.cat(seen).double().numpy()
