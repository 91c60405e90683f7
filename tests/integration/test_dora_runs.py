"""Runs with DoRA: to the end, resumed, merged, at sites of other ranks, privately, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from wardround.core.errors import ConfigError
from wardround.core.lora import pairs
from wardround.core.packed import Adapter
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, RoundFolded, SiteReplied
from wardround.simulations.after_run import merge_run
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import prepare
from wardround.simulations.simulate import SimulationResult, run_simulation

Make = Callable[..., RunConfig]
REAL = {"mode": "real", "policy": {"least_cohort": 4}}
OPTIONS: dict[str, dict[str, Any]] = {
    "flora": {"site_rank": 1},
    "fedex": {"trained_rank": 1},
    "dual_adapter": {"global_rank": 1},
}
OVER_SUMS = (
    "ffa_lora", "rolora", "fedsvd", "hetlora", "one_pass", "two_pass", "tangent_scaffold", "fedyogi", "fedsa",
    "dual_adapter",
)  # fmt: skip
SEEN = ("flexlora", "flora", "fedex", "geometric_median", "norm_bounded_mean")


@pytest.fixture
def settings(notes: Callable[..., Any], tiny_llama: Path) -> Make:
    """Four wards, two rounds, BERT's classifier or Llama's words, with DoRA on every linear layer."""
    make = notes(rows=48, wards=4, rounds=2)
    causal = {
        "model": {"path": str(tiny_llama)},
        "task": {"name": "causal_lm", "options": {"format": "text"}},
        "data": {"columns": {"text": "note"}, "labels": []},
    }

    def with_dora(
        name: str, family: str = "bert", dora: dict[str, Any] | None = None, **sections: Any
    ) -> RunConfig:
        options = {"r": 2, "alpha": 4, "dora": True} | (dora or {})
        given = {"adapter": {"options": options}, "encoding": {"bits": 32}}
        made: RunConfig = make(name, **(given | (causal if family == "llama" else {}) | sections))
        return made

    return with_dora


class Stop:
    """Ends the run when a site has answered in round 2, as a kill does."""

    def emit(self, event: Event) -> None:
        if isinstance(event, SiteReplied) and event.round == 2 and event.site == "w2":
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to flush."""


def of_role(adapter: Adapter, role: str) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a role."""
    return {spec.name: adapter[spec.name] for spec in adapter.layout.tensors if spec.role == role}


def require_sound(result: SimulationResult) -> Adapter:
    """Every site answered in every round, and every magnitude of the last adapter has moved."""
    events = read_events(result.folder / "metrics.jsonl")
    assert {event.status for event in events if isinstance(event, SiteReplied)} == {"ok"}
    assert all(len(event.survivors) == 4 for event in events if isinstance(event, RoundFolded))
    last = result.federated.outcome.last.adapter
    assert len(of_role(last, "magnitude")) == len(pairs(last.layout))
    assert all((tensor > 0).all() for tensor in of_role(last, "magnitude").values())
    return last


@pytest.mark.parametrize(("family", "strategy"), [("bert", "tangent"), ("llama", "fedavg")])
def test_a_run_is_resumed_saved_and_merged_with_its_magnitudes(
    settings: Make, family: str, strategy: str, tiny_bert: Path, tiny_llama: Path
) -> None:
    """Under secure aggregation, the moments kept: the same bits after a kill; what is saved is PEFT's own."""
    more = {"secure": REAL, "strategy": {"name": strategy}, "local": {"optimiser_state": "keep"}}
    config = settings("whole", family, **more)
    bench, initial = (prepared := prepare(config)).bench, prepared.initial
    whole = run_simulation(config)
    last = require_sound(whole)
    for name, tensor in of_role(last, "magnitude").items():
        assert (tensor != initial[name]).any(), name
    cut = settings("cut", family, **more)
    with pytest.raises(KeyboardInterrupt):
        run_simulation(cut, sinks=(Stop(),))
    again = run_simulation(cut.model_copy(update={"resume": cut.output}))
    assert again.federated.outcome.last.adapter.digest == last.digest

    released, folder = whole.federated.outcome.released, whole.folder / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["use_dora"] is True
    auto: Any = AutoModelForSequenceClassification if family == "bert" else AutoModelForCausalLM
    labels = {"num_labels": 2} if family == "bert" else {}
    base = auto.from_pretrained(tiny_bert if family == "bert" else tiny_llama, **labels)
    tokens = torch.tensor([[5, 60, 61, 62, 63]])
    bench.load_adapter(released)
    assert merge_run(whole.folder).passed
    merged = auto.from_pretrained(whole.folder / "merged").eval()
    with torch.no_grad():
        ours = bench.model(input_ids=tokens).logits
        torch.testing.assert_close(
            PeftModel.from_pretrained(base, folder).eval()(input_ids=tokens).logits,
            ours,
            rtol=1e-5,
            atol=1e-5,
        )
        torch.testing.assert_close(merged(input_ids=tokens).logits, ours, rtol=1e-4, atol=1e-4)
        with bench.model.disable_adapter():
            assert (bench.model(input_ids=tokens).logits - ours).abs().max() > 1e-3


