"""Tokens and loss mask are those of TRL 1.16's SFTTrainer, row by row, over a table of conversations.

TRL is asked for what it really trains on: `trainer.train_dataset` after its own preparation. Where it differs
on purpose the test says so. A row's first token has no predecessor, so neither program ever takes a loss on
it; we write −100 there, TRL leaves it a label that the shift drops. Labels are compared from the second on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Encoded, Example

trl = pytest.importorskip("trl")
templates = pytest.importorskip("trl.chat_template_utils")

CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "one turn": [("user", "What is asthma?"), ("assistant", "A disease of the airways.")],
    "system prompt": [("system", "You are terse."), ("user", "Fever?"), ("assistant", "38.5 °C.")],
    "three turns": [
        ("user", "Hi"), ("assistant", "Hello."), ("user", "Dose?"),
        ("assistant", "5 mg."), ("user", "Thanks"), ("assistant", "Welcome."),
    ],
    "question and answer alike": [("user", "ok"), ("assistant", "ok"), ("user", "ok"), ("assistant", "ok")],
    "unicode": [("user", "Was ist µg/dL? 血圧 🩺"), ("assistant", "Mikrogramm – ½ 🩺️ é́ 血")],
    "a lone space": [("user", "a"), ("assistant", " ")],
    "an empty answer": [("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")],
    "line breaks": [("user", "List\n\n1"), ("assistant", "\n- a\n- b\n")],
    "spaces at the edges": [("user", "a"), ("assistant", "  in "), ("user", " b "), ("assistant", " c")],
    "ends with a question": [("user", "a"), ("assistant", "b"), ("user", "c")],
    "two answers in a row": [("user", "a"), ("assistant", "b"), ("assistant", "c")],
    "a long answer": [("user", "Go on."), ("assistant", "The heart rate was normal. " * 12)],
}  # fmt: skip

OURS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OURS_TAGGED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# Name → the published template, the same with generation tags as TRL trains on it, end of text (the tokenizer's
# own end token), end of turn, its other marks.
PUBLISHED: dict[str, tuple[str, str, str, str, list[str]]] = {
    "wardround": (OURS, OURS_TAGGED, "</s>", "</s>", []),
    "llama3": (
        templates.llama3_chat_template, templates.llama3_training_chat_template,
        "<|eot_id|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "qwen3_instruct": (
        templates.qwen3_instruct_2507_chat_template, templates.qwen3_instruct_2507_training_chat_template,
        "<|im_end|>", "<|im_end|>", ["<|im_start|>"],
    ),
    "phi3": (
        templates.phi3_chat_template, templates.phi3_training_chat_template,
        "<|endoftext|>", "<|end|>", ["<|user|>", "<|assistant|>", "<|system|>"],
    ),
    "gemma": (
        templates.gemma_chat_template, templates.gemma_training_chat_template,
        "<eos>", "<end_of_turn>", ["<start_of_turn>"],
    ),
}  # fmt: skip
# Gemma's template refuses system turns, and turns that do not alternate.
REFUSED = {"gemma": {"system prompt", "two answers in a row"}}


def tokenizer_of(folder: Path, template: str | None, end: str, marks: list[str], pad: str) -> Any:
    """The tiny model's tokenizer under another template, with that template's own marks as tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": end, "pad_token": pad, "extra_special_tokens": marks})
    tokenizer.chat_template = template
    return tokenizer


