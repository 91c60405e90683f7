"""Which tokens are under loss, held against TRL's own trainer on a table of conversations."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from wardround.core.plan import DataContract, TaskSpec
from wardround.training.encoded_text import EncodedText
from wardround.training.tasks.causal_lm import TASK
from wardround.training.tasks.contract import Example

HOUSE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The template of med-llama-5m and of the tiny models: no generation tags."""

HOUSE_TAGGED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The same with tags, which TRL needs."""


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """User and assistant in turn."""
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return head + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


CONVERSATIONS = {
    "one turn": turns("What is flu?", "A viral infection."),
    "two turns": turns("What is flu?", "A viral infection.", "Is it serious?", "Sometimes."),
    "three turns": turns("a", "b", "c", "d", "e", "f"),
    "system": turns("What is flu?", "A viral infection.", system="Be brief."),
    "system and two turns": turns("Fever?", "Yes.", "Cough?", "No.", system="You are a nurse."),
    "unicode": turns("Où est la douleur ? 日本", "Fièvre ≥ 38 °C — 発熱 🤒", "ok", "naïve ✓"),
    "empty answer in the middle": turns("Fever?", "", "Cough?", "No."),
    "empty answer at the end": turns("Fever?", ""),
    "the same answer twice": turns("Fever?", "No.", "Cough?", "No."),
    "answer repeats the question": turns("No.", "No.", "No.", "No."),
    "lines inside": turns("List:\n1. a\n2. b", "First\n\n- one\n- two"),
    "last turn is the user's": turns("Fever?", "Yes.", "Cough?"),
    "long": turns("word " * 30 + "end?", "answer " * 30 + "end."),
}


def tokenizer_at(folder: Path, template: str | None, specials: tuple[str, ...], eos: str | None) -> Any:
    """The folder's tokenizer under another template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    if eos is not None:
        tokenizer.eos_token = eos
    tokenizer.chat_template = template
    return tokenizer


def ours(
    tokenizer: Any, rows: list[dict[str, Any]], options: dict[str, Any], max_length: int = 512
) -> list[EncodedText]:
    """The rows through the task."""
    data = DataContract(
        columns={}, max_length=max_length, pad_token_id=0, end_token_ids=(tokenizer.eos_token_id,)
    )
    examples = [Example(number, row) for number, row in enumerate(rows, start=1)]
    return TASK.encode(examples, tokenizer, data, TaskSpec(name="causal_lm", options=options))


def trl_rows(
    tokenizer: Any, model_folder: Path, rows: list[dict[str, Any]], out: Path, **settings: Any
) -> list[dict[str, list[int]]]:
    """Input ids and labels that TRL's trainer would train on."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with warnings.catch_warnings():
        # trl 1.16 sets a field that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        arguments = SFTConfig(
            output_dir=str(out), report_to="none", use_cpu=True, bf16=False, max_length=512, **settings
        )
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.resize_token_embeddings(len(tokenizer))
    trainer = SFTTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    return list(trainer.train_dataset)


def assert_equal_masks(mine: list[EncodedText], theirs: list[dict[str, list[int]]], names: list[str]) -> None:
    """Equal tokens, equal targets from the second on, and some loss in every row."""
    for name, row, other in zip(names, mine, theirs, strict=True):
        assert row.tokens.tolist() == other["input_ids"], name
        # TRL may put the first token under loss; the shift drops it, so we never do.
        assert row.targets.tolist()[1:] == other["labels"][1:], name
        assert (row.targets >= 0).any(), name


@pytest.mark.parametrize("pad_is_end", [False, True])
@pytest.mark.parametrize("tagged", [False, True])
def test_every_assistant_turn_of_the_house_template(
    tiny_llama: Path, tmp_path: Path, *, tagged: bool, pad_is_end: bool
) -> None:
    """Spans found turn by turn, and those that tags mark, are TRL's assistant mask, token for token."""
    names = list(CONVERSATIONS)
    rows = [{"messages": CONVERSATIONS[name]} for name in names]
    theirs_by = tokenizer_at(tiny_llama, HOUSE_TAGGED, (), None)
    mine_by = tokenizer_at(tiny_llama, HOUSE_TAGGED if tagged else HOUSE, (), None)
    if pad_is_end:
        theirs_by.pad_token = mine_by.pad_token = theirs_by.eos_token
    mine = ours(mine_by, rows, {"format": "messages"})
    theirs = trl_rows(theirs_by, tiny_llama, rows, tmp_path, assistant_only_loss=True)
    assert_equal_masks(mine, theirs, names)
    ends = [int((row.targets == mine_by.eos_token_id).sum()) for row in mine]
    assert ends == [sum(turn["role"] == "assistant" for turn in row["messages"]) for row in rows]