@pytest.mark.parametrize("strategy", [*OVER_SUMS, *SEEN])
def test_every_kind_of_strategy_trains_magnitudes(settings: Make, strategy: str) -> None:
    """Each takes them along as it takes heads along; none turns them negative or leaves a site behind."""
    chosen: dict[str, Any] = {"strategy": {"name": strategy, "options": OPTIONS.get(strategy, {})}}
    if strategy in SEEN:
        chosen["secure"] = {"mode": "off"}
    config = settings(strategy, **chosen)
    last, first = require_sound(run_simulation(config)), prepare(config).initial
    moved = [np.abs(last[name] - tensor).max() for name, tensor in of_role(first, "magnitude").items()]
    assert min(moved) > 1e-4


def test_sites_of_other_ranks_have_one_kind_of_magnitudes(settings: Make) -> None:
    """One value an output at any rank: no site pads them."""
    result = run_simulation(
        settings("ranks", secure=REAL, strategy={"name": "tangent"}, simulation={"ranks": [1, 2, 5]})
    )
    require_sound(result)


def test_sites_train_together_with_magnitudes_of_their_own(settings: Make) -> None:
    """To the adapter of sites that train one by one, but for rounding."""
    still = {"model": {"dropout": "off"}}
    alone, together = (
        require_sound(run_simulation(settings(f"by{count}", simulation={"together": count}, **still)))
        for count in (1, 4)
    )
    np.testing.assert_allclose(together.vector, alone.vector, atol=2e-3)


def test_products_in_bfloat16_leave_magnitudes_in_float32(settings: Make) -> None:
    """The norms are of the weights as they were loaded."""
    plain, rounded = (
        require_sound(
            run_simulation(
                settings(kind, "llama", machine={"device": "cpu", "threads": 1, "precision": kind})
            )
        )
        for kind in ("fp32", "bf16")
    )
    assert plain.digest != rounded.digest
    for name, tensor in of_role(plain, "magnitude").items():
        np.testing.assert_allclose(rounded[name], tensor, atol=0.05)


def private(settings: Make, name: str, **sections: Any) -> RunConfig:
    """DP-SGD at each site, with a noise that is written down."""
    noise = {"unit": "patient", "epsilon": None, "sigma": 0.5, "delta": 1e-2}
    data = {"labels": ["0", "1"], "unit_column": "patient", "validation_fraction": 0.0}
    given = {"strategy": {"weighting": "uniform"}, "local": {"max_grad_norm": None}, "data": data}
    return settings(name, privacy=noise, **(given | sections))


def test_a_private_run_trains_magnitudes(settings: Make) -> None:
    """Their gradient of a single example has a rule."""
    config = private(settings, "private", model={"dropout": "off"})
    last, first = require_sound(run_simulation(config)), prepare(config).initial
    for name, tensor in of_role(first, "magnitude").items():
        assert (last[name] != tensor).any(), name


@pytest.mark.parametrize(
    ("dora", "refused"),
    [
        ({"targets": "none"}, "targets=none adapts none"),
        ({"dora": "much"}, "dora"),
        ({"dore": True}, "did you mean 'dora'"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_a_model_is_loaded(
    settings: Make, dora: dict[str, Any], refused: str
) -> None:
    """With what works."""
    with pytest.raises(ConfigError, match=refused):
        run_simulation(settings("refused", dora=dora))


def test_cores_between_frozen_factors_are_not_decomposed(settings: Make) -> None:
    """`lora_sb` has no such option, and says which it has."""
    with pytest.raises(ConfigError, match="dora"):
        run_simulation(settings("cores", adapter={"method": "lora_sb", "options": {"r": 2, "dora": True}}))


@pytest.mark.parametrize("dora", [{"bias": "lora_only"}, {"targets": ["query", "word_embeddings"]}])
def test_what_has_no_rule_of_single_examples_is_refused_with_the_plan(
    settings: Make, dora: dict[str, Any]
) -> None:
    """Beside biases that train, and on embeddings: by name, with what works, before any site is asked."""
    with pytest.raises(ConfigError, match="no rule gives the gradient of single examples") as caught:
        run_simulation(private(settings, "refused", dora=dora))
    assert "lora_magnitude_vector" in str(caught.value)
    assert "use plain LoRA" in str(caught.value)
