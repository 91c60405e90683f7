"""The classification task: head, tokens, batches, losses, predictions; over an encoder and two decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
)

from wardround.core.errors import ConfigError, DataError, ModelError, TrainingError
from wardround.core.metrics.contract import LOSS_UNIT
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.encoded_text import EncodedText
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Example
from wardround.training.tasks.sequence_classification import TASK

CPU = torch.device("cpu")
SPEC = TaskSpec(name="sequence_classification", metrics="classification")
LABELS = ("benign", "malignant", "unclear")
TEXTS = [
    "No fever.",
    "The patient is a 61 year old man with chest pain on exertion; aspirin daily.",
    "Fever",
    "What are the symptoms of diabetes? Thirst, hunger and tiredness are common.",
    "ä β 体 🙂",
]


@pytest.fixture(params=["tiny_bert", "tiny_gpt2", "tiny_llama"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Each tiny model in turn: an encoder, a decoder without a pad token, one that has one."""
    chosen: Path = request.getfixturevalue(request.param)
    return chosen


def contract(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> DataContract:
    """The data contract for a tokenizer."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    fields: dict[str, Any] = {"columns": {}, "labels": LABELS, "max_length": 64, "pad_token_id": pad}
    return DataContract(**fields | changes)


def opened(folder: Path, **changes: Any) -> tuple[Any, PreTrainedTokenizerBase, DataContract]:
    """Model with a head of fixed weights, tokenizer and contract."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = contract(tokenizer, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, _ = TASK.load_model(str(folder), data)
        for parameter in model.parameters():  # the tiny models start with logits of nearly zero
            parameter.data.mul_(4.0) if parameter.ndim > 1 else None
    return model.eval(), tokenizer, data


def examples_of(texts: list[str], pairs: list[str | None] | None = None) -> list[Example]:
    """Examples with labels in turn."""
    roles = [
        {"text": text} | ({} if pair is None else {"text_pair": pair})
        for text, pair in zip(texts, pairs or [None] * len(texts), strict=True)
    ]
    return [Example(i + 1, role, label=i % len(LABELS), id=f"row {i}") for i, role in enumerate(roles)]


def test_the_registry_has_the_task() -> None:
    """It is found by the name of its file, which it carries itself."""
    assert TASKS.get("sequence_classification") is TASK
    assert TASK.name == "sequence_classification"
    assert TASK.required_roles(SPEC) == {"text": True, "text_pair": False, "label": True}
    assert TASK.required_roles(SPEC, predict=True) == {"text": True, "text_pair": False}


def test_an_unknown_option_is_refused() -> None:
    """The task has none; a misplaced one does not pass unnoticed."""
    with pytest.raises(ConfigError, match="sequence_classification"):
        TASK.required_roles(SPEC.model_copy(update={"options": {"generate": 3}}))


# Loading


def test_the_head_has_the_plans_labels(folder: Path) -> None:
    """Size and names of the classes are the plan's, and the head is reported as missing."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = TASK.load_model(str(folder), contract(tokenizer))
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert model.config.pad_token_id == contract(tokenizer).pad_token_id
    assert any(key.startswith(("classifier", "score")) for key in info["missing_keys"])


def test_a_decoder_learns_its_pad_token_from_its_tokenizer(tiny_gpt2: Path) -> None:
    """Before the plan names a pad token, it is the tokenizer's own or its end token."""
    model, _ = TASK.load_model(str(tiny_gpt2), DataContract(columns={}, labels=LABELS))
    assert model.config.pad_token_id == AutoTokenizer.from_pretrained(tiny_gpt2).eos_token_id


def test_code_of_a_model_is_never_run(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a caller passes, `trust_remote_code` is off; its other keywords go through."""
    seen: dict[str, Any] = {}
    load = AutoModelForSequenceClassification.from_pretrained

    def spy(path: str, **keywords: Any) -> Any:
        seen.update(keywords)
        return load(path, **keywords)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", spy)
    data = DataContract(columns={}, labels=LABELS)
    TASK.load_model(str(tiny_bert), data, trust_remote_code=True, dtype=torch.bfloat16)
    assert seen["trust_remote_code"] is False
    assert seen["dtype"] is torch.bfloat16


@pytest.mark.parametrize("labels", [(), ("one",), ("twice", "twice")])
def test_fewer_than_two_different_labels_are_refused(tiny_bert: Path, labels: tuple[str, ...]) -> None:
    """A choice needs two."""
    with pytest.raises(ConfigError, match="two labels"):
        TASK.load_model(str(tiny_bert), DataContract(columns={}, labels=labels))


@pytest.fixture
def classifier(tiny_bert: Path, tmp_path: Path) -> Path:
    """Folder of a model that has a head for LABELS already."""
    model, _, _ = opened(tiny_bert)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    return tmp_path


def test_a_head_for_the_same_labels_is_kept(classifier: Path) -> None:
    """A model that was trained for these labels keeps what it knows."""
    model, info = TASK.load_model(str(classifier), DataContract(columns={}, labels=LABELS))
    saved = BertForSequenceClassification.from_pretrained(classifier)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    torch.testing.assert_close(model.classifier.weight, saved.classifier.weight, rtol=0, atol=0)


def test_a_head_of_another_size_is_replaced_and_reported(classifier: Path) -> None:
    """It starts anew, and the caller hears of it."""
    model, info = TASK.load_model(str(classifier), DataContract(columns={}, labels=("no", "yes")))
    assert model.classifier.weight.shape[0] == 2
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}


def test_a_head_with_the_labels_in_another_order_is_refused(classifier: Path) -> None:
    """Its first score means another class than the plan's first label: nobody would notice."""
    with pytest.raises(ModelError, match="another order"):
        TASK.load_model(str(classifier), DataContract(columns={}, labels=LABELS[::-1]))


def test_a_body_of_another_shape_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    """Replacing a head of another size does not let half a body through."""
    opened(tiny_bert)[0].save_pretrained(tmp_path)
    config = BertConfig.from_pretrained(tmp_path)
    config.vocab_size += 8
    config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="other shapes"):
        TASK.load_model(str(tmp_path), DataContract(columns={}, labels=LABELS))


# Rows to tokens


def test_tokens_are_the_tokenizers(folder: Path) -> None:
    """A single text is framed as the tokenizer does it, and nothing is cut or added."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = TASK.encode(examples_of(TEXTS), tokenizer, contract(tokenizer, max_length=100), SPEC)
    for index, (row, text) in enumerate(zip(encoded, TEXTS, strict=True)):
        assert row.tokens.tolist() == tokenizer(text)["input_ids"]
        assert row.text_bytes == len(text.encode())
        assert (row.cut, row.example, row.label) == (0, index, index % 3)
        assert row.tokens.dtype == np.int32
        assert not row.segments.size


def test_long_rows_are_cut_and_the_cut_is_counted(tiny_bert: Path) -> None:
    """Kept and cut tokens together are the whole row, and the frame stays."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    whole = len(tokenizer(TEXTS[1])["input_ids"])
    row = TASK.encode(examples_of(TEXTS[1:2]), tokenizer, contract(tokenizer, max_length=10), SPEC)[0]
    assert row.tokens.size == 10
    assert row.cut == whole - 10
    assert row.tokens[0] == tokenizer.cls_token_id
    assert row.tokens[-1] == tokenizer.sep_token_id


def test_of_a_pair_the_longer_text_is_cut(tiny_bert: Path) -> None:
    """A short question survives a long note, with its token types."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = examples_of(["Flu?"], [TEXTS[1]])
    row = TASK.encode(rows, tokenizer, contract(tokenizer, max_length=24), SPEC)[0]
    question = tokenizer("Flu?", add_special_tokens=False)["input_ids"]
    assert row.tokens.size == row.segments.size == 24
    assert row.tokens[1 : 1 + len(question)].tolist() == question
    assert row.segments.tolist() == [0] * (len(question) + 2) + [1] * (22 - len(question))
    assert row.cut == len(tokenizer("Flu?", TEXTS[1])["input_ids"]) - 24


def test_truncating_leaves_no_trace_in_the_tokenizer(tiny_bert: Path) -> None:
    """A row that was cut changes nothing for the next one."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    data = contract(tokenizer, max_length=10)
    both = TASK.encode(examples_of([TEXTS[1], TEXTS[3]]), tokenizer, data, SPEC)
    alone = TASK.encode(examples_of([TEXTS[3]]), tokenizer, data, SPEC)
    np.testing.assert_array_equal(both[1].tokens, alone[0].tokens)
    assert both[1].cut == alone[0].cut > 0


def test_no_room_for_the_frame_is_an_error(tiny_bert: Path) -> None:
    """A pair needs three tokens around it; a tokenizer that cannot cut so far must not be believed."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = examples_of(["Fever, cough."], ["Yes, both."])
    with pytest.raises(ConfigError, match=r"data\.max_length"):
        TASK.encode(rows, tokenizer, contract(tokenizer, max_length=2), SPEC)


def test_packing_is_refused(tiny_bert: Path) -> None:
    """A classifier reads one row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    with pytest.raises(ConfigError, match="packing"):
        TASK.encode(examples_of(TEXTS), tokenizer, contract(tokenizer, packing=True), SPEC)


@pytest.mark.parametrize(
    ("roles", "code"),
    [
        ({}, "empty:text"),
        ({"text": ""}, "empty:text"),
        ({"text": ["secret"]}, "not_text:text"),
        ({"text": "a", "text_pair": {"secret": 1}}, "not_text:text_pair"),
    ],
)
def test_what_is_no_text_is_named_without_its_content(tiny_bert: Path, roles: Any, code: str) -> None:
    """A row that cannot be read has a code; one that slips through is refused by number."""
    example = Example(17, roles, label=0)
    assert TASK.fault(example, SPEC) == code
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    with pytest.raises(DataError, match="row 17") as caught:
        TASK.encode([example], tokenizer, contract(tokenizer), SPEC)
    assert "secret" not in str(caught.value)
    assert TASK.fault(examples_of(TEXTS)[0], SPEC) is None


def test_a_text_of_which_no_token_is_left_is_still_answered(tiny_gpt2: Path) -> None:
    """The end token stands for it: an empty sequence would stop the whole batch."""
    model, tokenizer, data = opened(tiny_gpt2)
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "")
    rows = examples_of([" ", TEXTS[0]])
    encoded = TASK.encode(rows, tokenizer, data, SPEC)
    assert encoded[0].tokens.tolist() == [tokenizer.eos_token_id]
    assert len(TASK.predict(model, tokenizer, rows, data, SPEC, batch_size=2, device=CPU)) == 2


