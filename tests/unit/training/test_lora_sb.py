"""A core between frozen factors: what is frozen and what trains, what is saved, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, ModelError, PeerError
from wardround.core.packed import Adapter
from wardround.training.adapters import ADAPTERS
from wardround.training.adapters.lora_sb import ADAPTER, LoraSbOptions, _outer
from wardround.training.workbench import Workbench

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("tiny_llama", "causal", {"start": "svd"}),
    ("tiny_llama", "causal", {"start": "random", "targets": ("q_proj", "v_proj"), "rslora": True}),
    ("tiny_llama", "classifier", {"start": "svd", "dtype": "bfloat16"}),
    ("tiny_gpt2", "causal", {"start": "svd"}),
    ("tiny_bert", "classifier", {"start": "random", "bias": "all"}),
    ("tiny_bert", "classifier", {"targets": ("query",), "modules_to_save": ("pooler.dense",)}),
    ("tiny_bert", "classifier", {"targets": "none"}),
]
IDS = [f"{folder}-{task}-{'-'.join(map(str, options.values()))}" for folder, task, options in CASES]


@pytest.fixture(scope="module")
def benches(request: pytest.FixtureRequest, toys: Any) -> Any:
    """One bench a case, made once."""
    made: dict[int, Workbench] = {}

    def bench(case: int) -> Workbench:
        folder, task, options = CASES[case]
        if case not in made:
            place = request.getfixturevalue(folder)
            made[case] = toys.bench(place, getattr(toys, task), method="lora_sb", **options)
        return made[case]

    return bench


def core_bench(folder: Path, toys: Any, **options: Any) -> Workbench:
    """On Llama, with small cores on two kinds of layers."""
    given = {"targets": ("q_proj", "down_proj"), "r": 4, "start": "random"} | options
    bench: Workbench = toys.bench(folder, toys.causal, method="lora_sb", **given)
    return bench


def noise(bench: Workbench, seed: int = 0) -> Adapter:
    """An adapter of small random numbers."""
    vector = np.random.default_rng(seed).normal(0, 0.05, bench.layout.size).astype(np.float32)
    return bench.initial_adapter().with_vector(vector)


def frozen_of(bench: Workbench) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Module → B, R, A and s, as its layer computes with them."""
    found = {}
    for name, layer in bench.model.named_modules():
        if isinstance(layer, LoraLayer):
            outer, inner = layer.lora_B["default"], layer.lora_A["default"]
            parts = (outer.outer.weight, outer.core.weight, inner.weight)
            b, r, a = (part.detach().cpu().numpy() for part in parts)
            found[name] = (b, r, a, float(layer.scaling["default"]))
    return found


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_the_layout_is_cores_and_heads_and_all_that_trains(case: int, benches: Any) -> None:
    """Each core is r by r and dense, and says on which module it is; nothing frozen is a parameter."""
    bench = benches(case)
    names = [spec.name for spec in bench.layout.tensors]
    assert names == sorted(names)
    assert bench.layout.size == sum(p.numel() for p in bench.model.parameters() if p.requires_grad)
    assert all(spec.role == "dense" for spec in bench.layout.tensors)
    cores = [spec for spec in bench.layout.tensors if ".lora_" in spec.name]
    assert {spec.module for spec in cores} == set(frozen_of(bench))
    for spec in cores:
        assert spec.name == f"{spec.module}.lora_R.weight"
        assert spec.shape == (8, 8)
        assert not bench.fresh[spec.name].any()
    # So that whatever sets parameters free sets no frozen factor free.
    assert not [n for n, _ in bench.model.named_parameters() if "lora_A" in n or ".outer." in n]


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_writing_and_reading_an_adapter_is_exact(case: int, benches: Any) -> None:
    """float32 in, the same bits out, on every base dtype."""
    bench = benches(case)
    adapter = noise(bench)
    bench.load_adapter(adapter)
    assert bench.read_adapter().digest == adapter.digest
    with pytest.raises(PeerError, match="does not fit"):
        bench.load_adapter(adapter.with_vector(adapter.vector.astype(np.float64)))


def test_frozen_factors_are_orthonormal_and_differ_between_modules(benches: Any) -> None:
    """So that R's gradient is the weight's, seen in r² directions of length one."""
    for case in (0, 1, 3):
        found = frozen_of(benches(case))
        for b, _, a, _ in found.values():
            assert np.allclose(b.T @ b, np.eye(8), atol=1e-6)
            assert np.allclose(a @ a.T, np.eye(8), atol=1e-6)
        firsts = {b[:, 0].tobytes() for b, _, _, _ in found.values()}
        assert len(firsts) == len(found)


def test_a_fresh_core_changes_nothing_and_has_a_gradient(tiny_llama: Path, toys: Any) -> None:
    """R = 0 is the base model, and no saddle: B and A are not zero."""
    bench = core_bench(tiny_llama, toys)
    batch = bench.task.collate(toys.rows(4), bench.data)
    losses = bench.task.example_losses(bench.model, batch)
    with torch.no_grad(), bench.model.disable_adapter():
        assert torch.equal(losses, bench.task.example_losses(bench.model, batch))
    losses.sum().backward()
    for parameter in bench.parameters().values():
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) > 1e-3


