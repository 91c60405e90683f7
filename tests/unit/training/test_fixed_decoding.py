"""Greedy decoding stays what the plan says, whatever the model's folder brings or is wrapped around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from wardround.core.plan import DataContract, TaskSpec
from wardround.training.generation import generate_greedy
from wardround.training.tasks.causal_lm import TASK
from wardround.training.tasks.contract import Example

CPU = torch.device("cpu")
PROMPTS = [np.random.default_rng(3).integers(6, 300, size).astype(np.int32) for size in (5, 2, 9)]


@pytest.fixture
def model(tiny_llama: Path) -> Any:
    """In evaluation mode, float32, with weights so large that it does not repeat one token for ever."""
    opened = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in opened.parameters():
            weights.add_(0.5 * torch.randn(weights.shape, generator=draws))
    return opened


def answers(model: Any, ends: tuple[int, ...] = (2,)) -> list[list[int]]:
    """Six tokens at most for each prompt."""
    found = generate_greedy(
        model, PROMPTS, pad_token_id=0, end_token_ids=ends, max_new_tokens=6, batch_size=2, device=CPU
    )
    return [answer.tolist() for answer in found]


@pytest.mark.parametrize(
    "setting",
    [
        "bad_words_ids",
        "suppress_tokens",
        "min_new_tokens",
        "repetition_penalty",
        "num_return_sequences",
        "max_length",
    ],
)
def test_no_setting_of_the_models_own_file_changes_an_answer(model: Any, setting: str) -> None:
    """Banned words, least and greatest lengths, penalties: none gets through, all are put back."""
    free = answers(model)
    ends = (free[0][3], 2)  # a token that the model really writes, so that a least length would show
    plain = answers(model, ends)
    assert 0 < len(plain[0]) < 6
    first = plain[0][0]
    settings: dict[str, Any] = {
        "bad_words_ids": [[first]], "suppress_tokens": [first], "min_new_tokens": 6,
        "repetition_penalty": 4.0, "num_return_sequences": 2, "max_length": 1,
    }  # fmt: skip
    own = GenerationConfig(do_sample=True, **{setting: settings[setting]})
    model.generation_config = own
    assert answers(model, ends) == plain
    assert model.generation_config is own


def test_a_setting_is_put_back_after_a_failure(model: Any) -> None:
    """What goes wrong inside generation leaves the model as it was."""
    own = model.generation_config
    model.forward = None
    with pytest.raises(TypeError):
        answers(model)
    assert model.generation_config is own


def test_an_adapter_around_the_model_changes_nothing_by_itself(model: Any) -> None:
    """LoRA with B = 0, dropout, training mode, no cache in the config: the same answers, still training."""
    plain = answers(model)
    model.generation_config = GenerationConfig(bad_words_ids=[[plain[0][0]]])
    model.config.use_cache = False
    wrapped: Any = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_dropout=0.5)
    ).train()
    assert answers(wrapped) == plain
    assert wrapped.training
    assert all(module.training for module in wrapped.modules())


def test_predictions_of_a_row_without_an_answer_are_those_of_the_row_with_it(
    model: Any, tiny_llama: Path
) -> None:
    """The answer in the data plays no part in a prediction, in any format that has one."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    data = DataContract(columns={}, max_length=64, pad_token_id=0, end_token_ids=(2,))
    question = {"role": "user", "content": "Fever?"}
    for text_format, asked, answer in (
        ("prompt_completion", {"prompt": "Fever?"}, {"completion": "Yes, high."}),
        ("alpaca", {"instruction": "Answer.", "input": "Fever?"}, {"output": "Yes, high."}),
        (
            "messages", {"messages": [question]},
            {"messages": [question, {"role": "assistant", "content": "Yes, high."}]},
        ),
    ):  # fmt: skip
        for chat in (True, False):
            if text_format == "messages" and not chat:
                continue
            options = {"format": text_format, "max_new_tokens": 5, "use_chat_template": chat}
            with_and_without = [Example(1, asked, id="a"), Example(2, {**asked, **answer}, id="b")]
            first, second = TASK.predict(
                model, tokenizer, with_and_without, data, TaskSpec(name="causal_lm", options=options),
                batch_size=2, device=CPU,
            )  # fmt: skip
            assert (first["id"], second["id"]) == ("a", "b")
            assert first["answer"] == second["answer"], (text_format, chat)
