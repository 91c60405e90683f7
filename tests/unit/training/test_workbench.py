"""The bench that sites share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import DataContract
from wardround.training.workbench import Machine, pick_device, with_tokenizer


def test_the_initial_adapter_stays_what_it_was(tiny_llama: Path, toys: Any) -> None:
    """Loading another adapter does not change what the plan starts from."""
    bench = toys.bench(tiny_llama, toys.causal)
    digest = bench.initial_adapter().digest
    other = bench.initial_adapter().with_vector(np.ones(bench.layout.size, np.float32))
    bench.load_adapter(other)
    assert bench.read_adapter().digest == other.digest
    assert bench.initial_adapter().digest == digest


def test_what_was_read_is_a_copy(tiny_llama: Path, toys: Any) -> None:
    """Training on does not reach into an adapter that was handed out."""
    bench = toys.bench(tiny_llama, toys.causal)
    read = bench.read_adapter()
    digest = read.digest
    bench.load_adapter(read.with_vector(read.vector + 1))
    assert read.digest == digest


def test_read_only_vectors_can_be_loaded(tiny_llama: Path, toys: Any) -> None:
    """An adapter straight from a message's buffer is read-only."""
    bench = toys.bench(tiny_llama, toys.causal)
    vector = np.frombuffer(np.ones(bench.layout.size, np.float32).tobytes(), dtype=np.float32)
    bench.load_adapter(bench.initial_adapter().with_vector(vector))
    assert (bench.read_adapter().vector == 1).all()


def test_the_bench_completes_the_data_contract(tiny_llama: Path, toys: Any) -> None:
    """Pad and end tokens and digests come from the tokenizer; a plan's own have to agree with it."""
    bench = toys.bench(tiny_llama, toys.causal)
    assert bench.data.pad_token_id == 0
    assert bench.data.end_token_ids == (2,)
    assert with_tokenizer(bench.data, bench.base, bench.task) == bench.data
    other = bench.data.model_copy(update={"chat_template_digest": "0" * 64})
    with pytest.raises(ModelError, match="chat_template_digest"):
        with_tokenizer(other, bench.base, bench.task)
    assert with_tokenizer(DataContract(columns={}), bench.base, bench.task) == bench.data


def test_devices_are_picked_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes CUDA, then MPS, then the CPU; what is not there is an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device=cuda"):
        pick_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


def test_threads_are_set(tiny_llama: Path, toys: Any) -> None:
    """The machine's choice reaches torch."""
    before = torch.get_num_threads()
    try:
        toys.bench(tiny_llama, toys.causal, machine=Machine(device="cpu", threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_architecture_that_cannot_recompute_is_refused_by_name(
    tiny_llama: Path, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers' own refusal becomes a setting to change."""
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match=r"machine\.gradient_checkpointing=false"):
        toys.bench(tiny_llama, toys.causal, machine=Machine(device="cpu", gradient_checkpointing=True))
