"""One pass gives what a loop over single examples gives, for whatever trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.core.errors import ConfigError, InternalError
from wardround.training.private.per_example import record_gradients, require_rules
from wardround.training.workbench import Machine

EXACT = 5e-6
"""Relative to each example's gradient: float32, summed in another order."""

LLAMA: dict[str, dict[str, Any]] = {
    "lora": {},
    "rank-1": {"r": 1, "alpha": 3.0},
    "rslora": {"r": 4, "rslora": True},
    "embeddings": {"targets": ("embed_tokens", "q_proj")},
    "norms in full": {"targets": ("v_proj",), "modules_to_save": ("input_layernorm", "norm")},
    "head in full": {"targets": ("q_proj",), "modules_to_save": ("lm_head",)},
    "embeddings in full": {"targets": ("q_proj",), "modules_to_save": ("embed_tokens",)},
    "layer in full": {"targets": ("q_proj",), "modules_to_save": ("mlp",)},
    "cores": {"method": "lora_sb", "r": 4, "start": "svd"},
    "dora": {"dora": True},
    "dora and norms in full": {"targets": ("v_proj",), "modules_to_save": ("norm",), "dora": True},
}
BERT: dict[str, dict[str, Any]] = {
    "lora": {},
    "all biases": {"bias": "all"},
    "biases beside lora": {"targets": ("query",), "bias": "lora_only"},
    "norms in full": {"targets": ("value",), "modules_to_save": ("LayerNorm",)},
    "embeddings": {"targets": ("word_embeddings", "token_type_embeddings", "query")},
    "positions": {"targets": ("position_embeddings", "query")},
    "embeddings in full": {"targets": ("query",), "modules_to_save": ("embeddings",)},
    "dora": {"dora": True},
    "dora beside a bias": {"dora": True, "targets": ("query",), "modules_to_save": ("pooler.dense",)},
    "cores and biases": {"method": "lora_sb", "r": 4, "bias": "all", "start": "random"},
}
GPT2: dict[str, dict[str, Any]] = {
    "lora": {},
    "all biases": {"bias": "all"},
    "embeddings": {"targets": ("wpe", "c_attn")},
    "embeddings in full": {"targets": ("c_attn",), "modules_to_save": ("wpe",)},
    "conv1d in full": {"targets": ("c_attn",), "modules_to_save": ("c_fc", "ln_f")},
    "cores": {"method": "lora_sb", "r": 4, "start": "random"},
    "dora": {"dora": True, "r": 3},
}
CASES = [
    *(("llama", name, options) for name, options in LLAMA.items()),
    *(("bert", name, options) for name, options in BERT.items()),
    *(("gpt2", name, options) for name, options in GPT2.items()),
]


@pytest.mark.parametrize(("family", "name", "options"), CASES, ids=lambda value: str(value)[:24])
def test_every_example_has_the_gradient_that_it_has_alone(
    family: str, name: str, options: dict[str, Any], opened: Any, toys: Any, rows_of_gradients: Any
) -> None:
    """Ragged rows, every supported layer of three families."""
    bench, rows = opened(family, **options), toys.rows(5)
    expected = rows_of_gradients.slow(bench, rows)
    assert rows_of_gradients.error(rows_of_gradients.fast(bench, rows), expected) < EXACT
    assert all(p.grad is None for p in bench.parameters().values())


def test_rows_are_in_the_order_of_the_layout(opened: Any, toys: Any, rows_of_gradients: Any) -> None:
    """A row's places are those of the flat adapter."""
    bench = opened("bert", bias="all")
    with record_gradients(bench.model, bench.parameters()) as gradients:
        assert gradients.size == bench.layout.size
        assert {name: place.start for name, place in gradients.columns.items()} == {
            name: start for name, (start, _) in bench.layout.offsets.items()
        }
        losses = gradients.of(lambda: rows_of_gradients.losses(bench, toys.rows(3)), 3)[1]
    assert torch.equal(losses, rows_of_gradients.losses(bench, toys.rows(3)).detach())


def test_frozen_tensors_have_no_place(opened: Any, toys: Any, rows_of_gradients: Any) -> None:
    """FFA-LoRA: A stands still, B has the gradient that it had."""
    bench, rows = opened("llama"), toys.rows(4)
    whole = rows_of_gradients.fast(bench, rows)
    parameters = bench.parameters()
    moving = {name: p for name, p in parameters.items() if "lora_A" not in name}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in moving)
    with record_gradients(bench.model, moving) as gradients:
        found = rows_of_gradients.of(gradients, bench, rows)
        for name, place in gradients.columns.items():
            start, spec = bench.layout.offsets[name]
            assert torch.allclose(found[:, place], whole[:, start : start + spec.size], atol=1e-7)


