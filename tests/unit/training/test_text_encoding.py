"""Text formats, assistant spans and target tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from wardround.core.errors import ConfigError, DataError, ModelError
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.chat_spans import Written
from wardround.training.encoded_text import EncodedText
from wardround.training.tasks.causal_lm import TASK
from wardround.training.tasks.contract import Example
from wardround.training.text_formats import FORMATS
from wardround.training.text_formats.contract import Completion, Conversation, Wording
from wardround.training.text_tokens import prompt_tokens


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    """The tiny model's."""
    return AutoTokenizer.from_pretrained(tiny_llama)


def spec(**options: Any) -> TaskSpec:
    """Task with these options."""
    return TaskSpec(name="causal_lm", options=options, metrics="language")


def contract(tokenizer: Any, **fields: Any) -> DataContract:
    """Of this tokenizer."""
    known = {
        "columns": {},
        "max_length": 512,
        "pad_token_id": tokenizer.pad_token_id or 0,
        "end_token_ids": (tokenizer.eos_token_id,),
    }
    return DataContract(**{**known, **fields})


def encode(tokenizer: Any, roles: dict[str, Any], **options: Any) -> EncodedText:
    """One row."""
    (row,) = TASK.encode([Example(1, roles)], tokenizer, contract(tokenizer), spec(**options))
    return row


def under_loss(tokenizer: Any, row: EncodedText) -> str:
    """Text of the targets."""
    return str(tokenizer.decode(row.targets[row.targets >= 0].tolist()))


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    """Roles of a conversation."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_every_registered_format_keeps_its_contract() -> None:
    """Each format refuses a row of numbers, or names no required role."""
    assert set(FORMATS.names()) >= {"alpaca", "messages", "prompt_completion", "text"}
    for name in FORMATS.names():
        text_format = FORMATS.get(name)
        assert any(text_format.roles.values())
        assert text_format.fault(dict.fromkeys(text_format.roles, 3)) is not None
        assert text_format.asks == (name != "text")
        assert text_format.answer_role is None or text_format.answer_role in text_format.roles


@pytest.mark.parametrize(
    ("text_format", "roles", "code"),
    [
        ("prompt_completion", {"prompt": "a"}, "empty:completion"),
        ("prompt_completion", {"completion": "a"}, "empty:prompt"),
        ("alpaca", {"instruction": "a", "input": "b"}, "empty:output"),
        ("alpaca", {"output": "a"}, "empty:instruction"),
        ("text", {}, "empty:text"),
    ],
)
def test_a_missing_role_is_a_fault_and_no_empty_answer(
    text_format: str, roles: dict[str, Any], code: str
) -> None:
    """Training on it would teach silence; a prediction misses everything but the answer."""
    asked = spec(format=text_format)
    assert TASK.fault(Example(1, roles), asked) == code
    answer = FORMATS.get(text_format).answer_role
    expected = None if code == f"empty:{answer}" else code
    assert TASK.fault(Example(1, roles), asked, predict=True) == expected


def test_alpaca_uses_the_published_prompt_where_there_is_no_chat_template() -> None:
    """With and without an input the prompt is Stanford's, word for word at its end."""
    roles = {"instruction": "Sum.", "input": "1 {2}", "output": "3"}
    written = FORMATS.get("alpaca").write(roles, Wording(chat=False))
    assert isinstance(written, Completion)
    assert written.prompt.endswith("### Instruction:\nSum.\n\n### Input:\n1 {2}\n\n### Response:\n")
    assert written.completion == "3"
    bare = FORMATS.get("alpaca").write({**roles, "input": " "}, Wording(chat=False))
    assert isinstance(bare, Completion)
    assert "Input" not in bare.prompt


def test_alpaca_takes_the_plans_template() -> None:
    """The plan's template replaces the published one; the system prompt stands in front."""
    wording = Wording(chat=False, system="S", instruction_template="[{input}|{instruction}]")
    written = FORMATS.get("alpaca").write({"instruction": "a", "input": "b", "output": "c"}, wording)
    assert written == Completion("S\n\n[b|a]", "c")


@pytest.mark.parametrize(
    "template", ["{input.__class__}", "{instruction[0]}", "{other}", "{input!r}", "{}", "{input"]
)
def test_an_instruction_template_reaches_no_further_than_its_two_fields(
    tokenizer: Any, template: str
) -> None:
    """A plan comes from elsewhere: attribute access, indexing and conversions are refused."""
    with pytest.raises(ConfigError, match="instruction_template"):
        encode(tokenizer, {"instruction": "a", "output": "b"}, format="alpaca", instruction_template=template)


