"""Models that do not keep examples apart are refused by name, on made-up rows, before anything is charged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model, MPNetConfig, MPNetModel
from transformers.models.llama.modeling_llama import LlamaMLP

from wardround.core.errors import ConfigError, TrainingError
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.adapters import ADAPTERS
from wardround.training.base_model import BaseModelConfig
from wardround.training.private import dry_pass, per_example, summing
from wardround.training.private.dry_pass import require_apart
from wardround.training.private.per_example import require_rules
from wardround.training.tasks import TASKS
from wardround.training.workbench import Machine, open_workbench

CLASSIFY = TaskSpec(name="sequence_classification", metrics="classification")
CAUSAL = TaskSpec(name="causal_lm", metrics="language_model")


@pytest.fixture
def real(folders: dict[str, Path]) -> Any:
    """`real(family or folder, **options)`: a bench with a task of the project's own, and that task's spec."""

    def make(family: str | Path, **options: Any) -> tuple[Any, TaskSpec]:
        spec = CLASSIFY if isinstance(family, Path) or family == "bert" else CAUSAL
        folder = family if isinstance(family, Path) else folders[family]
        method = ADAPTERS.get(options.pop("method", "lora"))
        base = BaseModelConfig(
            path=str(folder), dtype=options.pop("dtype", "float32"),
            attention="eager" if isinstance(family, Path) else "sdpa",
        )  # fmt: skip
        machine = options.pop("machine", Machine(device="cpu"))
        data = DataContract(columns={}, labels=("a", "b", "c") if spec is CLASSIFY else ())
        bench = open_workbench(
            base, TASKS.get(spec.name), data, method, method.Options(**options), machine, seed=7
        )
        return bench, spec

    return make


def with_tokenizer_of(folder: Path, model: Any, tmp_path: Path) -> Path:
    """A model's folder."""
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    return tmp_path


SMALL: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip


def test_layers_that_serve_positions_as_well_are_refused_by_name(
    real: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    """DeBERTa's `share_att_key`: the layers have rules, and read relative positions beside the text."""
    torch.manual_seed(3)
    model = DebertaV2Model(
        DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True)
    )
    folder = with_tokenizer_of(tiny_bert, model, tmp_path)
    bench, spec = real(folder, targets=("query_proj", "key_proj"))
    require_rules(bench.model, bench.parameters())
    with pytest.raises(ConfigError, match=r"keep examples apart[\s\S]*(query|key)_proj\.lora_"):
        require_apart(bench, bench.parameters(), spec)
    apart, spec = real(folder, targets=("value_proj",))
    require_apart(apart, apart.parameters(), spec)


