"""Classification: encoding, losses, counts, predictions; encoders and decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoTokenizer
from wardround.core.errors import ConfigError, DataError, TrainingError
from wardround.core.metrics.classification import METRICS
from wardround.core.metrics.contract import LOSS_UNIT
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.evaluation import evaluate, predict_rows
from wardround.training.tasks.contract import Encoded, Example
from wardround.training.tasks.sequence_classification import TASK

CPU = torch.device("cpu")
SPEC = TaskSpec(name="sequence_classification", metrics="classification")
LABELS = ("background", "methods", "results")
FOLDERS = ["tiny_bert", "tiny_llama", "tiny_gpt2"]


def opened(folder: Path, **fields: Any) -> tuple[Any, Any, DataContract]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    known = {"columns": {}, "labels": LABELS, "max_length": 48, "pad_token_id": pad}
    data = DataContract(**{**known, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, _ = TASK.load_model(str(folder), data)
    return model.eval(), tokenizer, data


def examples(count: int) -> list[Example]:
    rng = np.random.default_rng(2)
    words = "fever cough pain heart rate of the patient was measured and not normal".split()
    return [
        Example(n, {"text": " ".join(rng.choice(words, int(rng.integers(1, 12))))}, label=n % 3, id=f"r{n}")
        for n in range(count)
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_rows_loss_is_independent_of_its_neighbours(request: pytest.FixtureRequest, folder: str) -> None:
    """Encoders and decoders, padded or not (a decoder reads the last token that is no padding)."""
    model, tokenizer, data = opened(request.getfixturevalue(folder))
    rows = TASK.encode(examples(9), tokenizer, data, SPEC)
    assert len({row.tokens.size for row in rows}) > 3
    together = TASK.example_losses(model, TASK.collate(rows, data))
    alone = torch.cat([TASK.example_losses(model, TASK.collate([row], data)) for row in rows])
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("folder", FOLDERS)
def test_loading_names_the_labels_and_what_the_checkpoint_lacks(
    request: pytest.FixtureRequest, folder: str
) -> None:
    """The head has the plan's size and label names; its weights are reported as missing."""
    path = request.getfixturevalue(folder)
    data = DataContract(columns={}, labels=LABELS)  # before the plan knows the pad token
    model, info = TASK.load_model(str(path), data)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.num_labels == 3
    assert info["missing_keys"]
    assert model.config.pad_token_id is not None


def test_a_head_of_another_size_is_replaced_and_reported(tiny_bert: Path, tmp_path: Path) -> None:
    """A two-class checkpoint serves three classes: the head is fresh, and says so."""
    model, _, _ = opened(tiny_bert, labels=("no", "yes"))
    model.save_pretrained(tmp_path)
    again, info = TASK.load_model(str(tmp_path), DataContract(columns={}, labels=LABELS, pad_token_id=0))
    assert again.config.num_labels == 3
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}


def test_fewer_than_two_labels_are_refused(tiny_bert: Path) -> None:
    """A choice needs two."""
    with pytest.raises(ConfigError, match="two labels"):
        TASK.load_model(str(tiny_bert), DataContract(columns={}, labels=("one",)))