# Batches and losses


def test_a_batch_is_padded_to_its_longest_row() -> None:
    """Tokens, mask, labels; token types only where a row is a pair."""
    data = DataContract(columns={}, labels=LABELS, pad_token_id=9)
    single = EncodedText(tokens=np.array([5, 6, 7], np.int32), label=2)
    short = EncodedText(tokens=np.array([4], np.int32))
    batch = TASK.collate([single, short], data)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [2, -1]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    pair = EncodedText(tokens=np.array([5, 6], np.int32), segments=np.array([0, 1], np.int32))
    assert TASK.collate([single, pair], data)["token_type_ids"].tolist() == [[0, 0, 0], [0, 1, 0]]
    assert [TASK.targets(row) for row in (single, short)] == [1, 0]


def test_losses_are_those_of_each_row_alone(folder: Path) -> None:
    """Neither the neighbours in the batch nor padding change a row's loss; it is −log of the softmax."""
    model, tokenizer, data = opened(folder)
    encoded = TASK.encode(examples_of(TEXTS), tokenizer, data, SPEC)
    with torch.no_grad():
        together = TASK.example_losses(model, TASK.collate(encoded, data))
        alone = torch.cat([TASK.example_losses(model, TASK.collate([row], data)) for row in encoded])
        plain = [
            -model(**tokenizer(text, return_tensors="pt")).logits.log_softmax(-1)[0, index % 3]
            for index, text in enumerate(TEXTS)
        ]
    assert together.shape == (len(TEXTS),)
    assert together.dtype == torch.float32
    assert together.std() > 0.01
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, torch.stack(plain), rtol=1e-5, atol=1e-5)


