"""How many tokens a model reads at once: no task promises more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from wardround.core.errors import ConfigError
from wardround.core.plan import DataContract
from wardround.training.tasks import TASKS

LABELS = ("benign", "malignant", "unclear")


@pytest.mark.parametrize(
    ("task", "folder"),
    [("sequence_classification", "tiny_bert"), ("causal_lm", "tiny_gpt2")],
)
def test_rows_longer_than_the_model_reads_are_refused(
    task: str, folder: str, request: pytest.FixtureRequest
) -> None:
    """The error comes before any row, and says what would do."""
    path = str(request.getfixturevalue(folder))
    with pytest.raises(ConfigError, match=r"data\.max_length=128"):
        TASKS.get(task).load_model(path, DataContract(columns={}, labels=LABELS, max_length=129))


def test_positions_behind_the_padding_index_are_not_promised(tiny_bert: Path, tmp_path: Path) -> None:
    """RoBERTa's table of 34 positions serves 32 tokens; a row of 33 would leave it in mid-round."""
    config = RobertaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=34, pad_token_id=1, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    task, fields = TASKS.get("sequence_classification"), {"columns": {}, "labels": LABELS, "pad_token_id": 1}
    longest: dict[str, Any] = {**fields, "max_length": 32}
    model, _ = task.load_model(str(tmp_path), DataContract(**longest))
    ids = torch.full((1, 32), 5)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, len(LABELS))
    with pytest.raises(ConfigError, match=r"data\.max_length=32"):
        task.load_model(str(tmp_path), DataContract(**{**longest, "max_length": 33}))
