"""MPS has no float64: what is counted is copied to the CPU before it is widened."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from wardround.core.plan import DataContract, TaskSpec
from wardround.training.evaluation import evaluate, predict_rows
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Example

CPU = torch.device("cpu")
LEAVES_THE_DEVICE = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist)


class OnDevice(torch.Tensor):
    """A tensor that stands for one on MPS: it refuses float64 as that does, until it is copied to the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation passes through here."""
        result = super().__torch_function__(func, types, args, kwargs or {})
        if not isinstance(result, torch.Tensor):
            return result
        if func in LEAVES_THE_DEVICE:
            return result.as_subclass(torch.Tensor)
        if result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


class Model(torch.nn.Module):
    """Scores that lie on the device."""

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.width, self.causal = width, causal

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        """Some scores for each token, or for each row."""
        shape = (*input_ids.shape, self.width) if self.causal else (len(input_ids), self.width)
        scores = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        return SimpleNamespace(logits=scores.as_subclass(OnDevice))


def test_the_stand_in_refuses_what_mps_refuses() -> None:
    """Widening first fails, widening on the CPU does not."""
    tensor = torch.ones(2).as_subclass(OnDevice)
    with pytest.raises(TypeError, match="float64"):
        tensor.double()
    with pytest.raises(TypeError, match="float64"):
        (tensor + 1).to(torch.float64)
    assert tensor.cpu().double().dtype == torch.float64


@pytest.mark.parametrize("name", ["causal_lm", "sequence_classification"])
def test_no_task_widens_on_the_device(name: str, tiny_llama: Path) -> None:
    """Scoring, and a classifier's predictions."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    data = DataContract(
        columns={}, labels=("a", "b"), pad_token_id=tokenizer.pad_token_id, end_token_ids=(2,)
    )
    task = TASKS.get(name)
    spec = TaskSpec(name=name, metrics=task.metric_family)
    roles = dict.fromkeys(task.required_roles(spec), "chest pain")
    examples = [Example(number, roles, label=number) for number in (0, 1)]
    model = Model(len(tokenizer) if name == "causal_lm" else 2, causal=name == "causal_lm")
    encoded = task.encode(examples, tokenizer, data, spec)
    counters = evaluate(model, task, spec, data, encoded, batch_size=2, device=CPU, tokenizer=tokenizer)
    assert counters["loss"] > 0
    if name == "sequence_classification":
        said = predict_rows(
            model, task, spec, data, examples, tokenizer=tokenizer, batch_size=2, device=CPU
        )  # fmt: skip
        assert len(said) == 2
