"""What every task has to keep; a new one is covered by being registered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer

from wardround.core.metrics import METRICS
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.encoded_text import EncodedText
from wardround.training.evaluation import evaluate, predict_rows
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Example, Task

LABELS = ("mild", "severe")
TEXTS = ("cough", "chest pain on exertion, for two days", "no fever", "Fièvre ≥ 38 °C 🤒", "aspirin daily")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Opened:
    """A task with its model and rows."""

    task: Task
    spec: TaskSpec
    data: DataContract
    model: torch.nn.Module
    tokenizer: Any
    examples: list[Example]
    encoded: list[EncodedText]


@pytest.fixture(params=TASKS.names())
def opened(request: pytest.FixtureRequest, tiny_llama: Path) -> Opened:
    """Each registered task in turn, over a decoder that both of PEFT's task types can be put on."""
    task = TASKS.get(request.param)
    options = task.Options().model_dump(mode="json")
    spec = TaskSpec(name=request.param, options=options, metrics=task.metric_family)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    data = DataContract(
        columns={}, labels=LABELS, max_length=24, pad_token_id=tokenizer.pad_token_id,
        end_token_ids=(tokenizer.eos_token_id,),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, _ = task.load_model(str(tiny_llama), data)
    examples = [
        Example(number, dict.fromkeys(task.required_roles(spec), text), label=number % 2, id=f"row {number}")
        for number, text in enumerate(TEXTS, start=1)
    ]
    encoded = task.encode(examples, tokenizer, data, spec)
    return Opened(task, spec, data, model.eval(), tokenizer, examples, encoded)


def losses(opened: Opened, rows: list[EncodedText]) -> list[float]:
    """Summed loss of each row, as one batch."""
    with torch.no_grad():
        found = opened.task.example_losses(opened.model, opened.task.collate(rows, opened.data))
    assert found.shape == (len(rows),)
    assert found.dtype == torch.float32
    return [float(value) for value in found]


def test_a_task_is_named_as_its_file_and_names_a_metric_family(opened: Opened) -> None:
    """PEFT knows its type, and the family gives every figure a direction."""
    assert opened.task.name == opened.spec.name
    assert opened.task.peft_task_type in {"CAUSAL_LM", "SEQ_CLS"}
    assert opened.task.caution.endswith(".")
    assert set(METRICS.get(opened.task.metric_family).directions.values()) <= {"min", "max"}


def test_the_class_that_the_model_card_names_loads_the_same_model(opened: Opened, tiny_llama: Path) -> None:
    """Plain transformers, as the card's code has it."""
    loader = getattr(transformers, opened.task.auto_class)
    assert type(loader.from_pretrained(tiny_llama)) is type(opened.model)
    assert "-" in opened.task.pipeline_tag


def test_rows_fit_and_have_targets(opened: Opened) -> None:
    """No row has a fault, none is longer than `max_length`, what was cut is counted; all can be learnt."""
    assert not any(opened.task.fault(example, opened.spec) for example in opened.examples)
    assert all(0 < row.tokens.size <= opened.data.max_length for row in opened.encoded)
    assert sum(opened.task.targets(row) > 0 for row in opened.encoded) >= len(TEXTS) - 1
    whole = opened.task.encode(
        opened.examples, opened.tokenizer, opened.data.model_copy(update={"max_length": 200}), opened.spec
    )
    for cut, row in zip(opened.encoded, whole, strict=True):
        assert (cut.tokens.size + cut.cut, row.cut) == (row.tokens.size, 0)


def test_losses_are_sums_of_each_row_whatever_is_beside_it(opened: Opened) -> None:
    """Never a mean over the batch; padding changes nothing."""
    alone = [losses(opened, [row])[0] for row in opened.encoded]
    assert losses(opened, opened.encoded) == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_counters_fill_their_layout_and_add_up(opened: Opened) -> None:
    """Rows spread over two sites give, summed, what they give in one place."""

    def counted(rows: list[EncodedText]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return evaluate(
            opened.model, opened.task, opened.spec, opened.data, rows,
            batch_size=2, device=CPU, tokenizer=opened.tokenizer,
        ).vector  # fmt: skip

    layout = opened.task.counter_layout(opened.data, opened.spec)
    assert layout.digest == METRICS.get(opened.task.metric_family).layout(LABELS, opened.spec.options).digest
    parts = counted(opened.encoded[:2]) + counted(opened.encoded[2:])
    # Padding changes the last bits of a loss: some units of 2^-20 nats.
    np.testing.assert_allclose(counted(opened.encoded), parts, rtol=1e-6, atol=16)
    assert not counted([]).any()


def test_predictions_need_no_answer_and_come_in_order(opened: Opened) -> None:
    """Each with the id of its row."""
    roles = opened.task.required_roles(opened.spec, predict=True)
    asked = [
        Example(example.number, dict.fromkeys(roles, text), id=example.id)
        for example, text in zip(opened.examples, TEXTS, strict=True)
    ]
    said = predict_rows(
        opened.model, opened.task, opened.spec, opened.data, asked,
        tokenizer=opened.tokenizer, batch_size=2, device=CPU,
    )  # fmt: skip
    assert [row["id"] for row in said] == [example.id for example in asked]