def test_token_types_reach_the_model(tiny_bert: Path) -> None:
    """A pair is read with the tokenizer's token types, as the model was trained."""
    model, tokenizer, data = opened(tiny_bert)
    rows = TASK.encode(examples_of(["Flu?"], ["Yes, it is."]), tokenizer, data, SPEC)
    batch = TASK.collate(rows, data)
    expected = tokenizer("Flu?", "Yes, it is.", return_tensors="pt")
    with torch.no_grad():
        loss = TASK.example_losses(model, batch)
        right = -model(**expected).logits.log_softmax(-1)[:, 0]
        without = TASK.example_losses(model, {k: v for k, v in batch.items() if k != "token_type_ids"})
    torch.testing.assert_close(loss, right, rtol=1e-5, atol=1e-6)
    assert (loss - without).abs().item() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_float32_and_differentiable(tiny_bert: Path, dtype: torch.dtype) -> None:
    """In half precision too the loss is computed in float32."""
    model, tokenizer, data = opened(tiny_bert)
    model.to(dtype)
    losses = TASK.example_losses(
        model, TASK.collate(TASK.encode(examples_of(TEXTS), tokenizer, data, SPEC), data)
    )
    assert losses.dtype == torch.float32
    losses.sum().backward()
    assert model.classifier.weight.grad.abs().sum() > 0