@pytest.mark.parametrize("dora", [False, True])
def test_lora_dropout_draws_the_masks_of_the_plain_path(
    folders: dict[str, Path], toys: Any, rows_of_gradients: Any, dora: bool
) -> None:
    """Under one seed the rows sum to the plain gradient of the sum."""
    bench = rows_of_gradients.stirred(toys.bench(folders["llama"], toys.causal, dropout=0.3, dora=dora))
    rows = toys.rows(5)
    torch.manual_seed(3)
    rows_of_gradients.losses(bench, rows).sum().backward()
    plain = torch.cat([p.grad.reshape(-1) for _, p in sorted(bench.parameters().items())])
    for parameter in bench.parameters().values():
        parameter.grad = None
    torch.manual_seed(3)
    summed = rows_of_gradients.fast(bench, rows).sum(0)
    assert float((summed - plain).norm() / plain.norm()) < EXACT


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "llama-dora"])
def test_recomputed_activations_change_nothing(
    family: str, reentrant: bool, opened: Any, toys: Any, rows_of_gradients: Any
) -> None:
    """Both kinds of gradient checkpointing."""
    family, _, dora = family.partition("-")
    bench, rows = opened(family, dora=bool(dora)), toys.rows(4)
    plain = rows_of_gradients.fast(bench, rows)
    base = bench.base.model
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    base.enable_input_require_grads()
    bench.model.train()
    assert rows_of_gradients.error(rows_of_gradients.fast(bench, rows), plain) < EXACT


def test_the_machines_own_checkpointing(opened: Any, toys: Any, rows_of_gradients: Any) -> None:
    """As a bench sets it up."""
    bench = opened(
        "llama", machine=Machine(device="cpu", gradient_checkpointing=True), modules_to_save=("norm",)
    )
    rows = toys.rows(4)
    expected = rows_of_gradients.slow(bench, rows)
    assert rows_of_gradients.error(rows_of_gradients.fast(bench, rows), expected) < EXACT


@pytest.mark.parametrize("dora", [False, True])
def test_a_base_in_half_precision(opened: Any, toys: Any, rows_of_gradients: Any, dora: bool) -> None:
    """A bfloat16 base under a float32 adapter and head; looser, as batches round in other places."""
    bench, rows = opened("bert", dtype="bfloat16", dora=dora), toys.rows(4)
    expected = rows_of_gradients.slow(bench, rows)
    assert rows_of_gradients.error(rows_of_gradients.fast(bench, rows), expected) < 3e-2


