"""LoRA through PEFT: what is attached, what federates, what is saved."""

from __future__ import annotations

import errno
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, InternalError, ModelError, PeerError, StorageError
from wardround.core.packed import Adapter
from wardround.training.adapters import ADAPTERS
from wardround.training.adapters.lora import ADAPTER, LoraOptions
from wardround.training.workbench import Workbench

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("tiny_llama", "causal", {}),
    ("tiny_llama", "causal", {"targets": ("q_proj", "v_proj"), "rslora": True}),
    ("tiny_llama", "causal", {"dtype": "bfloat16"}),
    ("tiny_llama", "classifier", {}),
    ("tiny_llama", "classifier", {"dtype": "bfloat16"}),
    ("tiny_gpt2", "causal", {}),
    ("tiny_bert", "classifier", {}),
    ("tiny_bert", "classifier", {"targets": ("query",), "bias": "all"}),
    ("tiny_bert", "classifier", {"targets": ("query", "value"), "bias": "lora_only"}),
    ("tiny_bert", "classifier", {"targets": ("query", "word_embeddings")}),
    ("tiny_bert", "classifier", {"targets": ("query",), "modules_to_save": ("pooler.dense",)}),
    ("tiny_bert", "classifier", {"dtype": "bfloat16", "modules_to_save": ("output.LayerNorm",), "r": 8}),
    ("tiny_llama", "causal", {"dora": True}),
    ("tiny_llama", "classifier", {"dora": True, "dtype": "bfloat16"}),
    ("tiny_gpt2", "causal", {"dora": True, "rslora": True}),
    ("tiny_bert", "classifier", {"dora": True, "targets": ("query", "word_embeddings"), "bias": "lora_only"}),
]  # fmt: skip
IDS = [
    f"{folder}-{task}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for folder, task, options in CASES
]


@pytest.fixture(scope="module")
def benches(request: pytest.FixtureRequest, toys: Any) -> Any:
    """One bench a case, made once."""
    made: dict[int, Workbench] = {}

    def bench(case: int) -> Workbench:
        folder, task, options = CASES[case]
        if case not in made:
            made[case] = toys.bench(request.getfixturevalue(folder), getattr(toys, task), **options)
        return made[case]

    return bench


def test_an_option_that_is_not_used_leaves_older_plans_their_digest() -> None:
    """Plans that were made before there were public texts, or DoRA, did not name them."""
    before = {"r", "alpha", "targets", "rslora", "dropout", "bias", "modules_to_save"}
    assert set(LoraOptions().model_dump(mode="json")) == before
    used = LoraOptions(public_texts=tuple(map(str, range(8))))
    assert set(used.model_dump(mode="json")) == before | {"public_texts"}
    dora = LoraOptions(dora=True)
    assert set(dora.model_dump(mode="json")) == before | {"dora"}
    for options in (LoraOptions(), used, dora):
        assert parse_options(LoraOptions, options.model_dump(mode="json"), "options") == options


def noise(bench: Workbench, seed: int = 0) -> Adapter:
    """An adapter of small random numbers."""
    vector = np.random.default_rng(seed).normal(0, 0.05, bench.layout.size).astype(np.float32)
    return bench.initial_adapter().with_vector(vector)


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_writing_and_reading_an_adapter_is_exact(case: int, benches: Any) -> None:
    """float32 in, the same bits out, on every base dtype."""
    bench = benches(case)
    adapter = noise(bench)
    bench.load_adapter(adapter)
    assert bench.read_adapter().digest == adapter.digest
    assert all(parameter.dtype == torch.float32 for parameter in bench.parameters().values())


