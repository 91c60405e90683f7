"""Greedy answers, questions taken from encoded rows, and their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wardround.core.metrics.language import METRICS, ROUGE_UNIT
from wardround.core.packed import pack
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.evaluation import evaluate, predict_rows
from wardround.training.generation import count_answers, generate_greedy, questions, sample_answers
from wardround.training.tasks.causal_lm import TASK
from wardround.training.tasks.contract import Example

CPU = torch.device("cpu")


@pytest.fixture
def opened(tiny_llama: Path) -> tuple[Any, Any, DataContract]:
    """Model, tokenizer, contract."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    return model, tokenizer, DataContract(columns={}, max_length=96, pad_token_id=0, end_token_ids=(2,))


def spec(**options: Any) -> TaskSpec:
    """Task with these options."""
    return TaskSpec(name="causal_lm", options=options, metrics="language")


def slow_greedy(model: Any, prompt: np.ndarray, ends: tuple[int, ...], limit: int) -> list[int]:
    """Argmax of the whole sequence's forward pass, one token after the other."""
    ids = [int(token) for token in prompt]
    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < limit:
            token = int(model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax())
            if token in ends:
                break
            answer.append(token)
    return answer


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_equal_the_slow_twin_in_any_batch(opened: Any, batch_size: int) -> None:
    """Left padding, sorting and the cache change no answer, nor the order; nor do the model's settings."""
    model, _, _ = opened
    model.generation_config.repetition_penalty = 3.0
    rng = np.random.default_rng(5)
    prompts = [rng.integers(6, 300, size).astype(np.int32) for size in (7, 1, 12, 3, 9)]
    free = [slow_greedy(model, prompt, (), 6) for prompt in prompts]
    ends = (free[0][3], 2)  # a token that the model really writes, so that an answer stops early
    expected = [slow_greedy(model, prompt, ends, 6) for prompt in prompts]
    assert len(expected[0]) < 6
    answers = generate_greedy(
        model,
        prompts,
        pad_token_id=0,
        end_token_ids=ends,
        max_new_tokens=6,
        batch_size=batch_size,
        device=CPU,
    )
    assert [answer.tolist() for answer in answers] == expected


def test_training_mode_is_put_back(opened: Any) -> None:
    """And there is no answer to no question."""
    model, _, _ = opened
    model.train()
    assert generate_greedy(
        model, [], pad_token_id=0, end_token_ids=(2,), max_new_tokens=2, batch_size=2, device=CPU
    ) == []  # fmt: skip
    generate_greedy(
        model, [np.array([5], np.int32)], pad_token_id=0, end_token_ids=(2,), max_new_tokens=1, batch_size=2,
        device=CPU,
    )  # fmt: skip
    assert model.training


def test_a_prompt_too_long_for_the_model_loses_its_beginning(opened: Any) -> None:
    """Prompt and answer stay within the model's positions."""
    model, _, _ = opened
    long = np.arange(6, 266, dtype=np.int32)
    assert long.size > model.config.max_position_embeddings
    keywords = {
        "pad_token_id": 0, "end_token_ids": (2,), "max_new_tokens": 8, "batch_size": 1, "device": CPU,
    }  # fmt: skip
    (answer,) = generate_greedy(model, [long], **keywords)
    (same,) = generate_greedy(model, [long[-(256 - 8) :]], **keywords)
    assert answer.tolist() == same.tolist()


def test_an_answer_stays_within_the_models_positions(tiny_gpt2: Path) -> None:
    """Asked for more tokens than GPT-2 has positions, it answers with as many as there are."""
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval()
    (answer,) = generate_greedy(
        model, [np.array([5, 6, 7], np.int32)], pad_token_id=0, end_token_ids=(383,), max_new_tokens=200,
        batch_size=1, device=CPU,
    )  # fmt: skip
    assert 0 < answer.size <= model.config.max_position_embeddings


