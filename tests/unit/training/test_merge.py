"""Merging an adapter into its base, proven from disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from wardround.core.errors import ConfigError, ModelError, StorageError
from wardround.training import merge
from wardround.training.adapters.lora import ADAPTER
from wardround.training.base_model import BaseModelConfig
from wardround.training.merge import MergeReport, merge_adapter
from wardround.training.workbench import Workbench

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("tiny_llama", "causal", {}),
    "llama-bf16": ("tiny_llama", "causal", {"dtype": "bfloat16"}),
    "llama-classifier": ("tiny_llama", "classifier", {}),
    "gpt2": ("tiny_gpt2", "causal", {}),
    "bert": ("tiny_bert", "classifier", {}),
    "bert-bf16": ("tiny_bert", "classifier", {"dtype": "bfloat16"}),
    "bert-bias-rslora": ("tiny_bert", "classifier", {"bias": "all", "rslora": True, "targets": ("query",)}),
    "bert-embeddings": ("tiny_bert", "classifier", {"targets": ("word_embeddings", "key")}),
    "llama-dora": ("tiny_llama", "causal", {"dora": True}),
    "gpt2-dora": ("tiny_gpt2", "causal", {"dora": True}),
    "bert-dora-bf16": ("tiny_bert", "classifier", {"dora": True, "dtype": "bfloat16"}),
    "bert-dora-embeddings": (
        "tiny_bert",
        "classifier",
        {"dora": True, "targets": ("word_embeddings", "key")},
    ),
    "gpt2 cores": ("tiny_gpt2", "causal", {"method": "lora_sb"}),
}


def saved(bench: Workbench, folder: Path, *, std: float = 0.3) -> Path:
    """An adapter of random numbers on disk."""
    vector = np.random.default_rng(3).normal(0, std, bench.layout.size).astype(np.float32)
    bench.load_adapter(bench.initial_adapter().with_vector(vector))
    bench.method.save(bench.model, folder, bench.base.name)
    return folder


def run(bench: Workbench, adapter: Path, out: Path, toys: Any, **options: Any) -> MergeReport:
    """Merge with four samples."""
    return merge_adapter(
        adapter, bench.base.config, bench.method, bench.task, bench.data, out, samples=toys.rows(4), **options
    )


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_answers_as_the_adapter_does(
    case: str, toys: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Plain from_pretrained on the result, plain PEFT on the base: the same logits, unlike the base's."""
    folder, task, options = CASES[case]
    place = request.getfixturevalue(folder)
    bench = toys.bench(place, getattr(toys, task), **options)
    # In half precision an adapter many times the base's size would be rounding and little else.
    adapter = saved(bench, tmp_path / "adapter", std=0.1 if "dtype" in options else 0.3)
    report = run(bench, adapter, tmp_path / "merged", toys)
    assert report.passed, report.reason
    assert report.parity.relative <= report.tolerance
    assert report.adapted_modules == len({s.module for s in bench.layout.tensors if s.module})
    assert report.changed_modules == report.adapted_modules
    assert report.against_quantised is None

    auto: Any = AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification
    labels = {} if task == "causal" else {"num_labels": 3}
    merged, info = auto.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert merged.dtype == getattr(torch, options.get("dtype", "float32"))
    base = auto.from_pretrained(place, dtype=merged.dtype, **labels)
    base.config.pad_token_id = merged.config.pad_token_id = bench.data.pad_token_id
    tokens = torch.tensor(toys.rows(1)[0].tokens[None].astype(np.int64))
    with torch.no_grad():
        plain = base.eval()(tokens).logits
        adapted = PeftModel.from_pretrained(base, str(adapter)).eval()(tokens).logits
        found = merged.eval()(tokens).logits
    scale = float(adapted.float().abs().max())
    assert float((found - adapted).float().abs().max()) <= report.tolerance * scale
    assert float((found - plain).float().abs().max()) > 0.05 * scale
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]


