"""How many tokens a model reads at once."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from wardround.core.errors import ConfigError


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Refuse rows that may be longer than the positions that the model knows.

    Raises:
        ConfigError: Names the longest row that would do.
    """
    longest = longest_row(model)
    if longest is not None and longest < max_length:
        raise ConfigError(
            "data.max_length is more than the model reads",
            found=max_length,
            expected=f"at most {longest} tokens",
            remedy=f"set data.max_length={longest}",
        )


def longest_row(model: PreTrainedModel) -> int | None:
    """Tokens, or None where the model's configuration sets no limit.

    RoBERTa and its kin count positions from behind the padding index: their table of 514 serves 512 tokens.
    """
    size = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(size, int) or size <= 0:
        return None
    reserved = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "position_embeddings"
        and isinstance(module, nn.Embedding)
        and module.padding_idx is not None
    ]
    return size - max(reserved, default=0)
