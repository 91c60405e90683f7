"""Evaluation: whole counters whatever the batches, and a model left as it was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from wardround.core.errors import InternalError
from wardround.core.metrics import METRICS
from wardround.core.metrics.contract import LOSS_UNIT
from wardround.core.packed import Counters
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.encoded_text import EncodedText
from wardround.training.evaluation import evaluate, evaluating, predict_rows
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Example

CPU = torch.device("cpu")
CLASSIFY = TaskSpec(name="sequence_classification", metrics="classification")
ANSWER = TaskSpec(name="causal_lm", options={"use_chat_template": False}, metrics="language")
WORDS = [
    "the",
    "patient",
    "has",
    "no",
    "fever",
    "but",
    "a",
    "cough",
    "and",
    "some",
    "pain",
    "since",
    "two",
    "days",
]


def texts(n: int) -> list[str]:
    """Texts of very different lengths."""
    rng = np.random.default_rng(4)
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(1, 14)))) for _ in range(n)]


def opened(folder: Path, spec: TaskSpec) -> tuple[Any, Any, DataContract, list[EncodedText], list[Example]]:
    """Model, tokenizer, contract, 23 encoded rows and their examples."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = TASKS.get(spec.name)
    labels = ("a", "b", "c") if spec is CLASSIFY else ()
    data = DataContract(
        columns={}, labels=labels, max_length=64, pad_token_id=tokenizer.pad_token_id, end_token_ids=(2,)
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, _ = task.load_model(str(folder), data)
    rows = [
        Example(
            i + 1,
            {"text": text} if spec is CLASSIFY else {"prompt": text, "completion": f" {WORDS[i % 9]}"},
            label=i % 3 if spec is CLASSIFY else None,
            id=str(i),
        )
        for i, text in enumerate(texts(23))
    ]
    return model, tokenizer, data, task.encode(rows, tokenizer, data, spec), rows


@pytest.fixture(params=[CLASSIFY, ANSWER], ids=lambda spec: spec.name)
def bench(request: pytest.FixtureRequest, tiny_bert: Path, tiny_llama: Path) -> Any:
    """Either task over its tiny model: spec and all of `opened`."""
    spec: TaskSpec = request.param
    return spec, *opened(tiny_bert if spec is CLASSIFY else tiny_llama, spec)


def scored(bench: Any, rows: list[EncodedText], **keywords: Any) -> Counters:
    """Counters of some rows of a bench."""
    spec, model, _, data, _, _ = bench
    settings = {"batch_size": 4, "device": CPU} | keywords
    return evaluate(model, TASKS.get(spec.name), spec, data, rows, **settings)


def test_counters_do_not_depend_on_the_batch_size(bench: Any) -> None:
    """One row at a time, four, or all at once: equal counts, and a loss equal to float tolerance."""
    spec, *_, data, rows, _ = bench
    alone, four, whole = (scored(bench, rows, batch_size=size) for size in (1, 4, 100))
    for other in (four, whole):
        for name in alone.layout.offsets:
            if name in {"loss", "calibration"}:
                np.testing.assert_allclose(other[name], alone[name], atol=23 * 1e-5 / LOSS_UNIT)
            elif name.startswith("score_"):  # a score at the edge of a bin may fall into the next one
                np.testing.assert_allclose(other[name].cumsum(axis=-1), alone[name].cumsum(axis=-1), atol=1)
            else:
                np.testing.assert_array_equal(other[name], alone[name])
    values = METRICS.get(spec.metrics).compute(whole, data.labels, spec.options).values
    assert values["loss"] > 0


def test_counters_do_not_depend_on_the_order_of_rows(bench: Any) -> None:
    """Rows come in any order."""
    *_, rows, _ = bench
    forwards, backwards = scored(bench, rows, batch_size=1), scored(bench, rows[::-1], batch_size=1)
    np.testing.assert_array_equal(forwards.vector, backwards.vector)


def test_parts_sum_to_the_whole(bench: Any) -> None:
    """What two sites count is, summed, what one with all rows counts: bit for bit, row by row."""
    *_, rows, _ = bench
    parts = scored(bench, rows[:9], batch_size=1).vector + scored(bench, rows[9:], batch_size=1).vector
    np.testing.assert_array_equal(parts, scored(bench, rows, batch_size=1).vector)


def test_rows_without_a_target_are_left_out(bench: Any) -> None:
    """A row without a label, or whose targets were all cut, counts nothing and breaks nothing."""
    *_, rows, _ = bench
    blank = EncodedText(
        tokens=np.array([5, 6, 7], np.int32), targets=np.full(3, -100, np.int32), text_bytes=9
    )
    np.testing.assert_array_equal(
        scored(bench, [blank, *rows, blank], batch_size=1).vector, scored(bench, rows, batch_size=1).vector
    )
    assert not scored(bench, [blank]).vector.any()


def test_no_rows_give_zeros_in_the_full_layout(bench: Any) -> None:
    """A site without a validation part answers in the same shape as all others."""
    spec, _, _, data, _, _ = bench
    counters = scored(bench, [])
    assert counters.layout.digest == TASKS.get(spec.name).counter_layout(data, spec).digest
    assert not counters.vector.any()


def test_dropout_is_off_and_every_modules_mode_comes_back(bench: Any) -> None:
    """Also where some modules were in another mode than the model, as frozen layers may be."""
    _, model, _, _, rows, _ = bench
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in dropouts:
        module.p = 0.5
    model.eval()
    still = scored(bench, rows, batch_size=100)
    model.train()
    frozen = next(iter(model.children()))
    frozen.train(False)
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    np.testing.assert_array_equal(scored(bench, rows, batch_size=100).vector, still.vector)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_the_modes_come_back_after_an_error() -> None:
    """A failing evaluation does not leave training without dropout."""
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2)).train()

    def fail() -> None:
        with evaluating(model):
            assert not model[0].training
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert model.training
    assert model[0].training