def test_a_zero_adapter_merges_into_the_base_itself(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """Equal to the base is right where the adapter is zero."""
    bench = toys.bench(tiny_llama, toys.causal)
    ADAPTER.save(bench.model, tmp_path / "adapter", "base")
    report = run(bench, tmp_path / "adapter", tmp_path / "merged", toys)
    assert report.passed
    assert report.adapted_modules == report.changed_modules == 0


def test_a_merge_that_changes_nothing_fails(
    tiny_llama: Path, toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter too small for the logits to tell is still found missing in the weights on disk."""
    bench = toys.bench(tiny_llama, toys.causal)
    adapter = saved(bench, tmp_path / "adapter", std=1e-4)
    monkeypatch.setattr(merge, "_merged", lambda base, task, data, folder: pristine(bench, data))
    report = run(bench, adapter, tmp_path / "merged", toys)
    assert not report.passed
    assert "equal the base's" in report.reason
    assert report.parity.relative <= report.tolerance
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def pristine(bench: Workbench, data: Any) -> PreTrainedModel:
    """The base model as it lies on disk."""
    model, _ = bench.task.load_model(bench.base.config.path, data)
    return model


def test_a_merge_that_loses_the_adapter_fails(
    tiny_llama: Path, toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits beyond the tolerance: nothing is put in place, and the reason has both numbers."""
    bench = toys.bench(tiny_llama, toys.causal)
    adapter = saved(bench, tmp_path / "adapter")
    monkeypatch.setattr(merge, "_merged", lambda base, task, data, folder: pristine(bench, data))
    report = run(bench, adapter, tmp_path / "merged", toys)
    assert not report.passed
    assert "more than 0.0001" in report.reason
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_comparison_is_with_what_lies_on_disk(
    tiny_llama: Path, toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right model in memory that is damaged while it is written does not pass."""
    bench = toys.bench(tiny_llama, toys.causal)
    adapter = saved(bench, tmp_path / "adapter")
    write = merge._write

    def damaged(merged: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
        write(merged, tokenizer, folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merge, "_write", damaged)
    report = run(bench, adapter, tmp_path / "merged", toys)
    assert not report.passed
    assert not (tmp_path / "merged").exists()


def test_weights_that_are_nan_fail(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """They are refused by name before anything is loaded twice."""
    bench = toys.bench(tiny_llama, toys.causal)
    adapter = saved(bench, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        run(bench, adapter, tmp_path / "merged", toys)
    assert not (tmp_path / "merged").exists()


def test_a_tolerance_of_the_caller_counts(tiny_bert: Path, toys: Any, tmp_path: Path) -> None:
    """Zero is more than rounding allows."""
    bench = toys.bench(tiny_bert, toys.classifier, dtype="bfloat16")
    report = run(bench, saved(bench, tmp_path / "adapter"), tmp_path / "merged", toys, tolerance=0.0)
    assert not report.passed


@pytest.mark.parametrize("when", ["first write", "flush", "rename"])
def test_a_full_disk_leaves_nothing_behind(
    when: str, tiny_llama: Path, toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the disk fills: a StorageError, no folder, no temporary one."""
    bench = toys.bench(tiny_llama, toys.causal)
    adapter = saved(bench, tmp_path / "adapter")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    match when:
        case "first write":
            monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
        case "flush":
            monkeypatch.setattr(os, "fsync", full)
        case "rename":
            monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        run(bench, adapter, tmp_path / "merged", toys)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_is_there_already_is_never_overwritten(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """A folder that holds something is refused before anything is loaded; an empty one is taken."""
    bench = toys.bench(tiny_llama, toys.causal)
    adapter = saved(bench, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already there"):
        run(bench, adapter, tmp_path / "merged", toys)
    assert (tmp_path / "merged" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert run(bench, adapter, tmp_path / "empty", toys).passed


def test_adapters_that_do_not_belong_are_refused(
    tiny_llama: Path, tiny_gpt2: Path, toys: Any, tmp_path: Path
) -> None:
    """No adapter, another architecture's, one that lacks tensors: a clear error each."""
    bench, other = toys.bench(tiny_llama, toys.causal), toys.bench(tiny_gpt2, toys.causal)
    with pytest.raises(ModelError, match="no adapter in"):
        run(bench, tmp_path / "gone", tmp_path / "merged", toys)
    with pytest.raises(ModelError, match="does not belong"):
        run(bench, saved(other, tmp_path / "gpt2"), tmp_path / "merged", toys)
    adapter = saved(bench, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(min(weights))
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not fit"):
        run(bench, adapter, tmp_path / "merged", toys)
    with pytest.raises(ConfigError, match="sample"):
        merge_adapter(
            adapter, bench.base.config, bench.method, bench.task, bench.data, tmp_path / "merged", samples=[]
        )


def test_a_quantised_base_is_merged_unquantised_and_both_differences_told(
    tiny_llama: Path, toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantised answers (here the base's, slightly off) are reported and decide nothing."""
    bench = toys.bench(tiny_llama, toys.causal)
    adapter = saved(bench, tmp_path / "adapter")
    config = BaseModelConfig(path=str(tiny_llama), quantisation="4bit", digest="0" * 64)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="bitsandbytes"):
        merge_adapter(
            adapter, config, bench.method, bench.task, bench.data, tmp_path / "merged", samples=toys.rows(2)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    noisy = [np.full((1, len(row.tokens), 384), 9.0, np.float32) for row in toys.rows(2)]
    monkeypatch.setattr(merge, "_quantised_logits", lambda *_: noisy)
    report = merge_adapter(
        adapter, config, bench.method, bench.task, bench.data, tmp_path / "merged", samples=toys.rows(2)
    )
    assert report.passed
    assert report.against_quantised is not None
    assert report.against_quantised.relative > 0.5
    assert report.quantisation == "4bit"


def test_the_base_model_is_left_as_it_was(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """Merging writes to its own folder only."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    bench = toys.bench(base, toys.causal)
    assert run(bench, saved(bench, tmp_path / "adapter"), tmp_path / "merged", toys).passed
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import PreTrainedModel
from wardround.core.plan import DataContract
from wardround.training import merge
from wardround.training.adapters.lora import ADAPTER
from wardround.training.base_model import BaseModelConfig
from wardround.training.tasks import TASKS
from wardround.training.encoded_text import EncodedText
import numpy as np

write = merge._write

def killed(merged, tokenizer, folder):
    write(merged, tokenizer, folder)
    os.kill(os.getpid(), signal.SIGKILL)

merge._write = killed
sample = EncodedText(np.arange(3, 9, dtype=np.int32), np.arange(3, 9, dtype=np.int32))
merge.merge_adapter(
    Path(sys.argv[1]), BaseModelConfig(path=sys.argv[2]), ADAPTER, TASKS.get("causal_lm"),
    DataContract(columns={}), Path(sys.argv[3]), samples=[sample],
)
"""


def test_what_a_killed_merge_left_goes_with_the_next(
    tiny_llama: Path, toys: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A real SIGKILL once the weights are written: a model's worth of disk, which nobody else would free."""
    bench = toys.bench(tiny_llama, toys.causal)
    adapter = saved(bench, tmp_path / "adapter")
    arguments = [str(adapter), str(tiny_llama), str(tmp_path / "merged")]
    said = tmp_path_factory.mktemp("killed") / "said.txt"
    assert warm.ended(warm.start(KILLED, arguments, tmp_path, said)) == -signal.SIGKILL, said.read_text()
    (left,) = [path for path in tmp_path.iterdir() if path.name != "adapter"]
    assert (left / "model.safetensors").stat().st_size > 10_000
    assert run(bench, adapter, tmp_path / "merged", toys).passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]