@pytest.mark.parametrize(
    ("family", "specials", "eos", "header_newline"),
    [
        ("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", False),
        ("gemma", ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", False),
        ("phi3", ("<|end|>", "<|endoftext|>"), "<|endoftext|>", False),
        ("qwen2_5", ("<|im_start|>", "<|im_end|>"), "<|im_end|>", True),
    ],
)
def test_published_templates_without_tags(
    tiny_llama: Path,
    tmp_path: Path,
    family: str,
    specials: tuple[str, ...],
    eos: str,
    *,
    header_newline: bool,
) -> None:
    r"""On published templates our spans are those of TRL's tagged variants.

    One difference, Qwen's: TRL also trains the line break of the header `<|im_start|>assistant\n`, which the
    generation prompt writes and the model never has to; we leave it out.
    """
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja").read_text(encoding="utf-8")
    names = [
        name
        for name, messages in CONVERSATIONS.items()
        if family != "gemma" or messages[0]["role"] != "system"  # Gemma's template refuses system turns
    ]
    rows = [{"messages": CONVERSATIONS[name]} for name in names]
    tokenizer = tokenizer_at(tiny_llama, template, specials, eos)
    mine = ours(tokenizer, rows, {"format": "messages"})
    theirs = trl_rows(tokenizer, tiny_llama, rows, tmp_path, assistant_only_loss=True)
    if header_newline:
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        for row in theirs:
            opening = [
                place
                for place in range(1, len(row["labels"]))
                if row["labels"][place] >= 0 and row["labels"][place - 1] < 0
            ]
            assert opening
            for place in opening:
                assert [row["labels"][place]] == newline
                row["labels"][place] = -100
    assert_equal_masks(mine, theirs, names)


PAIRS = {
    "plain": ("What is flu? ", "A viral infection."),
    "unicode": ("Où ? ", "発熱 ≥ 38 °C 🤒"),
    "no space between": ("Q:", "A"),
    "line break": ("Question: fever?\nAnswer:", " yes\n"),
    "answer of spaces": ("Q: ", "  x  "),
    "numbers": ("1 + 1 = ", "2"),
    "long": ("word " * 20, "answer " * 20),
    "repeats": ("no no no ", "no no no"),
}


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_prompt_and_completion_without_a_template(
    request: pytest.FixtureRequest, tmp_path: Path, model: str
) -> None:
    """Loss falls on the completion and the end token, as TRL's completion mask has it (GPT-2: pad is end)."""
    folder = request.getfixturevalue(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    names = list(PAIRS)
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS.values()]
    mine = ours(tokenizer, rows, {"use_chat_template": False})
    theirs = trl_rows(tokenizer, folder, rows, tmp_path)
    # A token that spans the border is under loss in both; TRL also counts what differs before it.
    assert_equal_masks(mine, theirs, names)


def test_plain_text(tiny_llama: Path, tmp_path: Path) -> None:
    """Plain text is under loss throughout, with one end token, as in TRL."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows = [{"text": prompt + completion} for prompt, completion in PAIRS.values()]
    mine = ours(tokenizer, rows, {"format": "text"})
    assert_equal_masks(mine, trl_rows(tokenizer, tiny_llama, rows, tmp_path), list(PAIRS))


@pytest.mark.parametrize("model", ["med-llama-5m", "stories260k-llama"])
def test_real_tokenizers(shared_data: Path, tiny_llama: Path, tmp_path: Path, model: str) -> None:
    """The same with the real models' tokenizers: byte-level BPE, and SentencePiece with byte fallback."""
    names = list(CONVERSATIONS)
    rows = [{"messages": CONVERSATIONS[name]} for name in names]
    folder = shared_data / "models" / model
    mine = ours(tokenizer_at(folder, HOUSE, (), None), rows, {"format": "messages"})
    tagged = tokenizer_at(folder, HOUSE_TAGGED, (), None)
    theirs = trl_rows(tagged, tiny_llama, rows, tmp_path, assistant_only_loss=True)
    assert_equal_masks(mine, theirs, names)


def test_truncation_keeps_the_beginning(tiny_llama: Path) -> None:
    """Cut rows are prefixes of whole ones, and what was cut is counted."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows = [{"messages": messages} for messages in CONVERSATIONS.values()]
    for whole, cut in zip(
        ours(tokenizer, rows, {"format": "messages"}),
        ours(tokenizer, rows, {"format": "messages"}, max_length=9),
        strict=True,
    ):
        np.testing.assert_array_equal(cut.tokens, whole.tokens[:9])
        np.testing.assert_array_equal(cut.targets, whole.targets[:9])
        assert cut.cut == max(0, whole.tokens.size - 9)
        assert cut.text_bytes <= whole.text_bytes