def test_messages_may_be_json_text() -> None:
    """A CSV or Parquet text column holds the list as JSON."""
    roles = chat(("user", "a"), ("assistant", "b"))
    as_json = {"messages": json.dumps(roles["messages"])}
    form = FORMATS.get("messages")
    assert form.write(as_json, Wording(chat=True)) == form.write(roles, Wording(chat=True))


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], "not_messages"), ("nonsense", "not_messages"), (None, "not_messages"), (3, "not_messages"),
        (["a"], "not_messages"), ([{"role": "user"}], "not_messages"),
        ([{"role": "user", "content": 3}], "not_messages"),
        ([{"role": "user", "content": "a"}], "no_assistant_turn"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}], "tool_calls"),
        ('[{"role": "assistant", "content": "a", "tool_calls": [{}]}]', "tool_calls"),
    ],
)  # fmt: skip
def test_broken_messages_are_named_by_a_code(tokenizer: Any, messages: Any, code: str) -> None:
    """`fault` gives the code for quarantine; `encode` refuses the row by number and code."""
    example = Example(7, {"messages": messages})
    assert TASK.fault(example, spec(format="messages")) == code
    with pytest.raises(DataError, match=f"row 7(.|\n)*{code}"):
        TASK.encode([example], tokenizer, contract(tokenizer), spec(format="messages"))


def test_the_plans_system_prompt_yields_to_the_rows_own() -> None:
    """It is put in front only where a row brings none."""
    form, wording = FORMATS.get("messages"), Wording(chat=True, system="plan")
    without = form.write(chat(("user", "a"), ("assistant", "b")), wording)
    own = form.write(chat(("system", "row"), ("user", "a"), ("assistant", "b")), wording)
    assert isinstance(without, Conversation)
    assert isinstance(own, Conversation)
    assert [turn.content for turn in without.messages if turn.role == "system"] == ["plan"]
    assert [turn.content for turn in own.messages if turn.role == "system"] == ["row"]


def test_begin_token_is_not_doubled(tokenizer: Any, shared_data: Path) -> None:
    """The template writes it, and the tokenizer, which would add one itself, does not."""
    real = AutoTokenizer.from_pretrained(shared_data / "models" / "med-llama-5m")
    for each in (tokenizer, real):
        row = encode(each, chat(("user", "a"), ("assistant", "b")), format="messages")
        assert (row.tokens == each.bos_token_id).sum() == 1
    plain = encode(real, {"prompt": "a", "completion": "b"}, use_chat_template=False)
    assert plain.tokens[0] == real.bos_token_id
    assert (plain.tokens == real.bos_token_id).sum() == 1


def test_a_template_that_ends_no_turn_gets_the_plans_end_token(tokenizer: Any) -> None:
    """The end token is appended after the last answer, under loss, and only there."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    row = encode(
        tokenizer,
        chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
        format="messages",
    )
    assert under_loss(tokenizer, row) == "bd</s>"
    assert row.tokens[-1] == tokenizer.eos_token_id
    open_end = encode(tokenizer, chat(("user", "a"), ("assistant", "b"), ("user", "c")), format="messages")
    assert tokenizer.eos_token_id not in open_end.tokens


def test_an_end_token_that_the_template_writes_outside_its_tags_is_under_loss(tokenizer: Any) -> None:
    """Generation tags around the content alone would leave a model that never stops."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{{ '\n' + eos_token + '\n' }}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    turns = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", ""))
    row = encode(tokenizer, chat(*turns), format="messages")
    assert under_loss(tokenizer, row) == "b\n</s>\n</s>"
    assert (row.tokens == tokenizer.eos_token_id).sum() == 2