@pytest.mark.parametrize("at", ["zero", "elsewhere"])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_the_gradient_of_a_core_is_that_of_the_dense_weight_in_its_directions(
    family: str, at: str, toys: Any, request: pytest.FixtureRequest
) -> None:
    """Dense formula: dL/dR = s Bᵀ (dL/dW) Aᵀ, with dL/dW by autograd on the merged weight itself."""
    targets = ("q_proj", "down_proj") if family == "tiny_llama" else ("c_attn",)
    bench = core_bench(request.getfixturevalue(family), toys, targets=targets, alpha=6.0, base_dropout="off")
    if at == "elsewhere":
        bench.load_adapter(noise(bench))
    batch = bench.task.collate(toys.rows(5), bench.data)
    bench.task.example_losses(bench.model, batch).sum().backward()
    cores = {name.partition(".lora_R")[0]: p.grad for name, p in bench.parameters().items()}
    frozen = frozen_of(bench)
    for module, (b, r, a, s) in frozen.items():
        layer = bench.model.get_submodule(module)
        update = torch.from_numpy(s * b @ r @ a)
        weight = layer.get_base_layer().weight
        with torch.no_grad():
            weight.add_(update.T if layer.fan_in_fan_out else update)
        weight.requires_grad_(True)
    with bench.model.disable_adapter():
        bench.task.example_losses(bench.model, batch).sum().backward()
    for module, (b, _, a, s) in frozen.items():
        layer = bench.model.get_submodule(module)
        dense = layer.get_base_layer().weight.grad.numpy()
        expected = s * b.T @ (dense.T if layer.fan_in_fan_out else dense) @ a.T
        assert np.allclose(cores[module].numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_a_saved_adapter_is_plain_lora_and_gives_the_cores_back(
    case: int, benches: Any, toys: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """PEFT's own loader answers as the bench does; read again, R is R but for float32's rounding of B R."""
    bench, (folder, task, options) = benches(case), CASES[case]
    adapter = noise(bench, seed=case)
    bench.load_adapter(adapter)
    ADAPTER.save(bench.model, tmp_path / "adapter", "the-base")
    again = ADAPTER.read_saved(tmp_path / "adapter", bench.model)
    assert again.layout.digest == adapter.layout.digest
    assert np.allclose(again.vector, adapter.vector, rtol=0, atol=1e-7)

    auto = AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification
    labels = {} if task == "causal" else {"num_labels": 3}
    dtype = getattr(torch, options.get("dtype", "float32"))
    base = auto.from_pretrained(request.getfixturevalue(folder), dtype=dtype, **labels)
    if task == "classifier" and base.config.pad_token_id is None:
        base.config.pad_token_id = bench.data.pad_token_id
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert plain.peft_config["default"].r == 8
    batch = bench.task.collate(toys.rows(6), bench.data)
    with torch.no_grad():
        ours = bench.task.example_losses(bench.model, batch)
        theirs = bench.task.example_losses(plain, batch)
        merged = bench.task.example_losses(plain.merge_and_unload(safe_merge=True), batch)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours, merged, rtol=5 * tolerance, atol=tolerance)


def test_weights_that_a_merge_changes_are_those_with_a_core_that_is_not_zero(
    tiny_llama: Path, toys: Any, tmp_path: Path
) -> None:
    """A is never zero, and says nothing."""
    bench = core_bench(tiny_llama, toys)
    ADAPTER.save(bench.model, tmp_path / "fresh", "base")
    assert ADAPTER.changed_weights(tmp_path / "fresh") == []
    assert not ADAPTER.read_saved(tmp_path / "fresh", bench.model).vector.any()
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_R.weight"
    tensors = {**bench.fresh.tensors(), name: np.eye(4, dtype=np.float32)}
    bench.load_adapter(bench.fresh.with_vector(np.concatenate([t.reshape(-1) for t in tensors.values()])))
    ADAPTER.save(bench.model, tmp_path / "moved", "base")
    assert ADAPTER.changed_weights(tmp_path / "moved") == ["model.layers.1.self_attn.q_proj.weight"]


def test_what_is_saved_with_its_core_on_the_other_side_is_the_same(
    tiny_llama: Path, toys: Any, tmp_path: Path
) -> None:
    """B and R A is as good a form as B R and A: the product counts."""
    from safetensors.numpy import load_file, save_file

    bench = core_bench(tiny_llama, toys)
    adapter = noise(bench)
    bench.load_adapter(adapter)
    ADAPTER.save(bench.model, tmp_path / "adapter", "base")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    for module, (b, r, a, _) in frozen_of(bench).items():
        tensors |= {f"{module}.lora_A.weight": r @ a, f"{module}.lora_B.weight": b}
    save_file(tensors, file)
    again = ADAPTER.read_saved(tmp_path / "adapter", bench.model)
    assert np.allclose(again.vector, adapter.vector, rtol=0, atol=1e-7)


@pytest.mark.parametrize("other", [{"method": "lora"}, {"start": "svd"}, {"seed": 8}], ids=str)
def test_a_saved_adapter_of_another_form_is_refused(
    other: dict[str, Any], tiny_llama: Path, toys: Any, tmp_path: Path
) -> None:
    """Plain LoRA's factors, or a core between other factors: the module, how far off, the remedy."""
    bench = core_bench(tiny_llama, toys)
    options = {"method": "lora_sb", "start": "random"} | other
    if options["method"] == "lora":
        del options["start"]
    foreign = toys.bench(tiny_llama, toys.causal, r=4, targets=("q_proj", "down_proj"), **options)
    foreign.load_adapter(noise(foreign))
    foreign.method.save(foreign.model, tmp_path / "adapter", "base")
    with pytest.raises(ModelError, match=r"none of this method") as caught:
        ADAPTER.read_saved(tmp_path / "adapter", bench.model)
    assert re.search(r"_proj: 0\.\d+ of its product|_proj: 1 of its product", str(caught.value))
    assert "adapter.options.start" in str(caught.value.remedy)


def test_a_saved_adapter_of_another_rank_or_scaling_is_refused(
    tiny_llama: Path, toys: Any, tmp_path: Path
) -> None:
    """As LoRA's is."""
    bench = core_bench(tiny_llama, toys)
    ADAPTER.save(bench.model, tmp_path / "adapter", "base")
    with pytest.raises(ModelError, match="does not fit"):
        ADAPTER.read_saved(tmp_path / "adapter", core_bench(tiny_llama, toys, r=3).model)
    with pytest.raises(ConfigError, match="scaled in another way"):
        ADAPTER.read_saved(tmp_path / "adapter", core_bench(tiny_llama, toys, alpha=3.0).model)
    with pytest.raises(ModelError, match="no adapter can be read"):
        ADAPTER.read_saved(tmp_path / "gone", bench.model)


def test_everybody_makes_the_same_factors(tiny_llama: Path, toys: Any) -> None:
    """From the seed alone, or from the base alone; and nothing is drawn from torch."""
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = {start: frozen_of(core_bench(tiny_llama, toys, start=start)) for start in ("random", "svd")}
    assert torch.equal(torch.random.get_rng_state(), state)
    for start, found in first.items():
        for seed, alike in ((7, True), (8, start == "svd")):
            other = frozen_of(core_bench(tiny_llama, toys, start=start, seed=seed))
            for name, (b, _, a, _) in found.items():
                assert np.array_equal(b, other[name][0]) is alike
                assert np.array_equal(a, other[name][2]) is alike


def test_a_plan_has_the_fingerprint_and_a_site_with_other_factors_is_refused(
    tiny_llama: Path, toys: Any
) -> None:
    """The same numbers again pass, also when they come out of a plan's JSON; others do not."""
    known = json.loads(json.dumps(ADAPTER.plan_options(core_bench(tiny_llama, toys).model)))
    assert set(known) == {"fingerprint"}
    core_bench(tiny_llama, toys, **known)
    for other in ({"seed": 8}, {"start": "svd"}, {"targets": ("q_proj", "up_proj")}):
        with pytest.raises(ModelError, match="not the plan's") as caught:
            core_bench(tiny_llama, toys, **known | other)
        assert "start=random" in str(caught.value.remedy)
        assert caught.value.code == "adapter"
    assert ADAPTERS.get("lora").plan_options(core_bench(tiny_llama, toys).model) == {}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"r": 0}, "at least 1"),
        ({"start": "gradient"}, "start"),
        ({"fingerprint": [0.5]}, "8 numbers"),
        ({"fingerprint": [float("nan")] * 8}, "finite"),
        ({"rank": 4}, "rank"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any], match: str) -> None:
    """Before any model is loaded."""
    with pytest.raises(ConfigError, match=match):
        parse_options(LoraSbOptions, options, "options of adapter 'lora_sb'")


def test_layers_without_a_core_are_refused_by_name(tiny_bert: Path, tiny_llama: Path, toys: Any) -> None:
    """Embeddings have none, and no layer has one that is larger than itself."""
    with pytest.raises(ModelError, match="word_embeddings"):
        toys.bench(tiny_bert, toys.classifier, method="lora_sb", targets=("query", "word_embeddings"))
    with pytest.raises(ModelError, match="1000 at model"):
        core_bench(tiny_llama, toys, r=1000)


def test_codes_of_a_quantised_weight_have_no_singular_vectors() -> None:
    """But a core may sit on them, between factors from the seed."""
    codes = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    layer = SimpleNamespace(
        out_features=8, in_features=8, fan_in_fan_out=False,
        get_base_layer=lambda: SimpleNamespace(weight=codes),
    )  # fmt: skip
    with pytest.raises(ModelError, match="start=random"):
        _outer("q", layer, LoraSbOptions(r=2, start="svd"), 0)
    b, a = _outer("q", layer, LoraSbOptions(r=2, start="random"), 0)
    assert (b.shape, a.shape) == ((8, 2), (2, 8))
