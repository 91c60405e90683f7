"""Losses, packing and stopping of the causal LM task."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
)

from wardround.core.errors import ConfigError, ModelError, TrainingError
from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT
from wardround.core.plan import DataContract, LocalWork, TaskSpec
from wardround.strategies.contract import LocalRules
from wardround.training.adapters.lora import ADAPTER, LoraOptions
from wardround.training.base_model import BaseModelConfig
from wardround.training.chat_spans import Written
from wardround.training.encoded_text import EncodedText
from wardround.training.generation import generate_greedy
from wardround.training.local_round import LocalJob, train_locally
from wardround.training.packing import pack_rows, require_packable, segment_bounds
from wardround.training.tasks.causal_lm import TASK
from wardround.training.tasks.contract import Example
from wardround.training.text_tokens import prompt_tokens
from wardround.training.workbench import Machine, open_workbench

CPU = torch.device("cpu")
SPEC = TaskSpec(name="causal_lm", options={"use_chat_template": False}, metrics="language")
PAIRS = [
    ("What is flu?", " A viral infection."),
    ("Fever?", " Yes."),
    ("Q", "A"),
    ("Is it serious? ", "Sometimes it is."),
    ("Where does it hurt, and since when?", " In the chest, for two days."),
    ("x", "y z"),
    ("", "only an answer"),
]


def opened(folder: Path, **keywords: Any) -> tuple[Any, Any, DataContract]:
    """Model, tokenizer, contract."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, **keywords).eval()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    data = DataContract(columns={}, max_length=64, pad_token_id=pad, end_token_ids=(tokenizer.eos_token_id,))
    return model, tokenizer, data


def encoded(tokenizer: Any, data: DataContract) -> list[EncodedText]:
    """The pairs as rows."""
    examples = [Example(n, {"prompt": p, "completion": c}) for n, (p, c) in enumerate(PAIRS, start=1)]
    return TASK.encode(examples, tokenizer, data, SPEC)


@pytest.mark.parametrize("folder", ["tiny_llama", "tiny_gpt2"])
def test_losses_are_sums_over_targets_as_the_slow_twin_has_them(
    request: pytest.FixtureRequest, folder: str
) -> None:
    """One row at a time, token by token, from log-softmax in float64."""
    model, tokenizer, data = opened(request.getfixturevalue(folder))
    rows = encoded(tokenizer, data)
    losses = TASK.example_losses(model, TASK.collate(rows, data))
    assert losses.dtype == torch.float32
    for row, loss in zip(rows, losses.tolist(), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(row.tokens[None].astype(np.int64))).logits[0].double()
        slow = 0.0
        for place in range(1, row.tokens.size):
            if row.targets[place] >= 0:
                slow -= float(logits[place - 1].log_softmax(dim=-1)[int(row.targets[place])])
        assert loss == pytest.approx(slow, rel=1e-5)


