"""Layers of the vocabulary are known by what they are, whatever they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from wardround.client.policy import PlanPolicy, RefusedPlanError, require_no_vocabulary
from wardround.training.vocabulary import of_vocabulary

PARTS = {"dictionary", "places", "thinking", "speaking", "judging"}


class Odd(torch.nn.Module):
    """A model whose parts have names of their own."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.config: Any = {"model_type": "odd", "tie_word_embeddings": tied}
        self.dictionary = torch.nn.Embedding(50, 8)
        self.places = torch.nn.Embedding(16, 8)
        self.thinking = torch.nn.Linear(8, 8)
        self.speaking = torch.nn.Linear(8, 50, bias=False)
        self.judging = torch.nn.Linear(8, 2)
        if tied:
            self.speaking.weight = self.dictionary.weight

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.dictionary

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.speaking

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.speaking(self.thinking(self.dictionary(ids)))


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What an adapter trains."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("targets", "saved", "found"),
    [
        (["thinking"], ["judging"], set()),
        (["thinking", "dictionary"], [], {"dictionary"}),
        (["places"], [], {"places"}),
        (["speaking"], [], {"speaking"}),
        (["thinking"], ["speaking"], {"speaking"}),
        (["thinking"], ["dictionary"], {"dictionary"}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # PEFT speaks of tied weights, which is not what this looks at
def test_embeddings_and_the_layer_that_gives_out_words(
    targets: list[str], saved: list[str], found: set[str], *, tied: bool
) -> None:
    """By factors or in full, tied or not; other layers and heads are none of it."""
    config = LoraConfig(r=2, target_modules=targets, modules_to_save=saved or None)
    model = get_peft_model(Odd(tied=tied), config)  # type: ignore[arg-type]  # PEFT takes any module
    names = of_vocabulary(model, trained(model))
    assert {part for name in names for part in name.split(".") if part in PARTS} == found


def test_a_policy_refuses_them_unless_it_allows_them() -> None:
    """By the first name, and how many more there are."""
    require_no_vocabulary(PlanPolicy(), ())
    require_no_vocabulary(PlanPolicy(vocabulary=True), ("dictionary.lora_A",))
    with pytest.raises(RefusedPlanError, match="the layer that gives out words") as refused:
        require_no_vocabulary(PlanPolicy(), ("dictionary.lora_A", "dictionary.lora_B"))
    assert "dictionary.lora_A and 1 more" in str(refused.value)
    assert "plans.vocabulary" in refused.value.refusals[0].remedy