def test_counters_of_a_batch(tiny_bert: Path) -> None:
    """Loss, matrix and rows agree with what the losses and the logits say."""
    model, tokenizer, data = opened(tiny_bert)
    encoded = TASK.encode(examples_of(TEXTS), tokenizer, data, SPEC)
    batch = TASK.collate(encoded, data)
    counted = TASK.count(model, batch, encoded, data, SPEC)
    with torch.no_grad():
        losses = TASK.example_losses(model, batch)
        predicted = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
    assert set(counted) == set(TASK.counter_layout(data, SPEC).offsets)
    assert counted["examples"] == len(TEXTS)
    assert float(counted["loss"]) * LOSS_UNIT == pytest.approx(losses.sum().item(), rel=1e-5)
    matrix = np.zeros((3, 3), np.int64)
    np.add.at(matrix, (batch["labels"].numpy(), predicted.numpy()), 1)
    np.testing.assert_array_equal(counted["confusion"], matrix)


def test_scores_that_are_not_finite_are_an_error(tiny_bert: Path) -> None:
    """NaN is reported by a code that may leave the site, not counted."""
    model, tokenizer, data = opened(tiny_bert)
    encoded = TASK.encode(examples_of(TEXTS), tokenizer, data, SPEC)
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(TrainingError) as caught:
        TASK.count(model, TASK.collate(encoded, data), encoded, data, SPEC)
    assert caught.value.code == "non_finite_loss"


# Predictions


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_predictions_come_in_the_order_of_the_rows(folder: Path, batch_size: int) -> None:
    """Rows are batched by length and answered in their own order, by id; labels are not needed."""
    model, tokenizer, data = opened(folder)
    rows = [Example(row.number, row.roles, id=row.id) for row in examples_of(TEXTS)]
    answers = TASK.predict(model, tokenizer, rows, data, SPEC, batch_size=batch_size, device=CPU)
    assert [answer["id"] for answer in answers] == [row.id for row in rows]
    for answer, text in zip(answers, TEXTS, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert list(answer["probabilities"]) == list(LABELS)
        assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
        assert answer["label"] == LABELS[int(np.argmax(expected))]
    json.dumps(answers, allow_nan=False)


def test_no_rows_give_no_predictions(tiny_bert: Path) -> None:
    """An empty file is answered with nothing."""
    model, tokenizer, data = opened(tiny_bert)
    assert TASK.predict(model, tokenizer, [], data, SPEC, batch_size=4, device=CPU) == []
