"""What a frozen base makes of a row, kept: where the head alone trains, that is the same in every round.

The features of a row are computed once, from that row alone, so that they do not depend on the rows beside
it; a pass over known rows is a pass through the head. They stay in memory and are never written.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

MOST_BYTES: Final = 2**30
"""Of features; those of rows beyond are computed again each time."""


class _HeadReachedError(Exception):
    """Ends a pass where the head would begin."""


class RememberedFeatures:
    """Stands in for a model's `forward`: the head's logits from the features of rows that are known.

    Attributes:
        kept: Row, as the bytes that the model reads → its features (features,).
    """

    def __init__(self, model: PreTrainedModel, head: nn.Module, most_bytes: int = MOST_BYTES) -> None:
        self.kept: dict[bytes, torch.Tensor] = {}
        self._plain, self._head, self._room = model.forward, head, most_bytes

    def __call__(self, *args: Any, **batch: Any) -> Any:
        """As the model's own forward, to which anything but a plain batch of tensors is left."""
        given = {name: value for name, value in batch.items() if value is not None and name != "return_dict"}
        if args or not all(torch.is_tensor(value) for value in given.values()):
            return self._plain(*args, **batch)
        features = torch.stack([self._of(row) for row in _rows(given)])
        return SequenceClassifierOutput(logits=self._head(features))

    def _of(self, row: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the head reads of one row, (features,)."""
        key = b"".join(name.encode() + tensor.cpu().numpy().tobytes() for name, tensor in sorted(row.items()))
        found = self.kept.get(key)
        if found is None:
            found = self._computed(row)
            size = found.numel() * found.element_size()
            if size <= self._room:
                self._room -= size
                self.kept[key] = found
        return found

    def _computed(self, row: dict[str, torch.Tensor]) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def stop(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen.append(args[0])
            raise _HeadReachedError

        hook = self._head.register_forward_pre_hook(stop)
        try:
            with torch.no_grad():
                self._plain(**row)
        except _HeadReachedError:
            pass
        finally:
            hook.remove()
        return seen[0][0].detach()


def remember_features(model: PreTrainedModel, head: nn.Module, tokenizer: Any) -> RememberedFeatures | None:
    """Let a model remember, where its logits are nothing but what its head says of one vector a row.

    Args:
        model: Frozen but for its head, without dropout; its `forward` is replaced.
        head: With whatever is hooked or wrapped around it.
        tokenizer: The model's. Nothing is remembered where it reads no texts.

    Returns:
        What stands in, or None where the model was left as it is.
    """
    if not callable(tokenizer):
        return None
    seen: list[tuple[torch.Tensor, Any]] = []
    hook = head.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    read = {name: t.to(model.device) for name, t in tokenizer("a row", return_tensors="pt").items()}
    try:
        with torch.no_grad():
            logits = model(**read).logits
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0][0].ndim != 2 or logits is not seen[0][1]:  # noqa: PLR2004 - rows of features
        return None
    remembered = RememberedFeatures(model, head)
    model.__dict__["forward"] = remembered
    return remembered


def _rows(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Each row of a batch as a batch of its own, without its padding."""
    mask = batch.get("attention_mask")
    rows = []
    for place in range(len(next(iter(batch.values())))):
        row = {name: tensor[place : place + 1] for name, tensor in batch.items()}
        if mask is not None:
            real = mask[place].bool()
            row = {
                name: t[:, real] if t.shape == row["attention_mask"].shape else t for name, t in row.items()
            }
        rows.append(row)
    return rows