def test_an_answer_that_opens_with_spaces_hides_no_later_turn(tokenizer: Any) -> None:
    """With offsets that leave spaces out, transformers' own mask stops at such a turn; ours goes on."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    turns = (("user", "a"), ("assistant", "  b"), ("user", " c "), ("assistant", " d  "))
    row = encode(tokenizer, chat(*turns), format="messages")
    assert under_loss(tokenizer, row) == "  b</s> d  </s>"


def test_spaces_at_a_spans_edges_fall_on_the_right_side(tokenizer: Any) -> None:
    """Where offsets leave spaces out, the answer's last space is under loss and the prompt's is not."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    row = encode(tokenizer, {"prompt": "a  ", "completion": "b  "}, use_chat_template=False)
    assert under_loss(tokenizer, row) == "b  </s>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    """Without tags, spans cannot be told when the system prompt moves to the last user turn."""
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' and loop.index0 >= messages | length - 2 %}"
        "{{ '[SYSTEM]' }}{% endif %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = (("user", "secret a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    with pytest.raises(ModelError, match="generation") as caught:
        encode(tokenizer, chat(*turns), format="messages")
    assert "secret" not in str(caught.value)


def test_a_template_that_drops_part_of_an_answer_is_refused(tokenizer: Any) -> None:
    """What the template leaves out of an earlier answer cannot be trained."""
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'].split('|')[-1]")
    with pytest.raises(ModelError, match="cannot tell"):
        encode(tokenizer, chat(("user", "a"), ("assistant", "thought|b")), format="messages")


def test_a_template_that_refuses_the_roles_names_them_and_nothing_else(tokenizer: Any) -> None:
    """Jinja's raise_exception becomes an error of ours without the text."""
    tokenizer.chat_template = "{{ raise_exception('no: ' + messages[0]['content']) }}"
    with pytest.raises(ModelError, match="user, assistant") as caught:
        encode(tokenizer, chat(("user", "secret"), ("assistant", "b")), format="messages")
    assert "secret" not in str(caught.value)