def test_parameters_are_those_that_the_model_has_now(tiny_bert: Path, toys: Any) -> None:
    """Names are looked up again where a parameter was replaced, or began to train."""
    bench = toys.bench(tiny_bert, toys.classifier)
    before = bench.parameters()
    name, module = next((n, m) for n, m in bench.model.named_modules() if n.endswith("lora_A.default"))
    new = module.weight = torch.nn.Parameter(module.weight.detach().clone())
    after = bench.parameters()
    (changed,) = [key for key, parameter in after.items() if parameter is not before[key]]
    assert changed.removesuffix(".weight") == name.removesuffix(".default")
    assert after[changed] is new
    next(p for p in bench.model.parameters() if not p.requires_grad).requires_grad_(True)
    with pytest.raises(InternalError, match="does not hold"):
        bench.parameters()


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_the_layout_names_all_that_trains_sorted_and_pairs_the_factors(case: int, benches: Any) -> None:
    """Every trainable parameter once; A (r, in) and B (out, r) of a module share name and scaling."""
    bench = benches(case)
    names = [spec.name for spec in bench.layout.tensors]
    assert names == sorted(names)
    trainable = sum(p.numel() for p in bench.model.parameters() if p.requires_grad)
    assert bench.layout.size == trainable
    modules = {spec.module for spec in bench.layout.tensors if spec.role != "dense"}
    dora = CASES[case][2].get("dora", False)
    for module in modules:
        a, b, *other = sorted(
            (spec for spec in bench.layout.tensors if spec.module == module and spec.role != "dense"),
            key=lambda spec: spec.role,
        )
        assert (a.role, b.role) == ("lora_a", "lora_b")
        assert [(m.role, m.shape) for m in other] == [("magnitude", b.shape[:1])] * dora
        assert a.shape[0] == b.shape[1] == 8
        rslora = CASES[case][2].get("rslora", False)
        assert a.scaling == b.scaling == pytest.approx(16 / (math.sqrt(8) if rslora else 8))
    assert modules


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_a_saved_adapter_loads_with_plain_peft_and_answers_alike(
    case: int, benches: Any, toys: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """PEFT's own loader finds every tensor, and the model says what the bench's model says."""
    bench, (folder, task, options) = benches(case), CASES[case]
    adapter = noise(bench, seed=case)
    bench.load_adapter(adapter)
    ADAPTER.save(bench.model, tmp_path / "adapter", "the-base")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
    assert ADAPTER.read_saved(tmp_path / "adapter", bench.model).digest == adapter.digest

    auto = AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification
    labels = {} if task == "causal" else {"num_labels": 3}
    dtype = getattr(torch, options.get("dtype", "float32"))
    base = auto.from_pretrained(request.getfixturevalue(folder), dtype=dtype, **labels)
    if task == "classifier" and base.config.pad_token_id is None:
        base.config.pad_token_id = bench.data.pad_token_id
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert plain.peft_config["default"].base_model_name_or_path == "the-base"
    batch = bench.task.collate(toys.rows(6), bench.data)
    with torch.no_grad():
        ours = bench.task.example_losses(bench.model, batch)
        theirs = bench.task.example_losses(plain, batch)
    # In bfloat16 plain PEFT keeps the head in half precision, the bench in float32; norms of DoRA it makes of
    # sums in another order.
    exact = 1e-5 if options.get("dora") else 0
    torch.testing.assert_close(ours, theirs, rtol=exact if dtype == torch.float32 else 5e-3, atol=0)


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_only_the_adapter_gets_gradients_and_all_of_it_does(case: int, benches: Any, toys: Any) -> None:
    """One backward pass reaches every tensor of the layout and nothing of the base."""
    bench = benches(case)
    bench.load_adapter(noise(bench))
    batch = bench.task.collate(toys.rows(6), bench.data)
    bench.task.example_losses(bench.model, batch).sum().backward()
    ours = {id(parameter) for parameter in bench.parameters().values()}
    assert all((p.grad is not None) == (id(p) in ours) for p in bench.model.parameters())
    for parameter in bench.parameters().values():
        parameter.grad = None


def test_a_fresh_adapter_changes_nothing_until_it_is_trained(tiny_llama: Path, toys: Any) -> None:
    """B is zero, so that the first answers are the base model's own."""
    bench = toys.bench(tiny_llama, toys.causal)
    batch = bench.task.collate(toys.rows(4), bench.data)
    with torch.no_grad():
        adapted = bench.task.example_losses(bench.model, batch)
        with bench.model.disable_adapter():
            base = bench.task.example_losses(bench.model, batch)
    assert torch.equal(adapted, base)


@pytest.mark.parametrize(("folder", "task"), [("tiny_llama", "causal"), ("tiny_bert", "classifier")])
def test_the_initial_adapter_depends_on_the_seed_alone(
    folder: str, task: str, toys: Any, request: pytest.FixtureRequest
) -> None:
    """Heads included: whatever was drawn before, equal seeds give equal bits, and draw nothing."""
    place, kind = request.getfixturevalue(folder), getattr(toys, task)
    torch.manual_seed(1)
    first = toys.bench(place, kind, seed=5).initial_adapter()
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = toys.bench(place, kind, seed=5).initial_adapter()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.digest == second.digest
    assert first.digest != toys.bench(place, kind, seed=6).initial_adapter().digest


def test_a_fresh_head_is_small_noise_with_a_zero_bias(tiny_bert: Path, toys: Any) -> None:
    """Normal with σ 0.02, bias 0; it federates as dense tensors."""
    bench = toys.bench(tiny_bert, toys.classifier)
    head = bench.initial_adapter().tensors()
    weight = head["base_model.model.classifier.weight"]
    assert 0.01 < weight.std() < 0.03
    assert not head["base_model.model.classifier.bias"].any()


def test_another_layout_is_refused_and_changes_nothing(tiny_llama: Path, toys: Any) -> None:
    """An adapter of another rank does not enter, nor one in float64."""
    bench, other = toys.bench(tiny_llama, toys.causal), toys.bench(tiny_llama, toys.causal, r=4)
    before = bench.read_adapter().digest
    with pytest.raises(PeerError, match="does not fit"):
        bench.load_adapter(other.initial_adapter())
    with pytest.raises(PeerError, match="does not fit"):
        bench.load_adapter(bench.initial_adapter().with_vector(np.zeros(bench.layout.size)))
    assert bench.read_adapter().digest == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"r": 0}, "at least 1"),
        ({"r": -2}, "at least 1"),
        ({"targets": []}, "at least one module"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"rank": 4}, "rank"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any], match: str) -> None:
    """Before any model is loaded."""
    with pytest.raises(ConfigError, match=match):
        parse_options(LoraOptions, options, "options of adapter 'lora'")


