"""The head of a causal LM computes what the loss reads; the loss and its gradient stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from wardround.training.tasks._target_places import at_places, head_at
from wardround.training.tasks.causal_lm import TASK

NO_LOSS = -100
TARGETS = 7


def batch() -> dict[str, torch.Tensor]:
    """Three rows with prompts and padding, seven targets."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 200, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = mask[2, 4:] = 0
    labels = torch.full_like(ids, NO_LOSS)
    for row, place in ((0, slice(5, 9)), (1, slice(4, 6)), (2, slice(3, 4))):
        labels[row, place] = ids[row, place]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def with_adapter(folder: Path, **options: Any) -> Any:
    """A model with moved factors on its queries."""
    base = AutoModelForCausalLM.from_pretrained(folder)
    options = {"r": 2, "target_modules": ["q_proj"]} | options
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


def plainly(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss of each row, from all logits."""
    logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits[:, :-1]
    losses = F.cross_entropy(
        logits.flatten(0, 1), given["labels"][:, 1:].flatten(), ignore_index=NO_LOSS, reduction="none"
    )
    return losses.view(len(logits), -1).sum(dim=1)


def gradients(model: Any, losses: torch.Tensor) -> list[torch.Tensor]:
    """Of what trains, by the sum of these."""
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(losses.sum(), moving))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, (1, TARGETS)),
        ({"target_modules": ["q_proj", "lm_head"]}, (3, 9)),
        ({"modules_to_save": ["lm_head"]}, (3, 9)),
    ],
    ids=["frozen", "adapted", "in full"],
)
def test_the_loss_and_its_gradient_are_those_of_all_logits(
    tiny_llama: Path, options: dict[str, Any], seen: tuple[int, int]
) -> None:
    """A frozen head sees the target places and no others; one that trains is left alone."""
    model, given, shapes = with_adapter(tiny_llama, **options), batch(), []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, output: shapes.append(tuple(output.shape[:-1]))
    )
    losses = TASK.example_losses(model, given)
    assert shapes == [seen]
    expected = plainly(model, given)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    for own, other in zip(gradients(model, losses), gradients(model, expected), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-7)


def test_rows_without_a_target_cost_nothing_and_break_nothing(tiny_llama: Path) -> None:
    """No place at all: losses of zero."""
    given = batch()
    given["labels"][:] = NO_LOSS
    assert TASK.example_losses(with_adapter(tiny_llama), given).tolist() == [0.0, 0.0, 0.0]


def test_one_row_of_one_target_is_not_taken_for_all_its_logits(tiny_llama: Path) -> None:
    """Two tokens, one of them a target: (1, 1) against (1, 2)."""
    given = {name: tensor[:1, 5:7] for name, tensor in batch().items()}
    model = with_adapter(tiny_llama)
    torch.testing.assert_close(TASK.example_losses(model, given), plainly(model, given))


def test_the_head_is_whole_again_afterwards(tiny_llama: Path) -> None:
    """Also where the pass within has failed: who generates needs every token's logits."""
    model, given = with_adapter(tiny_llama), batch()
    places = given["labels"][:, 1:] != NO_LOSS

    def failing() -> None:
        with head_at(model, places):
            raise RuntimeError("the device has no memory left")

    with pytest.raises(RuntimeError, match="memory"):
        failing()
    assert model(input_ids=given["input_ids"]).logits.shape[:2] == (3, 9)


def test_a_head_that_gets_something_else_is_left_alone(tiny_llama: Path) -> None:
    """States that are not one a token, such as those of a model that cuts them itself."""
    model, given = with_adapter(tiny_llama), batch()
    places = given["labels"][:, 1:] != NO_LOSS
    with head_at(model, places):
        assert model(input_ids=given["input_ids"], logits_to_keep=2).logits.shape[:2] == (3, 2)
    whole = model(input_ids=given["input_ids"]).logits
    assert torch.equal(at_places(whole, places), whole[:, :-1][places])
