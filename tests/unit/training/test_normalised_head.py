"""A head over normalised features: what it reads, what is saved, what has to be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, ModelError
from wardround.training.adapters._normalised_head import head_input
from wardround.training.adapters.lora import ADAPTER, LoraOptions
from wardround.training.workbench import Workbench

TEXTS = tuple(f"word{i} of word{3 * i} and word{i * i}" for i in range(12))
WEIGHT, BIAS = "base_model.model.classifier.weight", "base_model.model.classifier.bias"


def head_bench(folder: Path, toys: Any, **options: Any) -> Workbench:
    """The head alone, unless `options` say otherwise."""
    given = {"targets": "none", "public_texts": TEXTS, **options}
    bench: Workbench = toys.bench(folder, toys.classifier, **given)
    return bench


def moved(bench: Workbench, seed: int = 0) -> Workbench:
    """The same with random numbers in the adapter."""
    vector = np.random.default_rng(seed).normal(0, 0.5, bench.layout.size).astype(np.float32)
    bench.load_adapter(bench.fresh.with_vector(vector))
    return bench


def read_by_head(bench: Workbench, text: str) -> torch.Tensor:
    """What the head's own forward gets of a text, (features,)."""
    head = next(m for n, m in bench.model.named_modules() if n.endswith("classifier.modules_to_save.default"))
    plain, seen = head.forward, []
    head.forward = lambda x: (seen.append(x), plain(x))[1]
    try:
        with torch.inference_mode():
            bench.model(**bench.tokenizer(text, return_tensors="pt"))
    finally:
        del head.forward
    return seen[0][0]


def logits_of(model: torch.nn.Module, bench: Workbench) -> torch.Tensor:
    """Of all texts, one by one."""
    with torch.inference_mode():
        return torch.cat([model(**bench.tokenizer(text, return_tensors="pt")).logits for text in TEXTS])


def test_the_head_alone_trains_and_its_tensors_have_pefts_names(tiny_bert: Path, toys: Any) -> None:
    """No factor is in the layout."""
    bench = head_bench(tiny_bert, toys, public_texts=())
    assert sorted(bench.layout.offsets) == [BIAS, WEIGHT]
    assert sorted(bench.parameters()) == [BIAS, WEIGHT]
    assert head_input(bench.model) is None


def test_features_of_the_public_texts_have_mean_zero_and_mean_length_one(tiny_bert: Path, toys: Any) -> None:
    """μ and s are those of the texts, as the head reads them."""
    bench = head_bench(tiny_bert, toys)
    read = torch.stack([read_by_head(bench, text) for text in TEXTS])
    assert read.mean(0).abs().max() < 1e-4
    assert read.norm(dim=1).mean() == pytest.approx(1.0, abs=1e-4)


def test_the_constants_do_not_depend_on_what_was_drawn_or_trained_before(tiny_bert: Path, toys: Any) -> None:
    """Every site finds the same ones."""
    first, second = head_bench(tiny_bert, toys, seed=1), head_bench(tiny_bert, toys, seed=2)
    one, other = head_input(first.model), head_input(second.model)
    assert one is not None
    assert other is not None
    assert np.array_equal(one.mean, other.mean)
    assert one.distance == other.distance