def test_targets_that_match_nothing_name_the_nearest(tiny_llama: Path, toys: Any) -> None:
    """One wrong name among right ones is an error as well; PEFT alone would pass over it."""
    with pytest.raises(ModelError, match="did you mean 'q_proj'") as caught:
        toys.bench(tiny_llama, toys.causal, targets=("v_proj", "q_prj"))
    assert "down_proj" in str(caught.value)
    with pytest.raises(ModelError, match="modules_to_save"):
        toys.bench(tiny_llama, toys.causal, modules_to_save=("nothing_like_it",))


def test_tied_embeddings_are_refused(tiny_llama: Path, toys: Any) -> None:
    """Merging into one end would change the other."""
    for options in ({"targets": ("lm_head",)}, {"modules_to_save": ("embed_tokens",)}):
        with pytest.raises(ModelError, match="tied embedding"):
            toys.bench(tiny_llama, toys.causal, **options)


def test_biases_of_a_half_precision_base_are_refused(tiny_bert: Path, toys: Any) -> None:
    """What federates is float32; such biases would not be."""
    with pytest.raises(ModelError, match="float32"):
        toys.bench(tiny_bert, toys.classifier, bias="all", dtype="bfloat16")


def test_a_full_disk_leaves_the_old_adapter_untouched(
    tiny_llama: Path, toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter is written whole or not at all, and what was there before stays."""
    bench = toys.bench(tiny_llama, toys.causal)
    ADAPTER.save(bench.model, tmp_path / "adapter", "base")
    before = {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()}
    bench.load_adapter(noise(bench))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wardround.training.adapters._plain_lora.save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        ADAPTER.save(bench.model, tmp_path / "adapter", "base")
    assert {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_saved_adapter_that_does_not_fit_is_refused(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """No folder, another rank, a broken file: each says so."""
    bench, other = toys.bench(tiny_llama, toys.causal), toys.bench(tiny_llama, toys.causal, r=4)
    with pytest.raises(ModelError, match="no adapter can be read"):
        ADAPTER.read_saved(tmp_path / "gone", bench.model)
    ADAPTER.save(other.model, tmp_path / "adapter", "base")
    with pytest.raises(ModelError, match="does not fit"):
        ADAPTER.read_saved(tmp_path / "adapter", bench.model)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(ModelError, match="no adapter can be read"):
        ADAPTER.read_saved(tmp_path / "adapter", bench.model)


@pytest.mark.parametrize(
    ("saved", "configured", "found", "expected"),
    [
        ({"alpha": 32}, {"alpha": 16}, "alpha=32", "expected: 2,"),
        ({"rslora": True}, {}, "rslora=true", "expected: 2,"),
        ({}, {"rslora": True}, "alpha=16, rslora=false", "expected: 5.65685"),
    ],
)
def test_a_saved_adapter_of_another_scaling_is_refused(
    saved: dict[str, Any],
    configured: dict[str, Any],
    found: str,
    expected: str,
    tiny_llama: Path,
    toys: Any,
    tmp_path: Path,
) -> None:
    """Its product would silently be another one; both numbers and the remedy are named."""
    bench = toys.bench(tiny_llama, toys.causal, **saved)
    ADAPTER.save(bench.model, tmp_path / "adapter", "base")
    with pytest.raises(ConfigError, match="scaled in another way") as caught:
        ADAPTER.read_saved(tmp_path / "adapter", toys.bench(tiny_llama, toys.causal, **configured).model)
    assert found in str(caught.value)
    assert expected in str(caught.value)
    assert "adapter.options.alpha=" in str(caught.value.remedy)


def test_another_alpha_of_the_same_scaling_is_the_same_adapter(
    tiny_llama: Path, toys: Any, tmp_path: Path
) -> None:
    """What counts is the factor on the product, not how it is written: 8/4 is 4/√4."""
    bench = toys.bench(tiny_llama, toys.causal, r=4, alpha=8)
    ADAPTER.save(bench.model, tmp_path / "adapter", "base")
    same = toys.bench(tiny_llama, toys.causal, r=4, alpha=4, rslora=True)
    assert ADAPTER.read_saved(tmp_path / "adapter", same.model).digest == same.fresh.digest


def test_alphas_by_module_are_read_as_peft_reads_them(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """A plain PEFT adapter may scale some modules in another way; one that does is refused by its module."""
    bench = toys.bench(tiny_llama, toys.causal)
    ADAPTER.save(bench.model, tmp_path / "adapter", "base")
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"alpha_pattern": {"q_proj": 16}}))
    assert ADAPTER.read_saved(tmp_path / "adapter", bench.model).digest == bench.fresh.digest
    file.write_text(json.dumps(config | {"alpha_pattern": {"layers.1.self_attn.q_proj": 64}}))
    with pytest.raises(ConfigError, match=r"8 at model\.layers\.1\.self_attn\.q_proj"):
        ADAPTER.read_saved(tmp_path / "adapter", bench.model)
    for broken in ("no json", "[]", "{}", '{"lora_alpha": "x"}'):
        file.write_text(broken)
        with pytest.raises(ModelError, match="read"):
            ADAPTER.read_saved(tmp_path / "adapter", bench.model)


def test_the_registry_finds_lora_and_no_inner_module() -> None:
    """One file, one name."""
    assert "lora" in ADAPTERS.names()
    assert not any(name.startswith("_") for name in ADAPTERS.names())
    assert ADAPTERS.get("lora") is ADAPTER


def test_attaching_warns_of_nothing(tiny_gpt2: Path, toys: Any) -> None:
    """Neither GPT-2's transposed layers nor an alias that PEFT reads is the user's business."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        toys.bench(tiny_gpt2, toys.causal)
    assert not [str(warning.message) for warning in seen]
