"""DoRA's magnitudes: PEFT's function and gradients, from the start that changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, ModelError
from wardround.core.lora import pairs
from wardround.training.adapters._magnitudes import LinearMagnitudes, decompose
from wardround.training.adapters.lora import ADAPTER, LoraOptions
from wardround.training.base_model import without_peft_noise
from wardround.training.workbench import Workbench

Case = tuple[str, str, dict[str, Any]]
CASES: dict[str, Case] = {
    "llama": ("tiny_llama", "causal", {}),
    "llama in bfloat16": ("tiny_llama", "causal", {"dtype": "bfloat16"}),
    "gpt2": ("tiny_gpt2", "causal", {"rslora": True}),
    "bert": ("tiny_bert", "classifier", {"targets": ("query", "word_embeddings"), "base_dropout": "off"}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    """Each of the cases, with its folder."""
    folder, task, options = CASES[request.param]
    return request.getfixturevalue(folder), task, options


def opened(case: tuple[Path, str, dict[str, Any]], toys: Any, **more: Any) -> Workbench:
    """A bench with DoRA."""
    folder, task, options = case
    bench: Workbench = toys.bench(folder, getattr(toys, task), **({"dora": True} | options | more))
    return bench


def stirred(bench: Workbench) -> Workbench:
    """With small random numbers added to all that trains."""
    shake = np.random.default_rng(0).normal(0, 0.05, bench.layout.size).astype(np.float32)
    bench.load_adapter(bench.fresh.with_vector(bench.fresh.vector + shake))
    return bench


def answers(bench: Workbench, model: nn.Module, toys: Any) -> torch.Tensor:
    """Losses of a few rows."""
    return bench.task.example_losses(model, bench.task.collate(toys.rows(5), bench.data))


def norms_of(bench: Workbench) -> dict[str, np.ndarray[Any, Any]]:
    """Module → the norm of each row of W + s · B A, by its definition, in float64."""
    found, adapter = {}, bench.read_adapter()
    for pair in pairs(bench.layout):
        layer: Any = bench.model.get_submodule(pair.module)
        weight = layer.get_base_layer().weight.detach().double().numpy()
        product = pair.scaling * adapter[pair.b.name].astype(float) @ adapter[pair.a.name].astype(float)
        turned = weight.T if weight.shape != product.shape or layer.fan_in_fan_out else weight
        found[pair.module] = np.sqrt(((turned + product) ** 2).sum(axis=1))
    return found


def magnitudes(bench: Workbench) -> dict[str, str]:
    """Module → name of its magnitudes in the layout."""
    return {spec.module: spec.name for spec in bench.layout.tensors if spec.role == "magnitude"}


def test_magnitudes_begin_as_the_norms_of_the_bases_weights(case: Any, toys: Any) -> None:
    """Of every layer with factors, which are drawn as without them; nothing is changed before training."""
    bench, plain = opened(case, toys), opened(case, toys, dora=False)
    names = magnitudes(bench)
    assert names.keys() == {pair.module for pair in pairs(bench.layout)}
    for module, norms in norms_of(bench).items():
        np.testing.assert_allclose(bench.fresh[names[module]], norms, rtol=1e-6)
    for spec in plain.layout.tensors:
        np.testing.assert_array_equal(bench.fresh[spec.name], plain.fresh[spec.name])
    with torch.no_grad():
        found = answers(bench, bench.model, toys)
        with bench.model.disable_adapter():
            assert torch.equal(found, answers(bench, bench.model, toys))


def test_function_and_gradients_are_those_of_peft(case: Any, toys: Any) -> None:
    """Of PEFT's own model under the same numbers: the norm counts as a constant there as well."""
    folder, task, options = case
    bench = stirred(opened(case, toys))
    auto = AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification
    labels = {} if task == "causal" else {"num_labels": 3}
    base = auto.from_pretrained(folder, dtype=getattr(torch, options.get("dtype", "float32")), **labels)
    targets = options.get("targets", "all-linear")
    config = LoraConfig(
        r=8, lora_alpha=16, use_dora=True, use_rslora=options.get("rslora", False),
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=["classifier"] if labels else None,
        task_type="SEQ_CLS" if labels else "CAUSAL_LM",
    )  # fmt: skip
    with without_peft_noise():
        theirs = get_peft_model(base, config).eval()
    own = {id(parameter): name for name, parameter in bench.model.named_parameters()}
    named = dict(theirs.named_parameters())
    pairs_of = {name: (p, named[own[id(p)]]) for name, p in bench.parameters().items()}
    for mine, other in pairs_of.values():
        other.data = mine.detach().clone()
    losses = [answers(bench, model, toys) for model in (bench.model, theirs)]
    exact = {"rtol": 2e-2, "atol": 2e-2} if options.get("dtype") else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(losses[0], losses[1], **exact)
    for loss in losses:
        loss.sum().backward()
    for name, (mine, other) in pairs_of.items():
        assert mine.grad is not None, name
        size = float(other.grad.norm())
        assert size > 0, name
        assert float((mine.grad - other.grad).norm()) < size * (0.1 if options.get("dtype") else 1e-4), name