def test_a_rows_loss_is_independent_of_its_neighbours(tiny_llama: Path) -> None:
    """Alone, among short rows, among long rows: the same loss to float precision."""
    model, tokenizer, data = opened(tiny_llama)
    rows = encoded(tokenizer, data)
    together = TASK.example_losses(model, TASK.collate(rows, data))
    alone = torch.cat([TASK.example_losses(model, TASK.collate([row], data)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_rows_without_targets_have_loss_zero_and_break_nothing(tiny_llama: Path) -> None:
    """The loss is 0, its gradient too, beside rows with targets and in a batch of its own."""
    model, tokenizer, data = opened(tiny_llama)
    rows = encoded(tokenizer, data)
    bare = EncodedText(tokens=rows[0].tokens, targets=np.full_like(rows[0].tokens, -100))
    for batch in ([bare, rows[1]], [bare]):
        losses = TASK.example_losses(model, TASK.collate(batch, data))
        losses.sum().backward()
        assert losses[0] == 0
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all gradients."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("folder", ["tiny_llama", "tiny_gpt2"])
def test_packed_rows_do_not_see_each_other(
    request: pytest.FixtureRequest, folder: str, attention: str
) -> None:
    """Logits at every token, the summed loss and all gradients equal those of the rows one by one."""
    model, tokenizer, data = opened(request.getfixturevalue(folder), attn_implementation=attention)
    rows = encoded(tokenizer, data)
    packed = TASK.encode(
        [Example(n, {"prompt": p, "completion": c}) for n, (p, c) in enumerate(PAIRS, start=1)],
        tokenizer, data.model_copy(update={"packing": True}), SPEC,
    )  # fmt: skip
    assert 1 < len(packed) < len(rows)
    assert sum(TASK.targets(row) for row in packed) == sum(TASK.targets(row) for row in rows)
    assert sum(row.text_bytes for row in packed) == sum(row.text_bytes for row in rows)
    assert all(row.tokens.size <= data.max_length for row in packed)

    seen: list[torch.Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.logits.detach()))
    TASK.example_losses(model, TASK.collate(packed, data)).sum().backward()
    handle.remove()
    (logits,) = seen
    of_packed = gradients(model)
    model.zero_grad()
    for line, row in enumerate(packed):
        for start, stop in segment_bounds(row):
            with torch.no_grad():
                alone = model(input_ids=torch.tensor(row.tokens[None, start:stop].astype(np.int64))).logits[0]
            torch.testing.assert_close(logits[line, start:stop], alone, rtol=1e-5, atol=1e-5)
    TASK.example_losses(model, TASK.collate(rows, data)).sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(of_packed[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_packing_is_refused_where_one_mask_does_not_serve_every_layer() -> None:
    """A sliding window would be lost and recurrent layers would leak: an error, and no wrong gradient."""
    sizes = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    data = DataContract(columns={}, pad_token_id=0)
    tokens = np.arange(3, 11, dtype=np.int32)
    (packed,) = pack_rows([EncodedText(tokens, tokens)] * 2, 16)
    batch = TASK.collate([packed], data)
    assert torch.isfinite(
        TASK.example_losses(MistralForCausalLM(MistralConfig(**sizes, sliding_window=16)), batch)
    ).all()
    with pytest.raises(ModelError, match="sliding window of 8"):
        TASK.example_losses(MistralForCausalLM(MistralConfig(**sizes, sliding_window=8)), batch)
    require_packable(SimpleNamespace(sliding_window=8, layer_types=["full_attention"]), 16)
    with pytest.raises(ModelError, match="linear_attention"):
        require_packable(SimpleNamespace(layer_types=["full_attention", "linear_attention"]), 16)


def test_packing_looks_at_the_text_part_of_a_model_for_images_and_text(tmp_path: Path) -> None:
    """Gemma 3 keeps its window and its positions one level down; the mask would replace the window."""
    text = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8,
        "max_position_embeddings": 32,
    }  # fmt: skip
    images = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=images, mm_tokens_per_image=4, image_token_index=60,
        boi_token_index=61, eoi_token_index=62,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    tokens = np.arange(3, 11, dtype=np.int32)
    (packed,) = pack_rows([EncodedText(tokens, tokens)] * 2, 16)
    with pytest.raises(ModelError, match="sliding window of 8"):
        TASK.example_losses(model, TASK.collate([packed], DataContract(columns={}, pad_token_id=0)))
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.max_length=32"):
        TASK.load_model(str(tmp_path), DataContract(columns={}, max_length=33))


@pytest.mark.parametrize("architecture", ["Bart", "Bloom", "Falcon", "Rwkv"])
def test_packing_is_refused_where_positions_cannot_restart(architecture: str) -> None:
    """BART would count on into the next row and RWKV read on; ALiBi cannot be made: an error by name."""
    sizes: dict[str, dict[str, Any]] = {
        "Bart": {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
        "Bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
        "Falcon": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "alibi": True},
        "Rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16},
    }
    config = getattr(transformers, f"{architecture}Config")(vocab_size=64, **sizes[architecture])
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    tokens = np.arange(3, 11, dtype=np.int32)
    data = DataContract(columns={}, pad_token_id=0)
    (packed,) = pack_rows([EncodedText(tokens, tokens)] * 2, 16)
    with pytest.raises(ModelError, match=f"{architecture}ForCausalLM"):
        TASK.example_losses(model, TASK.collate([packed], data))


def test_packing_reports_what_was_cut_of_rows_that_it_leaves_out() -> None:
    """A row whose answer was cut off altogether is in no bin, and its tokens are told all the same."""
    tokens = np.arange(3, 11, dtype=np.int32)
    cut_off = EncodedText(tokens, np.full_like(tokens, -100), cut=7)
    whole = EncodedText(tokens, tokens)
    for rows in ([cut_off, replace(whole, cut=2), whole], [cut_off, cut_off]):
        assert sum(row.cut for row in pack_rows(rows, 8)) == sum(row.cut for row in rows)
    assert pack_rows([], 8) == []


def test_packed_rows_fit_a_bfloat16_model(tiny_llama: Path) -> None:
    """The mask is added in the model's own dtype; the loss comes back in float32."""
    model, tokenizer, data = opened(tiny_llama, dtype=torch.bfloat16)
    packed = TASK.encode(
        [Example(n, {"prompt": p, "completion": c}) for n, (p, c) in enumerate(PAIRS, start=1)],
        tokenizer, data.model_copy(update={"packing": True}), SPEC,
    )  # fmt: skip
    losses = TASK.example_losses(model, TASK.collate(packed, data))
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()


def test_counters_are_exact_and_add_up_over_batches(tiny_llama: Path) -> None:
    """Tokens, bytes and hits are integers of the rows; the loss is fixed-point, rounded row by row."""
    model, tokenizer, data = opened(tiny_llama)
    rows = encoded(tokenizer, data)
    whole = TASK.count(model, TASK.collate(rows, data), rows, data, SPEC)
    assert set(whole) == set(TASK.counter_layout(data, SPEC).offsets)
    assert int(whole["tokens"]) == sum(TASK.targets(row) for row in rows)
    unpredicted = tokenizer.decode(rows[-1].tokens[:1].tolist())  # of the row without a prompt
    assert int(whole["bytes"]) == sum(len(text.encode()) for _, text in PAIRS) - len(unpredicted)
    parts = [TASK.count(model, TASK.collate([row], data), [row], data, SPEC) for row in rows]
    for name in ("tokens", "bytes", "correct_tokens"):
        assert int(whole[name]) == sum(int(part[name]) for part in parts)
    nats = TASK.example_losses(model, TASK.collate(rows, data)).sum().item()
    assert float(whole["loss"]) * LOSS_UNIT == pytest.approx(nats, rel=1e-6)
    assert all(array.dtype == np.int64 for array in whole.values())


def test_a_loss_that_is_not_finite_is_an_error_and_no_count(tiny_llama: Path) -> None:
    """NaN never becomes an integer."""
    model, tokenizer, data = opened(tiny_llama)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    rows = encoded(tokenizer, data)
    with pytest.raises(TrainingError) as caught:
        TASK.count(model, TASK.collate(rows, data), rows, data, SPEC)
    assert caught.value.code == "non_finite_loss"


def test_a_loss_beyond_all_measure_does_not_wrap_around(tiny_llama: Path) -> None:
    """A model gone astray counts as LARGEST_LOSS nats a row; an int64 of more would be negative."""
    model, tokenizer, data = opened(tiny_llama)
    rows = encoded(tokenizer, data)
    with torch.no_grad():
        model.model.norm.weight.mul_(1e20)
    counts = TASK.count(model, TASK.collate(rows, data), rows, data, SPEC)
    assert 0 < float(counts["loss"]) * LOSS_UNIT <= LARGEST_LOSS * len(rows)


def answers_after_training(
    model: Any, tokenizer: Any, data: DataContract, rows: list[EncodedText]
) -> list[int]:
    """Lengths of the answers to the training questions, 24 tokens at most, after a short fine-tuning."""
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = TASK.collate(rows, data)
    targets = sum(TASK.targets(row) for row in rows)
    for _ in range(50):
        optimiser.zero_grad()
        (TASK.example_losses(model, batch).sum() / targets).backward()
        optimiser.step()
    prompts = [
        prompt_tokens(Written(prompt, (), complete=False, special=True), tokenizer) for prompt, _ in QUESTIONS
    ]
    answers = generate_greedy(
        model, prompts, pad_token_id=data.pad_token_id, end_token_ids=data.end_token_ids,
        max_new_tokens=24, batch_size=4, device=CPU,
    )  # fmt: skip
    return [answer.size for answer in answers]


QUESTIONS = [
    ("Is the dog big?", " Yes, big."), ("Is the cat small?", " Yes, small."), ("Did Tim cry?", " No."),
    ("Was Lily happy?", " Yes."), ("Where is the ball?", " In the park."), ("Who ran?", " The dog."),
]  # fmt: skip


def test_a_model_trained_on_short_answers_stops_by_itself(shared_data: Path) -> None:
    """Every answer ends before the limit; without the end token under loss the same training never stops."""
    torch.manual_seed(0)
    model, tokenizer, data = opened(shared_data / "models" / "stories260k-llama")
    rows = TASK.encode(
        [Example(n, {"prompt": p, "completion": c}) for n, (p, c) in enumerate(QUESTIONS, start=1)],
        tokenizer, data, SPEC,
    )  # fmt: skip
    stopped = answers_after_training(model, tokenizer, data, rows)
    assert max(stopped) < 12

    endless = [
        EncodedText(
            row.tokens, np.where(row.targets == tokenizer.eos_token_id, -100, row.targets).astype(np.int32)
        )
        for row in rows
    ]
    assert min(answers_after_training(model, tokenizer, data, endless)) == 24


def test_an_adapter_trained_on_packed_chats_answers_and_stops(shared_data: Path) -> None:
    """A local round of LoRA: each turn is answered as it was learnt, and the end token comes by itself."""
    pairs = QUESTIONS[:4]
    bench = open_workbench(
        BaseModelConfig(path=str(shared_data / "models" / "med-llama-5m")), TASK,
        DataContract(columns={}, max_length=96, packing=True), ADAPTER, LoraOptions(), Machine(device="cpu"),
        seed=1,
    )  # fmt: skip
    asked = TaskSpec(name="causal_lm", options={"format": "messages", "max_new_tokens": 24})
    turns = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in pairs
    ]
    chats = [
        Example(1, {"messages": turns[0] + turns[1]}),
        Example(2, {"messages": turns[2] + turns[3]}),
        *(Example(number, {"messages": turn}) for number, turn in enumerate(turns, start=3)),
    ]
    rows = TASK.encode(chats, bench.tokenizer, bench.data, asked)
    assert len(rows) < len(chats)
    work = LocalWork(steps=20, batch_size=8, learning_rate=5e-3)
    train_locally(
        bench, LocalJob(rows, bench.fresh, work, LocalRules(), round=1, rounds=1, seed_root=0, site="ward")
    )
    told = [Example(number, {"messages": turn[:1]}) for number, turn in enumerate(turns, start=1)]
    said = TASK.predict(
        bench.model, bench.tokenizer, told, bench.data, asked, batch_size=4, device=bench.device
    )
    assert [row["answer"] for row in said] == [answer.strip() for _, answer in pairs]


def test_loading_runs_no_code_of_the_models_and_reports_what_was_missing(tiny_llama: Path) -> None:
    """`trust_remote_code` cannot be switched on by a caller."""
    data = DataContract(columns={})
    model, info = TASK.load_model(str(tiny_llama), data, trust_remote_code=True, dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not info["missing_keys"]


@pytest.mark.parametrize(("folder", "longest"), [("tiny_llama", 256), ("tiny_gpt2", 128)])
def test_rows_longer_than_the_model_reads_are_refused(
    request: pytest.FixtureRequest, folder: str, longest: int
) -> None:
    """Before any row is trained on: GPT-2 has no more positions, Llama was never trained on them."""
    path = str(request.getfixturevalue(folder))
    TASK.load_model(path, DataContract(columns={}, max_length=longest))
    with pytest.raises(ConfigError, match=rf"data\.max_length={longest}$"):
        TASK.load_model(path, DataContract(columns={}, max_length=longest + 1))
