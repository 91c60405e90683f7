"""What a task reads its rows through, beside the model: a tokenizer, nothing, or a loader of its own.

A processor decides, with the row, what the model sees, so that its digest belongs to the data contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol, cast, final

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from wardround.core.errors import ModelError
from wardround.training.digests import chat_template_digest, tokenizer_digest


class Processor(Protocol):
    """One kind of processor. Stateless: what `load` gives is passed to the rest, and to the task."""

    def load(self, path: str, **keywords: Any) -> Any:
        """What lies beside the model in the folder or under the hub name `path`.

        Nothing of its own code is run. The caller makes a ModelError of an OSError, ValueError, KeyError or
        ImportError.

        Args:
            keywords: `revision`, where one is asked for.
        """

    def settle(self, loaded: Any, model: PreTrainedModel, name: str) -> None:
        """Fit what was loaded and the model to each other, in place; `name` is the base's, for messages.

        Raises:
            ModelError: They do not belong together.
        """

    def contract(self, loaded: Any, model: torch.nn.Module) -> dict[str, Any]:
        """Fields of `DataContract` that it decides, by name; every site has to find the same values.

        A processor that is no tokenizer puts its digest into `tokenizer_digest`.
        """

    def save(self, loaded: Any, folder: Path) -> None:
        """Write it beside a merged model, as `load` reads it."""


@final
class Tokenizer:
    """The tokenizer of the base model."""

    def load(self, path: str, **keywords: Any) -> PreTrainedTokenizerBase:
        """Through `AutoTokenizer`."""
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False, **keywords
        )
        return tokenizer

    def settle(self, loaded: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
        """A pad token for both (the end token where there is none), no token that the model does not know.

        Raises:
            ModelError: Neither pad nor end token, or ids beyond the embeddings.
        """
        if loaded.pad_token_id is None:
            if loaded.eos_token is None:
                raise ModelError(
                    f"the tokenizer of {name!r} has neither a pad nor an end token",
                    remedy="set pad_token in its tokenizer_config.json",
                )
            loaded.pad_token = loaded.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = loaded.pad_token_id
        rows = len(cast("torch.Tensor", model.get_input_embeddings().weight))
        largest = max(loaded.get_vocab().values())
        if largest >= rows:
            raise ModelError(
                f"the tokenizer of {name!r} has tokens that the model does not know",
                found=f"token id {largest}",
                expected=f"ids below {rows}",
                remedy="use the tokenizer that belongs to the model",
            )

    def contract(self, loaded: PreTrainedTokenizerBase, model: torch.nn.Module) -> dict[str, Any]:
        """Digests, pad and end tokens."""
        return {
            "tokenizer_digest": tokenizer_digest(loaded),
            "chat_template_digest": chat_template_digest(loaded),
            "pad_token_id": int(loaded.pad_token_id),
            "end_token_ids": end_tokens(model, loaded),
        }

    def save(self, loaded: PreTrainedTokenizerBase, folder: Path) -> None:
        """As transformers does."""
        loaded.save_pretrained(folder)


@final
class Nothing:
    """For tasks whose rows hold what the model reads, such as numbers."""

    def load(self, path: str, **keywords: Any) -> None:
        """None."""
        del path, keywords

    def settle(self, loaded: None, model: PreTrainedModel, name: str) -> None:
        """Nothing to fit."""
        del loaded, model, name

    def contract(self, loaded: None, model: torch.nn.Module) -> dict[str, Any]:
        """No field."""
        del loaded, model
        return {}

    def save(self, loaded: None, folder: Path) -> None:
        """Nothing to write."""
        del loaded, folder


TOKENIZER: Final = Tokenizer()
NOTHING: Final = Nothing()


def end_tokens(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end an answer: the generation config's and the tokenizer's end token, sorted."""
    settings = getattr(model, "generation_config", None)
    ids: Any = getattr(settings, "eos_token_id", None)
    found = set(ids) if isinstance(ids, list) else {ids}
    found.add(tokenizer.eos_token_id)
    return tuple(sorted(int(token) for token in found if token is not None))