def test_training_goes_on_after_an_evaluation(bench: Any) -> None:
    """Nothing that inference mode made stays in the model: gradients equal those without an evaluation."""
    spec, model, _, data, rows, _ = bench
    task = TASKS.get(spec.name)
    batch = task.collate(rows[:5], data)
    model.eval()

    def gradient() -> list[torch.Tensor]:
        model.zero_grad()
        task.example_losses(model, batch).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before = gradient()
    scored(bench, rows)
    for one, other in zip(before, gradient(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_random_state_is_left_alone(bench: Any) -> None:
    """Whether a round is evaluated changes nothing of the rounds after it."""
    *_, rows, _ = bench
    state = torch.random.get_rng_state()
    scored(bench, rows)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_answers_are_scored_once_over_all_rows(tiny_llama: Path) -> None:
    """`generate` counts answers up to the number asked for, whatever the batch size."""
    spec = ANSWER.model_copy(update={"options": {**ANSWER.options, "generate": 5, "max_new_tokens": 4}})
    model, tokenizer, data, rows, _ = opened(tiny_llama, spec)
    task = TASKS.get(spec.name)
    for size in (2, 50):
        counters = evaluate(model, task, spec, data, rows, batch_size=size, device=CPU, tokenizer=tokenizer)
        assert counters["answers"] == 5


@pytest.mark.parametrize("cuts", [(6,), (1, 6), (2, 3, 6), (0, 6)], ids=str)
def test_pieces_of_the_batches_add_up_to_all_of_them(tiny_llama: Path, cuts: tuple[int, ...]) -> None:
    """To the bit, and what is counted of the rows as a whole once: 23 rows are six batches of four."""
    spec = ANSWER.model_copy(update={"options": {**ANSWER.options, "generate": 5, "max_new_tokens": 4}})
    model, tokenizer, data, rows, _ = opened(tiny_llama, spec)

    def counted(batches: range | None) -> Counters:
        return evaluate(
            model, TASKS.get(spec.name), spec, data, rows, batch_size=4, device=CPU, tokenizer=tokenizer,
            batches=batches,
        )  # fmt: skip

    pieces = [counted(range(first, last)) for first, last in zip((0, *cuts), cuts, strict=False)]
    np.testing.assert_array_equal(sum(piece.vector for piece in pieces), counted(None).vector)
    assert [bool(piece["loss"]) for piece in pieces] == [last > 0 for last in cuts]


def test_counters_that_nobody_fills_are_an_error(tiny_llama: Path) -> None:
    """Zeros in place of scores would read as a bad model: without the tokenizer there are no answers."""
    spec = ANSWER.model_copy(update={"options": {**ANSWER.options, "generate": 5}})
    model, _, data, rows, _ = opened(tiny_llama, spec)
    with pytest.raises(InternalError, match="rouge_l"):
        evaluate(model, TASKS.get(spec.name), spec, data, rows, batch_size=4, device=CPU)


class _Counts:
    """A task whose one counter says how many padded cells it was given."""

    def counter_layout(self, data: DataContract, spec: TaskSpec) -> Any:
        return METRICS.get("language").layout((), {})

    def targets(self, encoded: EncodedText) -> int:
        return 1

    def collate(self, encoded: list[EncodedText], data: DataContract) -> dict[str, torch.Tensor]:
        return {"cells": torch.tensor(len(encoded) * max(row.tokens.size for row in encoded))}

    def count(self, model: Any, batch: Any, encoded: Any, data: Any, spec: Any) -> dict[str, NDArray[Any]]:
        given = np.asarray(batch["cells"].item(), np.int64)
        return dict.fromkeys(("loss", "tokens", "bytes", "correct_tokens"), given)

    def count_whole(self, *arguments: Any, **options: Any) -> dict[str, NDArray[Any]]:
        return {}


def test_rows_of_like_length_share_a_batch() -> None:
    """Sixteen rows of two lengths in batches of eight: no cell is padding."""
    rows = [EncodedText(tokens=np.zeros(size, np.int32)) for size in (3, 50) * 8]
    counters = evaluate(
        torch.nn.Identity(), _Counts(), ANSWER, DataContract(columns={}), rows, batch_size=8, device=CPU
    )  # fmt: skip
    assert counters["tokens"] == sum(row.tokens.size for row in rows)


def test_predictions_of_every_task_carry_ids_in_order(bench: Any) -> None:
    """`predict_rows` answers each example under its id, and puts the modes back."""
    spec, model, tokenizer, data, _, examples = bench
    model.train()
    answers = predict_rows(
        model, TASKS.get(spec.name), spec, data, examples[:6], tokenizer=tokenizer, batch_size=4, device=CPU
    )
    assert [answer["id"] for answer in answers] == [example.id for example in examples[:6]]
    assert model.training