def test_a_table_of_distances_is_refused_whatever_its_name(
    real: Any, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read at (T, T) places: where a batch has T examples, its rule takes places for examples."""
    monkeypatch.setattr(per_example, "by_distance", lambda _: False)
    torch.manual_seed(3)
    folder = with_tokenizer_of(
        tiny_bert, MPNetModel(MPNetConfig(**(SMALL | {"max_position_embeddings": 130}))), tmp_path
    )
    bench, spec = real(folder, targets=("relative_attention_bias", "q"))
    with pytest.raises(ConfigError, match=r"keep examples apart[\s\S]*relative_attention_bias"):
        require_apart(bench, bench.parameters(), spec)


def test_layers_that_read_all_tokens_in_one_dimension_are_refused_by_name(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a router of experts does."""
    plain = LlamaMLP.forward

    def flat(self: Any, x: torch.Tensor) -> torch.Tensor:
        return plain(self, x.reshape(-1, x.shape[-1])).view(x.shape)

    monkeypatch.setattr(LlamaMLP, "forward", flat)
    bench, spec = real("llama", targets=("up_proj",))
    require_rules(bench.model, bench.parameters())
    with pytest.raises(ConfigError, match=r"keep examples apart[\s\S]*up_proj\.lora_A"):
        require_apart(bench, bench.parameters(), spec)


def test_what_mixes_examples_under_the_right_shapes_is_refused_by_name(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row gets some of its neighbour, as under a shared normalisation: no shape tells."""
    plain = LlamaMLP.forward

    def mixed(self: Any, x: torch.Tensor) -> torch.Tensor:
        return plain(self, x - x.mean(0, keepdim=True))

    monkeypatch.setattr(LlamaMLP, "forward", mixed)
    bench, spec = real("llama", targets=("q_proj",))
    with pytest.raises(ConfigError, match=r"what is beside it in the batch[\s\S]*q_proj\.lora_"):
        require_apart(bench, bench.parameters(), spec)


def test_losses_over_the_whole_batch_are_refused(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's `labels=`: a mean over everybody's tokens."""

    def over_all(task: Any, model: Any, tensors: Any, counts: torch.Tensor) -> torch.Tensor:
        return task.example_losses(model, tensors) / counts.mean()

    monkeypatch.setattr(summing, "example_means", over_all)
    bench, spec = real("llama")
    with pytest.raises(ConfigError, match="beside it in the batch"):
        require_apart(bench, bench.parameters(), spec)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"dropout": 0.1}),
        ("llama", {"targets": ("embed_tokens", "q_proj"), "modules_to_save": ("norm", "lm_head")}),
        ("llama", {"method": "lora_sb", "r": 4, "start": "svd"}),
        ("llama", {"dora": True, "machine": Machine(device="cpu", gradient_checkpointing=True)}),
        ("llama", {"dtype": "bfloat16"}),
        ("llama", {"machine": Machine(device="cpu", precision="bf16")}),
        ("bert", {"bias": "all"}),
        ("bert", {"targets": ("query",), "modules_to_save": ("embeddings", "pooler")}),
        ("bert", {"dtype": "float16"}),
        ("gpt2", {"targets": ("wpe", "c_attn"), "modules_to_save": ("ln_f",)}),
    ],
    ids=str,
)  # fmt: skip
def test_a_model_that_keeps_examples_apart_is_left_as_it_was(
    family: str, options: dict[str, Any], real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, modes and randomness included; asked again for the same names, nothing runs."""
    bench, spec = real(family, **options)
    parameters = bench.parameters()
    state = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    torch.manual_seed(5)
    words = torch.get_rng_state()
    dropout = [module.p for module in bench.model.modules() if isinstance(module, torch.nn.Dropout)]
    require_apart(bench, parameters, spec)
    assert torch.equal(torch.get_rng_state(), words)
    assert all(torch.equal(tensor, state[name]) for name, tensor in bench.model.state_dict().items())
    assert dropout == [m.p for m in bench.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert not any(
        module.training or hasattr(vars(module).get("forward"), "rule") for module in bench.model.modules()
    )
    assert all(p.grad is None and p.requires_grad for p in parameters.values())
    monkeypatch.setattr(dry_pass, "_compare", lambda *_: pytest.fail("again"))
    require_apart(bench, parameters, spec)
    some = {name: p for name, p in parameters.items() if name != next(iter(parameters))}
    with pytest.raises(pytest.fail.Exception, match="again"):
        require_apart(bench, some, spec)


def test_what_a_strategy_freezes_is_not_asked_for(real: Any) -> None:
    """FFA-LoRA: only B trains, and all train again afterwards."""
    bench, spec = real("llama")
    parameters = bench.parameters()
    require_apart(bench, {name: p for name, p in parameters.items() if "lora_A" not in name}, spec)
    assert all(p.requires_grad for p in parameters.values())


def test_a_device_that_does_not_hold_three_short_rows_says_so_before_anything_is_charged(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of no row of the site: the answer depends on nobody."""

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(summing, "example_means", full)
    bench, spec = real("llama")
    with pytest.raises(TrainingError) as caught:
        require_apart(bench, bench.parameters(), spec)
    assert caught.value.code == "out_of_memory"
    assert all(p.grad is None and p.requires_grad for p in bench.parameters().values())