@pytest.mark.parametrize("options", [{}, {"targets": ("query",), "r": 2}], ids=["head", "lora and head"])
def test_the_saved_adapter_answers_alike_without_the_constants(
    options: dict[str, Any], tiny_bert: Path, toys: Any, tmp_path: Path
) -> None:
    """Plain PEFT on the plain base."""
    bench = moved(head_bench(tiny_bert, toys, **options))
    expected = logits_of(bench.model, bench)
    ADAPTER.save(bench.model, tmp_path / "adapter", "the-base")
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert torch.allclose(logits_of(plain, bench), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1  # or anything would be alike


def test_a_base_in_half_precision_hands_the_head_what_float32_normalises(tiny_bert: Path, toys: Any) -> None:
    """The head works in float32, whatever the base."""
    bench = head_bench(tiny_bert, toys, dtype="bfloat16")
    read = torch.stack([read_by_head(bench, text) for text in TEXTS])
    assert read.dtype == torch.float32
    assert read.norm(dim=1).mean() == pytest.approx(1.0, abs=1e-3)


def test_a_saved_adapter_is_gone_on_from_in_the_coordinates_that_federate(
    tiny_bert: Path, toys: Any, tmp_path: Path
) -> None:
    """Saved and read again it is the same, also under other constants."""
    bench = moved(head_bench(tiny_bert, toys))
    before = bench.read_adapter()
    ADAPTER.save(bench.model, tmp_path / "adapter", "the-base")
    again = ADAPTER.read_saved(tmp_path / "adapter", bench.model)
    # b − W μ / s and back: float32 loses |μ|/s times its last bits, on one processor more than on another.
    assert np.allclose(again.vector, before.vector, rtol=1e-5, atol=5e-5)

    other = head_bench(tiny_bert, toys, public_texts=TEXTS[:8])
    other.load_adapter(ADAPTER.read_saved(tmp_path / "adapter", other.model))
    assert torch.allclose(logits_of(other.model, other), logits_of(bench.model, bench), atol=1e-4)
    assert not np.allclose(other.read_adapter().vector, before.vector, rtol=1e-2)


def test_gradients_are_of_the_normalised_features(tiny_bert: Path, toys: Any) -> None:
    """∂L/∂W = Σ g zᵀ with z what the head reads: the coordinates in which a private gradient is clipped."""
    bench = head_bench(tiny_bert, toys)
    text = TEXTS[3]
    output = bench.model(**bench.tokenizer(text, return_tensors="pt")).logits
    output[0, 1].backward()
    gradient = bench.parameters()[WEIGHT].grad
    assert gradient is not None
    assert torch.allclose(gradient[1], read_by_head(bench, text), atol=1e-6)


def test_a_head_of_the_checkpoints_own_answers_as_before(tiny_bert: Path, toys: Any, tmp_path: Path) -> None:
    """It is rewritten into the coordinates that federate, not taken for one that was drawn in them."""
    whole = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3).eval()
    whole.save_pretrained(tmp_path / "whole")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "whole")
    bench = head_bench(tmp_path / "whole", toys, modules_to_save=("classifier",))
    assert head_input(bench.model) is not None
    assert torch.allclose(logits_of(bench.model, bench), logits_of(whole, bench), atol=1e-4)
    assert logits_of(whole, bench).std() > 1e-3


@pytest.mark.parametrize(
    ("folder", "options", "said"),
    [
        ("tiny_llama", {"targets": "none"}, "one linear head with a bias"),
        ("tiny_bert", {"modules_to_save": ("pooler.dense",)}, "one linear head with a bias"),
        ("tiny_bert", {"public_texts": ("the same",) * 8}, "one and the same"),
    ],
)
def test_what_cannot_be_normalised_is_refused(
    folder: str, options: dict[str, Any], said: str, toys: Any, request: pytest.FixtureRequest
) -> None:
    """A head without a bias, two trained layers, texts that tell nothing."""
    with pytest.raises(ConfigError, match="public_texts") as caught:
        head_bench(request.getfixturevalue(folder), toys, **options)
    assert said in str(caught.value)


def test_too_few_texts_and_too_many_are_refused_before_a_model_is_loaded() -> None:
    """By the options alone."""
    for texts in (["one"] * 7, ["many"] * 1025, [""] * 8):
        with pytest.raises(ConfigError, match="public_texts"):
            parse_options(LoraOptions, {"public_texts": texts}, "options of adapter 'lora'")


def test_nothing_that_would_train_is_an_error(tiny_llama: Path, toys: Any) -> None:
    """A language model has no head of its own."""
    with pytest.raises(ModelError, match="nothing would train"):
        toys.bench(tiny_llama, toys.causal, targets="none")