def test_autocast(opened: Any, toys: Any, rows_of_gradients: Any) -> None:
    """Products in bfloat16, rows in float32: not further from float32 than the plain path is."""
    bench, rows = opened("llama", modules_to_save=("norm",)), toys.rows(4)
    exact = rows_of_gradients.slow(bench, rows)

    def losses(bench: Any, rows: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return rows_of_gradients.losses(bench, rows)

    plain = rows_of_gradients.error(rows_of_gradients.slow(bench, rows, losses), exact)
    with record_gradients(bench.model, bench.parameters()) as gradients:
        found = gradients.of(lambda: losses(bench, rows), len(rows))[0]
    assert found.dtype == torch.float32
    assert rows_of_gradients.error(found, exact) < 2 * plain < 0.2


def test_no_lines_run_nothing(opened: Any) -> None:
    """The empty Poisson batch: a gradient of zero rows, and no forward pass."""
    bench = opened("bert")
    with record_gradients(bench.model, bench.parameters()) as gradients:
        found, losses = gradients.of(lambda: pytest.fail("the model ran"), 0)
    assert found.shape == (0, bench.layout.size)
    assert losses.shape == (0,)


def test_one_line_that_is_not_finite_spoils_no_other(opened: Any, toys: Any, rows_of_gradients: Any) -> None:
    """Infinite, undefined and overflowing losses stay in their rows."""
    bench, rows = opened("llama"), toys.rows(5)
    plain = rows_of_gradients.fast(bench, rows)
    factors = torch.tensor([1.0, torch.inf, 1.0, torch.nan, 1e38])
    with record_gradients(bench.model, bench.parameters()) as gradients:
        found = gradients.of(lambda: rows_of_gradients.losses(bench, rows) * factors, 5)[0]
        assert torch.allclose(found[[0, 2]], plain[[0, 2]], rtol=1e-4, atol=1e-7)
        assert not found[1].isfinite().all()
        assert not found[3].isfinite().all()


def test_a_model_is_what_it_was_and_serves_again(opened: Any, toys: Any, rows_of_gradients: Any) -> None:
    """Names, modules and parameters are untouched during and after; also after an exception."""
    bench, rows = opened("gpt2", bias="all"), toys.rows(3)
    names = list(bench.model.state_dict())
    kinds = [type(module) for module in bench.model.modules()]
    parameters = bench.parameters()
    first = rows_of_gradients.fast(bench, rows)

    def fails() -> torch.Tensor:
        rows_of_gradients.losses(bench, rows)
        raise ZeroDivisionError

    def record() -> None:
        with record_gradients(bench.model, parameters) as gradients:
            assert list(bench.model.state_dict()) == names
            assert [type(module) for module in bench.model.modules()] == kinds
            gradients.of(fails, 3)

    with pytest.raises(ZeroDivisionError):
        record()
    assert not any("forward" in vars(module) for module in bench.model.modules())
    assert all(bench.parameters()[name] is p and p.requires_grad for name, p in parameters.items())
    assert torch.equal(rows_of_gradients.fast(bench, rows), first)
    rows_of_gradients.losses(bench, rows).sum().backward()
    assert all(p.grad is not None for p in parameters.values())


def test_a_failed_microbatch_leaves_nothing_for_the_next(
    opened: Any, toys: Any, rows_of_gradients: Any
) -> None:
    """Inside one recording."""
    bench, rows = opened("llama"), toys.rows(3)
    expected = rows_of_gradients.fast(bench, rows)
    with record_gradients(bench.model, bench.parameters()) as gradients:
        with pytest.raises(InternalError, match="another form"):
            gradients.of(lambda: rows_of_gradients.losses(bench, rows).sum(), 3)
        assert torch.equal(rows_of_gradients.of(gradients, bench, rows), expected)
        fewer = rows_of_gradients.of(gradients, bench, rows[:2])
        assert rows_of_gradients.error(fewer, expected[:2]) < EXACT


def test_a_forward_that_somebody_else_replaced_comes_back(
    opened: Any, toys: Any, rows_of_gradients: Any
) -> None:
    """Such as a device map's."""
    bench = opened("bert")
    head = bench.model.base_model.model.classifier.modules_to_save["default"]
    calls = []
    plain = head.forward
    head.forward = theirs = lambda x: calls.append(1) or plain(x)
    rows_of_gradients.fast(bench, toys.rows(3))
    assert calls
    assert head.forward is theirs


def test_one_recording_at_a_time(opened: Any) -> None:
    """A second one would take the first one's stand-ins for the modules' own code."""
    bench = opened("bert")
    with (
        record_gradients(bench.model, bench.parameters()),
        pytest.raises(InternalError, match="recorded"),
        record_gradients(bench.model, bench.parameters()),
    ):
        pytest.fail("two recordings at once")
    assert not any("forward" in vars(module) for module in bench.model.modules())


def test_a_plain_gradient_is_not_read(opened: Any, toys: Any, rows_of_gradients: Any) -> None:
    """One that was left lying stops the step."""
    bench, rows = opened("bert"), toys.rows(3)
    rows_of_gradients.losses(bench, rows).sum().backward()
    with pytest.raises(InternalError, match="plain gradient"):
        rows_of_gradients.fast(bench, rows)


def test_parameters_have_to_be_those_that_train(opened: Any) -> None:
    """Neither fewer nor frozen ones."""
    bench = opened("bert")
    some = dict(list(bench.parameters().items())[1:])
    with pytest.raises(InternalError, match="not those that train"), record_gradients(bench.model, some):
        pytest.fail("recorded")


def test_a_parameter_that_is_read_past_its_module_is_refused(
    opened: Any, toys: Any, rows_of_gradients: Any
) -> None:
    """Its examples cannot be told apart; no gradient of it stays behind."""
    bench, rows = opened("bert"), toys.rows(3)
    head = bench.model.base_model.model.classifier.modules_to_save["default"]
    with (
        record_gradients(bench.model, bench.parameters()) as gradients,
        pytest.raises(ConfigError, match=r"classifier\.weight"),
    ):
        gradients.of(lambda: rows_of_gradients.losses(bench, rows) + head.weight.square().sum(), 3)
    assert head.weight.grad is None


@pytest.mark.parametrize(
    "options", [{"targets": ("query", "word_embeddings")}, {"targets": ("query",), "bias": "lora_only"}]
)
def test_dora_is_refused_by_name_where_it_has_no_rule(options: dict[str, Any], opened: Any) -> None:
    """On embeddings, and beside biases that train: they are taken out of what magnitudes scale."""
    bench = opened("bert", dora=True, **options)
    with pytest.raises(ConfigError, match=r"(?s)no rule .*lora_magnitude_vector"):
        require_rules(bench.model, bench.parameters())


def test_magnitudes_alone_have_the_gradients_of_single_examples(
    opened: Any, toys: Any, rows_of_gradients: Any
) -> None:
    """By themselves: beside the factors' gradients theirs are short."""
    bench, rows = opened("llama", dora=True), toys.rows(5)
    places = [
        np.arange(start, start + spec.size)
        for start, spec in bench.layout.offsets.values()
        if spec.role == "magnitude"
    ]
    own = np.concatenate(places)
    fast, slow = (of(bench, rows)[:, own] for of in (rows_of_gradients.fast, rows_of_gradients.slow))
    assert rows_of_gradients.error(fast, slow) < EXACT
