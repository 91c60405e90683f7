"""More held against TRL 1.16's SFTTrainer: chats as pairs, truncation, a template that ends no turn.

The table of conversations is in `test_loss_masks_equal_trl.py`. Labels are compared from the second token on:
the first has no predecessor, so we write −100 there while TRL leaves a label that the shift drops.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from wardround.core.plan import DataContract, TaskSpec
from wardround.training.encoded_text import EncodedText
from wardround.training.tasks.causal_lm import TASK
from wardround.training.tasks.contract import Example

PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TAGGED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

PAIRS = [
    ("What is asthma? ", "A disease of the airways."),
    ("Dose:", " 5 mg"),
    ("Was ist µg/dL? 血圧 ", "Mikrogramm – ½ 🩺️"),
    ("Line\n", "\nline"),
    ("A", "B"),
    ("The heart rate. " * 6, "Normal. " * 6),
]


def tokenizer_with(folder: Path, template: str) -> Any:
    """The tiny model's tokenizer under another chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return tokenizer


def trl_rows(
    folder: Path, rows: list[dict[str, Any]], tokenizer: Any, out: Path, **options: Any
) -> list[tuple[list[int], list[int]]]:
    """Input ids and labels of each row, as TRL's collator hands them to its model."""
    settings = SFTConfig(
        output_dir=str(out), report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False,
        **{"max_length": None} | options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
    return [(batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) for batch in batches]


def our_rows(
    rows: Iterable[dict[str, Any]], tokenizer: Any, text_format: str, max_length: int = 4096
) -> list[EncodedText]:
    """The same rows through the task."""
    data = DataContract(
        columns={}, max_length=max_length,
        pad_token_id=tokenizer.pad_token_id, end_token_ids=(tokenizer.eos_token_id,),
    )  # fmt: skip
    examples = [Example(number, row) for number, row in enumerate(rows)]
    return TASK.encode(examples, tokenizer, data, TaskSpec(name="causal_lm", options={"format": text_format}))


def chat(*turns: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]


def test_prompt_and_completion_become_chat_turns(tiny_llama: Path, tmp_path: Path) -> None:
    """With a chat template a pair is TRL's conversational pair: loss on the completion alone."""
    tokenizer = tokenizer_with(tiny_llama, PLAIN)
    pairs = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
    turns = [
        {"prompt": chat(prompt), "completion": [{"role": "assistant", "content": completion}]}
        for prompt, completion in PAIRS
    ]
    theirs = trl_rows(tiny_llama, turns, tokenizer, tmp_path)
    for row, (ids, labels) in zip(our_rows(pairs, tokenizer, "prompt_completion"), theirs, strict=True):
        assert row.tokens.tolist() == ids
        assert row.targets.tolist()[1:] == labels[1:]
        assert row.targets[-1] == tokenizer.eos_token_id


def test_truncation_keeps_what_trl_keeps(tiny_llama: Path, tmp_path: Path) -> None:
    """Both keep the first tokens, whatever part of an answer that leaves.

    Rows that lost every target we keep and count; they are not compared, since neither program trains them.
    """
    limit = 24
    tokenizer = tokenizer_with(tiny_llama, TAGGED)
    rows = [{"messages": chat(*pair)} for pair in PAIRS] + [
        {"messages": chat("a", "b", "c", "a longer one, " * 4)}
    ]
    whole = our_rows(rows, tokenizer, "messages")
    ours = our_rows(rows, tokenizer, "messages", limit)
    assert [row.cut for row in ours] == [max(0, row.tokens.size - limit) for row in whole]
    with_targets = [row for row in ours if TASK.targets(row)]
    assert 0 < len(with_targets) < len(rows)
    assert any(row.cut for row in with_targets)
    theirs = trl_rows(tiny_llama, rows, tokenizer, tmp_path, assistant_only_loss=True, max_length=limit)
    trained = [pair for pair in theirs if any(label >= 0 for label in pair[1])]
    for row, (ids, labels) in zip(with_targets, trained, strict=True):
        assert row.tokens.tolist() == ids
        assert row.targets.tolist()[1:] == labels[1:]


def test_trl_trains_no_end_where_the_template_writes_none(tiny_llama: Path, tmp_path: Path) -> None:
    """A stated difference: TRL ends on the answer's last word, we on the end token, under loss as well."""
    rows = [{"messages": chat("Hi", "Hello.", "Dose?", "5 mg.")}]
    tagged = tokenizer_with(tiny_llama, TAGGED.replace(" + eos_token", ""))
    ((ids, labels),) = trl_rows(tiny_llama, rows, tagged, tmp_path, assistant_only_loss=True)
    plain = tokenizer_with(tiny_llama, PLAIN.replace("{{ eos_token }}", ""))
    (ours,) = our_rows(rows, plain, "messages")
    end = plain.eos_token_id
    assert end not in ids
    np.testing.assert_array_equal(ours.tokens, [*ids, end])
    np.testing.assert_array_equal(ours.targets, [*labels, end])