def test_questions_are_the_last_answers_of_each_row(opened: Any) -> None:
    """Of a conversation the last answer, all before it being the prompt; the end token is not part of it."""
    _, tokenizer, data = opened
    turns = [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "e f")]
    roles = {"messages": [{"role": role, "content": content} for role, content in turns]}
    rows = TASK.encode([Example(1, roles)], tokenizer, data, spec(format="messages"))
    (question,) = questions(rows, data, 5)
    assert (
        tokenizer.decode(question.prompt.tolist()) == "<s><|user|>a<|assistant|>b c</s><|user|>d<|assistant|>"
    )
    assert tokenizer.decode(question.reference.tolist()) == "e f"


def test_packed_rows_ask_the_same_questions(opened: Any) -> None:
    """Packing changes how rows lie and not what is asked."""
    _, tokenizer, data = opened
    examples = [Example(n, {"prompt": f"q{n}", "completion": "a" * n}) for n in range(1, 9)]
    plain = TASK.encode(examples, tokenizer, data, spec())
    packed = TASK.encode(examples, tokenizer, data.model_copy(update={"packing": True}), spec())
    assert len(packed) < len(plain)
    found = {(tuple(q.prompt.tolist()), tuple(q.reference.tolist())) for q in questions(packed, data, 99)}
    assert found == {
        (tuple(q.prompt.tolist()), tuple(q.reference.tolist())) for q in questions(plain, data, 99)
    }
    assert len(found) == 8
    assert len(questions(plain, data, 3)) == 3


def test_plain_text_asks_nothing(opened: Any) -> None:
    """There is no prompt in front of it."""
    _, tokenizer, data = opened
    rows = TASK.encode([Example(1, {"text": "some text"})], tokenizer, data, spec(format="text"))
    assert questions(rows, data, 5) == []


def test_scores_by_hand() -> None:
    """Exact match ignores white space only; ROUGE-L is the F-measure of the longest common subsequence."""
    counts = count_answers(["the cat sat", "a b"], ["the  cat\nsat", "a c"])
    assert int(counts["answers"]) == 2
    assert int(counts["exact_answers"]) == 1
    assert int(counts["rouge_l"]) * ROUGE_UNIT == pytest.approx(1 + 0.5, abs=2 * ROUGE_UNIT)
    assert int(count_answers(["Yes"], ["yes"])["exact_answers"]) == 0
    assert int(count_answers([], [])["answers"]) == 0


def test_evaluation_scores_as_many_answers_as_the_options_ask_for(opened: Any) -> None:
    """A model that answers as the data says has exact match 1; without the tokenizer nothing is made up."""
    model, tokenizer, data = opened
    asked = [Example(n, {"prompt": text}, id=str(n)) for n, text in enumerate(("ab", "cd e", "fever"))]
    options = {"generate": 2, "max_new_tokens": 5}
    answers = predict_rows(
        model, TASK, spec(**options), data, asked, tokenizer=tokenizer, batch_size=2, device=CPU
    )
    assert [answer["id"] for answer in answers] == ["0", "1", "2"]
    known = [
        Example(example.number, {**example.roles, "completion": answer["answer"]})
        for example, answer in zip(asked, answers, strict=True)
    ]
    rows = TASK.encode(known, tokenizer, data, spec(**options))
    counters = evaluate(
        model, TASK, spec(**options), data, rows, batch_size=2, device=CPU, tokenizer=tokenizer
    )
    scores = METRICS.compute(counters, (), options)
    assert scores.support["rouge_l"] == 2
    assert int(counters["answers"]) == 2
    samples = sample_answers(
        model, tokenizer, rows, data, count=2, max_new_tokens=5, batch_size=2, device=CPU
    )
    assert int(counters["exact_answers"]) == sum(s.reference.split() == s.answer.split() for s in samples)
    with pytest.raises(Exception, match="answers"):
        evaluate(model, TASK, spec(**options), data, rows, batch_size=2, device=CPU)


def test_figures_of_answers_are_absent_without_answers() -> None:
    """No answer, no score; and no counters where the option is 0."""
    layout = METRICS.layout((), {"generate": 4})
    values = {spec.name: np.asarray(0, np.int64) for spec in layout.tensors}
    scores = METRICS.compute(pack(layout, values, np.int64), (), {"generate": 4})
    assert scores.values == {}
    assert "answers" not in METRICS.layout((), {}).offsets