def test_the_row_that_a_template_refuses_is_named(tokenizer: Any) -> None:
    """One conversation of thousands stops the run: whoever has to mend it has to find it."""
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('alternate') }}{% endif %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [
        Example(11, chat(("user", "a"), ("assistant", "b"))),
        Example(12, chat(("user", "a"), ("user", "b"), ("assistant", "c"))),
    ]
    with pytest.raises(ModelError, match="row 12: the chat template refuses"):
        TASK.encode(rows, tokenizer, contract(tokenizer), spec(format="messages"))


def test_conversations_need_a_template(tiny_gpt2: Path) -> None:
    """A tokenizer without a chat template is a clear error."""
    with pytest.raises(ModelError, match="chat template"):
        encode(
            AutoTokenizer.from_pretrained(tiny_gpt2),
            chat(("user", "a"), ("assistant", "b")),
            format="messages",
        )


def test_a_conversation_may_begin_with_the_assistant(tokenizer: Any) -> None:
    """A greeting is under loss like any answer."""
    row = encode(
        tokenizer, chat(("assistant", "Hello"), ("user", "a"), ("assistant", "b")), format="messages"
    )
    assert under_loss(tokenizer, row) == "Hello</s>b</s>"


@pytest.mark.parametrize("greeting", ["a", "sis", "|", "", " Hi ", "\ufffc"])
def test_a_greeting_is_not_looked_for_in_the_header(tokenizer: Any, greeting: str) -> None:
    """An opening turn may repeat letters of `<|assistant|>`, begin with a space, or be empty."""
    turns = (("assistant", greeting), ("user", "x"), ("assistant", "y"))
    row = encode(tokenizer, chat(*turns), format="messages")
    assert under_loss(tokenizer, row) == f"{greeting}</s>y</s>"


def test_bytes_are_those_of_the_answer(tokenizer: Any) -> None:
    """UTF-8 bytes of the text under loss; special tokens are no text, and the cut part does not count."""
    answer = "Fièvre ≥ 38 °C 🤒"
    assert encode(tokenizer, {"prompt": "é?", "completion": answer}).text_bytes == len(answer.encode())
    plain = encode(tokenizer, {"prompt": "é? ", "completion": answer}, use_chat_template=False)
    assert plain.text_bytes == len(answer.encode())
    (cut,) = TASK.encode(
        [Example(1, {"prompt": "a", "completion": "bcd"})], tokenizer,
        contract(tokenizer, max_length=5), spec(use_chat_template=False),
    )  # fmt: skip
    assert cut.text_bytes == len(under_loss(tokenizer, cut).replace("</s>", "").encode())


def test_a_row_whose_answer_was_cut_off_has_no_targets(tokenizer: Any) -> None:
    """It is kept, with `targets` 0, so that it can be counted and left out."""
    (row,) = TASK.encode(
        [Example(1, {"prompt": "word " * 50, "completion": "b"})], tokenizer,
        contract(tokenizer, max_length=16), spec(),
    )  # fmt: skip
    assert TASK.targets(row) == 0
    assert row.cut > 0
    assert row.text_bytes == 0
    assert row.tokens.size == 16


def test_the_first_token_is_never_a_target(tiny_gpt2: Path) -> None:
    """Without a begin token nothing predicts it: it is neither a target nor counted in the bytes."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    row = encode(tokenizer, {"text": "xyz"}, format="text")
    assert row.tokens[-1] == tokenizer.eos_token_id
    assert row.targets[0] == -100
    assert TASK.targets(row) == row.tokens.size - 1
    assert row.text_bytes == len("xyz") - len(tokenizer.decode(row.tokens[:1].tolist()))


def test_a_tokenizer_that_ends_texts_itself_gets_no_second_end_token(tokenizer: Any) -> None:
    """The end token of a post-processor is under loss, once, and is left out of a prompt."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    row = encode(tokenizer, {"prompt": "a", "completion": " b"}, use_chat_template=False)
    assert row.tokens.tolist().count(2) == 1
    assert under_loss(tokenizer, row) == " b</s>"
    prompt = prompt_tokens(Written("a", (), complete=False, special=True), tokenizer)
    assert prompt.tolist() == row.tokens[:2].tolist()


def test_end_token_is_a_target_where_it_is_the_pad_token_too(tiny_gpt2: Path) -> None:
    """After padding, exactly the real end token of each row is under loss."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    data = contract(tokenizer, pad_token_id=tokenizer.eos_token_id)
    rows = TASK.encode(
        [Example(1, {"prompt": "a", "completion": "b"}), Example(2, {"prompt": "a", "completion": "b " * 9})],
        tokenizer, data, spec(),
    )  # fmt: skip
    batch = TASK.collate(rows, data)
    padded = batch["input_ids"][0] == tokenizer.eos_token_id
    assert padded.sum() > 1
    assert (batch["labels"] == tokenizer.eos_token_id).sum(dim=1).tolist() == [1, 1]
    assert batch["labels"][0, rows[0].tokens.size - 1] == tokenizer.eos_token_id


def test_unknown_options_and_formats_name_the_nearest(tokenizer: Any) -> None:
    """A slip of the pen is told what it might have meant."""
    with pytest.raises(ConfigError, match="format"):
        encode(tokenizer, {}, fromat="text")
    with pytest.raises(ConfigError, match="alpaca"):
        encode(tokenizer, {}, format="alpacca")
    with pytest.raises(ConfigError, match="format 'text' have none"):
        encode(tokenizer, {"text": "a"}, format="text", generate=3)


def test_required_roles_leave_out_the_answer_when_predicting() -> None:
    """A file to be answered needs no answers."""
    assert TASK.required_roles(spec(format="alpaca")) == {"instruction": True, "input": False, "output": True}
    assert TASK.required_roles(spec(format="alpaca"), predict=True) == {"instruction": True, "input": False}
    asked = Example(1, chat(("user", "a")))
    assert TASK.fault(asked, spec(format="messages"), predict=True) is None


def test_example_indices_follow_the_input(tokenizer: Any) -> None:
    """Unpacked rows name the example that they were made from."""
    examples = [Example(number, {"prompt": "a", "completion": "b" * number}) for number in range(1, 5)]
    rows = TASK.encode(examples, tokenizer, contract(tokenizer), spec())
    assert [row.example for row in rows] == [0, 1, 2, 3]
    assert all(row.tokens.dtype == np.int32 and row.targets.dtype == np.int32 for row in rows)


def test_a_refused_conversation_is_told_without_a_word_of_it(tokenizer: Any) -> None:
    """A role is a cell of the data: the usual ones are named, of others only how many there are."""
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    roles = chat(("user", "a"), ("Mrs Smith of ward 3", "b"), ("assistant", "c"), ("born 1961", "d"))
    with pytest.raises(ModelError, match="refuses a conversation") as caught:
        encode(tokenizer, roles, format="messages")
    assert "Smith" not in str(caught.value)
    assert "1961" not in str(caught.value)
    assert "4 turns: 2 of the roles assistant, user, 2 of others" in str(caught.value)