def test_pairs_carry_segments_and_singles_do_not(tiny_bert: Path) -> None:
    """A mixed batch has token types, zeros for the single; each row's loss is its own."""
    model, tokenizer, data = opened(tiny_bert)
    pair = Example(1, {"text": "fever", "text_pair": "cough and pain"}, label=0)
    single = Example(2, {"text": "fever of the patient"}, label=1)
    assert "token_type_ids" not in TASK.collate(TASK.encode([single], tokenizer, data, SPEC), data)
    rows = TASK.encode([pair, single], tokenizer, data, SPEC)
    expected = tokenizer("fever", "cough and pain")
    assert rows[0].tokens.tolist() == expected["input_ids"]
    assert rows[0].segments.tolist() == expected["token_type_ids"]
    together = TASK.example_losses(model, TASK.collate(rows, data))
    alone = torch.cat([TASK.example_losses(model, TASK.collate([row], data)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_truncation_says_what_it_cut_and_keeps_the_frame(tiny_bert: Path) -> None:
    """The closing token survives; of a pair the longer text gives way."""
    _, tokenizer, data = opened(tiny_bert, max_length=8)
    (row,) = TASK.encode([Example(1, {"text": "word " * 30}, label=0)], tokenizer, data, SPEC)
    whole = len(tokenizer("word " * 30)["input_ids"])
    assert row.tokens.size == 8
    assert row.cut == whole - 8
    assert row.tokens[0] == tokenizer.cls_token_id
    assert row.tokens[-1] == tokenizer.sep_token_id
    (pair,) = TASK.encode(
        [Example(1, {"text": "word " * 30, "text_pair": "no"}, label=0)], tokenizer, data, SPEC
    )
    short = tokenizer("no", add_special_tokens=False)["input_ids"]
    assert pair.tokens[-1 - len(short) : -1].tolist() == short


def test_texts_that_are_no_text_are_named_by_a_code(tiny_bert: Path) -> None:
    """By row number and role, without the value."""
    _, tokenizer, data = opened(tiny_bert)
    broken = Example(9, {"text": 3.5}, label=0)
    assert TASK.fault(broken, SPEC) == "not_text:text"
    with pytest.raises(DataError, match="row 9"):
        TASK.encode([broken], tokenizer, data, SPEC)


def test_packing_is_refused(tiny_bert: Path) -> None:
    """A classifier reads one row at a time."""
    _, tokenizer, data = opened(tiny_bert, packing=True)
    with pytest.raises(ConfigError, match="packing"):
        TASK.encode(examples(2), tokenizer, data, SPEC)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_is_independent_of_the_batch_size(tiny_bert: Path, batch_size: int) -> None:
    """Counts equal those of a loop over single rows; the model's modes are put back module by module."""
    model, tokenizer, data = opened(tiny_bert)
    rows = TASK.encode(examples(31), tokenizer, data, SPEC)
    unlabelled = TASK.encode([Example(99, {"text": "fever"})], tokenizer, data, SPEC)
    model.train()
    model.bert.pooler.eval()
    counters = evaluate(model, TASK, SPEC, data, [*rows, *unlabelled], batch_size=batch_size, device=CPU)
    assert model.training
    assert model.bert.encoder.training
    assert not model.bert.pooler.training
    model.eval()
    predicted, losses = [], []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor(row.tokens[None].astype(np.int64))).logits[0].double()
            predicted.append(int(logits.argmax()))
            losses.append(-float(logits.log_softmax(-1)[row.label]))
    truth = [row.label for row in rows]
    confusion = np.zeros((3, 3), int)
    for true, guess in zip(truth, predicted, strict=True):
        confusion[true, guess] += 1
    np.testing.assert_array_equal(counters["confusion"], confusion)
    assert int(counters["examples"]) == 31
    assert float(counters["loss"]) * LOSS_UNIT == pytest.approx(sum(losses), rel=1e-5)
    scores = METRICS.compute(counters, LABELS, {})
    assert scores.values["macro_f1"] == pytest.approx(
        f1_score(truth, predicted, average="macro", zero_division=0.0)
    )


def test_evaluating_nothing_gives_zeros(tiny_bert: Path) -> None:
    """A site without validation rows adds nothing to the sum."""
    model, _, data = opened(tiny_bert)
    counters = evaluate(model, TASK, SPEC, data, [], batch_size=4, device=CPU)
    assert not counters.vector.any()
    assert counters.vector.dtype == np.int64


def test_scores_that_are_not_finite_are_an_error_and_no_count(tiny_bert: Path) -> None:
    """NaN never becomes an integer."""
    model, tokenizer, data = opened(tiny_bert)
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    rows = TASK.encode(examples(3), tokenizer, data, SPEC)
    with pytest.raises(TrainingError) as caught:
        evaluate(model, TASK, SPEC, data, rows, batch_size=4, device=CPU)
    assert caught.value.code == "non_finite_loss"


def test_predictions_keep_the_order_and_name_labels(tiny_bert: Path) -> None:
    """Label and probabilities of each example equal those of a pass of its own; no label is needed."""
    model, tokenizer, data = opened(tiny_bert)
    asked = [Example(e.number, e.roles, id=e.id) for e in examples(9)]
    answers = predict_rows(
        model, TASK, SPEC, data, asked, tokenizer=tokenizer, batch_size=4, device=CPU
    )
    assert [answer["id"] for answer in answers] == [example.id for example in asked]
    for example, answer in zip(asked, answers, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(example.roles["text"], return_tensors="pt")).logits[0]
        expected = logits.double().softmax(-1).tolist()
        assert list(answer["probabilities"]) == list(LABELS)
        assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
        assert answer["label"] == LABELS[int(np.argmax(expected))]


def test_targets_and_roles() -> None:
    """One class a row, none without a label; predictions ask for no label."""
    assert TASK.targets(Encoded(np.array([1], np.int32), label=2)) == 1
    assert TASK.targets(Encoded(np.array([1], np.int32))) == 0
    assert TASK.required_roles(SPEC) == {"text": True, "text_pair": False, "label": True}
    assert "label" not in TASK.required_roles(SPEC, predict=True)