def test_dropout_falls_on_what_peft_drops(tiny_llama: Path, toys: Any) -> None:
    """On what the factors and the magnitudes read, once: under one seed the two agree."""
    bench = stirred(toys.bench(tiny_llama, toys.causal, dora=True, dropout=0.4, targets=("q_proj",)))
    config = LoraConfig(r=8, lora_alpha=16, use_dora=True, lora_dropout=0.4, target_modules=["q_proj"])
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    found = dict(theirs.named_parameters())
    for name, parameter in bench.model.named_parameters():
        found[name].data = parameter.detach().clone()
    losses = []
    for model in (bench.model, theirs):
        model.train()
        torch.manual_seed(3)
        losses.append(answers(bench, model, toys))
        losses[-1].sum().backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    torch.manual_seed(4)
    assert not torch.equal(losses[0], answers(bench, bench.model, toys))
    own = {id(parameter): name for name, parameter in bench.model.named_parameters()}
    for parameter in bench.parameters().values():
        torch.testing.assert_close(parameter.grad, found[own[id(parameter)]].grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 11])
def test_norms_are_of_all_directions_whichever_train(case: Any, toys: Any, rank: int) -> None:
    """At a site of any rank; those that stand frozen beside the others count."""
    from wardround.core.ranks import at_rank

    bench = stirred(opened(case, toys))
    expected = norms_of(bench)
    start = at_rank(bench.read_adapter(), rank, np.random.default_rng(1))
    bench.load_adapter(start.trained, start.rest)
    for module, norms in expected.items():
        layer: Any = bench.model.get_submodule(module)
        own = layer.lora_magnitude_vector["default"]
        np.testing.assert_allclose(own.norms(*own.factors()), norms, rtol=1e-5)


def test_an_output_without_weights_is_refused(tiny_llama: Path, toys: Any) -> None:
    """It has no direction, and its norm would be divided by."""
    with torch.no_grad():
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_llama),
            LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]),
        )
        model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj").get_base_layer().weight[3] = 0
    with pytest.raises(ModelError, match=r"found: 1 of 32 at model\.layers\.1\.self_attn\.q_proj"):
        decompose(model, "default")


def test_a_convolution_is_refused_by_name() -> None:
    """Nobody has tested it."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(3, 4, 2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.head(self.conv(x).mean(-1)))

    model = get_peft_model(Small(), LoraConfig(r=2, use_dora=True, target_modules=["conv", "head"]))
    with pytest.raises(ModelError, match="linear layers and embeddings") as caught:
        decompose(model, "default")
    assert "conv, a Conv1d" in str(caught.value)


def test_a_head_alone_has_nothing_to_decompose() -> None:
    """Refused before a model is loaded, with what works."""
    with pytest.raises(ConfigError, match="targets=none adapts none: name targets"):
        parse_options(LoraOptions, {"targets": "none", "dora": True}, "options of adapter 'lora'")


@pytest.mark.parametrize("saved", [True, False])
def test_dora_and_plain_lora_do_not_start_from_each_other(
    saved: bool, tiny_llama: Path, toys: Any, tmp_path: Path
) -> None:
    """Magnitudes are missing, or nobody would read them."""
    one, other = (toys.bench(tiny_llama, toys.causal, dora=dora) for dora in (saved, not saved))
    ADAPTER.save(one.model, tmp_path / "adapter", "base")
    with pytest.raises(ModelError, match="lora_magnitude_vector") as caught:
        ADAPTER.read_saved(tmp_path / "adapter", other.model)
    assert "dora" in str(caught.value.remedy)
    again = toys.bench(tiny_llama, toys.causal, dora=saved, seed=9)
    assert ADAPTER.read_saved(tmp_path / "adapter", again.model).digest == one.fresh.digest


def test_parts_of_an_output_are_those_of_the_layer(tiny_bert: Path, toys: Any) -> None:
    """W x and s · B A x without the bias, whether PEFT says what the base layer gave or nobody does."""
    bench = stirred(toys.bench(tiny_bert, toys.classifier, dora=True, targets=("query",)))
    layer: Any = bench.model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    own = layer.lora_magnitude_vector["default"]
    assert type(own) is LinearMagnitudes
    x = torch.randn(2, 3, 32)
    base = layer.get_base_layer()
    said = own.parts(x, base_result=base(x), lora_A=layer.lora_A["default"], lora_B=layer.lora_B["default"])
    for one, two in zip(own.parts(x), said, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    whole = own.weight / own.norms(*own.factors()) * sum(said) + base.bias
    torch.testing.assert_close(layer(x), whole, rtol=1e-4, atol=1e-5)