def trl_rows(
    folder: Path, rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, out: Path, **options: Any
) -> list[tuple[list[int], list[int]]]:
    """Input ids and labels of each row, as SFTTrainer would train on them."""
    settings = trl.SFTConfig(
        output_dir=str(out), report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False,
        **{"max_length": None} | options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    trainer = trl.SFTTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    prepared = trainer.train_dataset
    batch = [trainer.data_collator([row]) for row in prepared]
    return [(row["input_ids"][0].tolist(), row["labels"][0].tolist()) for row in batch]


def our_rows(
    rows: Iterable[dict[str, Any]], tokenizer: Any, max_length: int = 4096, turn_end: str = "", **options: Any
) -> list[Encoded]:
    """The same rows through the task."""
    data = DataContract(
        columns={}, max_length=max_length,
        pad_token_id=tokenizer.pad_token_id,
        end_token_ids=(tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids([turn_end] if turn_end else [])),
    )  # fmt: skip
    examples = [Example(number, row) for number, row in enumerate(rows)]
    return TASKS.get("causal_lm").encode(
        examples, tokenizer, data, TaskSpec(name="causal_lm", options=options)
    )


def conversations(leave_out: Iterable[str] = ()) -> dict[str, list[dict[str, str]]]:
    """The table in TRL's spelling."""
    return {
        name: [{"role": role, "content": content} for role, content in turns]
        for name, turns in CONVERSATIONS.items()
        if name not in set(leave_out)
    }


def assert_equal(name: str, ours: Encoded, theirs: tuple[list[int], list[int]]) -> None:
    """Tokens equal, labels equal from the second on; at least one of them is a target."""
    ids, labels = theirs
    assert ours.tokens.tolist() == ids, name
    assert ours.targets.tolist()[1:] == labels[1:], name
    assert ours.targets[0] == -100, name
    assert (ours.targets >= 0).any(), name


@pytest.mark.parametrize("pad", ["<pad>", "the end token"])
@pytest.mark.parametrize("template", PUBLISHED)
def test_conversations(template: str, pad: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Every assistant turn with its end token is under loss and nothing else, with and without generation tags.

    TRL gets the tagged template, which it needs; we get either. Padding that is the end token changes nothing.
    """
    plain, tagged, text_end, turn_end, marks = PUBLISHED[template]
    marks = [*marks, turn_end]
    padding = text_end if pad == "the end token" else pad
    chats = conversations(leave_out=REFUSED.get(template, ()))
    rows = [{"messages": messages} for messages in chats.values()]
    with_tags = tokenizer_of(tiny_llama, tagged, text_end, marks, padding)
    theirs = trl_rows(tiny_llama, rows, with_tags, tmp_path, assistant_only_loss=True)
    for tokenizer in (with_tags, tokenizer_of(tiny_llama, plain, text_end, marks, padding)):
        ours = our_rows(rows, tokenizer, turn_end=turn_end, format="messages")
        ended = tokenizer.convert_tokens_to_ids(turn_end)
        for name, row, expected in zip(chats, ours, theirs, strict=True):
            assert_equal(name, row, expected)
            assert (row.targets == ended).sum() == sum(turn["role"] == "assistant" for turn in chats[name]), (
                name
            )


def test_end_token_that_the_template_leaves_out(tiny_llama: Path, tmp_path: Path) -> None:
    """Where a template writes no end token, TRL trains without one; we append it to the last turn, under loss."""
    bare = OURS.replace("{{ eos_token }}", "")
    tagged = OURS_TAGGED.replace(" + eos_token", "")
    rows = [{"messages": conversations()["three turns"]}]
    (ids, labels), = trl_rows(
        tiny_llama, rows, tokenizer_of(tiny_llama, tagged, "</s>", [], "<pad>"), tmp_path, assistant_only_loss=True
    )  # fmt: skip
    tokenizer = tokenizer_of(tiny_llama, bare, "</s>", [], "<pad>")
    (ours,) = our_rows(rows, tokenizer, format="messages")
    assert ours.tokens.tolist() == [*ids, tokenizer.eos_token_id]
    assert ours.targets.tolist()[1:] == [*labels[1:], tokenizer.eos_token_id]


PAIRS = [
    ("What is asthma? ", "A disease of the airways."),
    ("Dose:", " 5 mg"),
    ("Was ist µg/dL? 血圧 ", "Mikrogramm – ½ 🩺️"),
    ("Line\n", "\nline"),
    ("A", "B"),
    ("The heart rate. " * 6, "Normal. " * 6),
]


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_prompt_and_completion(pad: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Without a chat template: loss on the completion and the end token behind it.

    The prompts end where a token ends. Where a token reaches over the edge, TRL counts it to the completion
    as we do.
    """
    tokenizer = tokenizer_of(tiny_llama, None, "</s>", [], pad)
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
    theirs = trl_rows(tiny_llama, rows, tokenizer, tmp_path)
    ours = our_rows(rows, tokenizer, format="prompt_completion")
    for (prompt, _), row, expected in zip(PAIRS, ours, theirs, strict=True):
        assert_equal(prompt, row, expected)
        assert row.targets[-1] == tokenizer.eos_token_id


def test_prompt_and_completion_as_a_chat(tiny_llama: Path, tmp_path: Path) -> None:
    """With a chat template: TRL's conversational prompt and completion, loss on the completion alone."""
    tokenizer = tokenizer_of(tiny_llama, OURS, "</s>", [], "<pad>")
    theirs = trl_rows(
        tiny_llama,
        [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": completion}],
            }
            for prompt, completion in PAIRS
        ],
        tokenizer, tmp_path,
    )  # fmt: skip
    ours = our_rows(
        [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS], tokenizer,
        format="prompt_completion",
    )  # fmt: skip
    for (prompt, _), row, expected in zip(PAIRS, ours, theirs, strict=True):
        assert_equal(prompt, row, expected)


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_plain_text(pad: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Loss on every token that has a predecessor, the appended end token included."""
    tokenizer = tokenizer_of(tiny_llama, None, "</s>", [], pad)
    rows = [{"text": prompt + completion} for prompt, completion in PAIRS]
    theirs = trl_rows(tiny_llama, rows, tokenizer, tmp_path)
    for row, expected in zip(our_rows(rows, tokenizer, format="text"), theirs, strict=True):
        assert_equal("text", row, expected)


def test_truncation(tiny_llama: Path, tmp_path: Path) -> None:
    """Both keep the first tokens; we say how many were dropped, and rows that lost every target stay in place."""
    limit = 12
    tokenizer = tokenizer_of(tiny_llama, OURS_TAGGED, "</s>", [], "<pad>")
    rows = [{"messages": messages} for messages in conversations().values()]
    whole = our_rows(rows, tokenizer, format="messages")
    ours = our_rows(rows, tokenizer, max_length=limit, format="messages")
    theirs = trl_rows(tiny_llama, rows, tokenizer, tmp_path, assistant_only_loss=True, max_length=limit)
    assert [row.cut for row in ours] == [max(0, row.tokens.size - limit) for row in whole]
    assert any(row.cut for row in ours)
    kept = [row for row in ours if (row.targets >= 0).any()]
    expected = [pair for pair in theirs if any(label >= 0 for label in pair[1])]
    assert len(kept) == len(expected) < len(rows)
    for row, (ids, labels) in zip(kept, expected, strict=True):
        assert row.tokens.tolist() == ids
        assert row.targets.tolist()[1:] == labels[1:]
