"""Plans whose contributions travel compressed: which are refused, and what the others say of themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.client.preview.commands import contents_text
from wardround.client.preview.preview import as_record, preview_of
from wardround.core.compression import Blocks, TopK, described
from wardround.core.enrolment import EnrolmentRules, SignedPlan
from wardround.core.errors import ConfigError
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import DataContract, Encoding, SecureRules, StrategySpec, TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.compression import compressed_size
from wardround.strategies import STRATEGIES
from wardround.training.plan_check import plan_faults
from wardround.training.plan_strategy import bind_strategy
from wardround.training.plan_summary import summary_of, summary_text

LAYOUT = Layout(
    tensors=(
        TensorSpec(name="m.a", shape=(8, 100), role="lora_a", module="m"),
        TensorSpec(name="m.b", shape=(100, 8), role="lora_b", module="m"),
        TensorSpec(name="head", shape=(2, 50)),
    )
)
MEANS = {"fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "ffa_lora"}
"""Strategies that add updates of the same parameters in every round."""
INT8, TOP = Blocks(), TopK()


def plan_of(compression: Any, name: str = "fedavg", mode: Any = "off", **sections: Any) -> TrainingPlan:
    """A plan."""
    data = DataContract(columns={"text": "t", "label": "l"}, labels=("x", "y"), tokenizer_digest="2" * 64)
    plain: dict[str, Any] = {
        "layout": LAYOUT, "data": data, "strategy": StrategySpec(name=name),
        "secure": SecureRules(mode=mode, aggregator="0f" * 32 if mode == "trusted" else None),
        "encoding": Encoding(largest=0.5, most_weight=100, compression=compression),
    }  # fmt: skip
    return toy_plan(**(plain | sections))


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_blocks_go_with_every_strategy_and_the_largest_alone_with_means(name: str) -> None:
    """What waits at a site must not meet another factor or basis, a weight, a vote or a second stage."""
    bind_strategy(plan_of(INT8, name))
    if name in MEANS:
        bind_strategy(plan_of(TOP, name))
        return
    with pytest.raises(ConfigError, match=r"not sent yet(?s:.*)method to blocks"):
        bind_strategy(plan_of(TOP, name))


@pytest.mark.parametrize("compression", [INT8, TOP])
def test_hidden_and_private_contributions_are_not_compressed(compression: Any) -> None:
    """With the remedy; a consortium's plan neither."""
    for mode in ("real", "accounted"):
        plan = plan_of(compression, mode=mode)
        with pytest.raises(ConfigError, match=r"masks add up(?s:.*)encoding\.bits to 8(?s:.*)trusted"):
            bind_strategy(plan)
        faults = plan_faults(SignedPlan(plan=plan, enrolment=EnrolmentRules(least_sites=5)))
        assert any("masks add up" in str(fault) for fault in faults)
    rules = PrivacyRules(unit="example", noise="local", epsilon=8.0, delta=1e-3)
    local = toy_plan().local.model_copy(update={"max_grad_norm": None})
    private = plan_of(
        compression, privacy=rules, local=local, strategy=StrategySpec(name="fedavg", weighting="uniform")
    )
    with pytest.raises(ConfigError, match=r"what no noise covers(?s:.*)compression to null"):
        bind_strategy(private)


def test_a_plan_without_compression_keeps_the_digest_that_it_had() -> None:
    """And one with it has another, by each of its numbers."""
    assert b"compression" not in plan_of(None).canonical()
    found = {plan_of(one).digest for one in (None, INT8, Blocks(bits=4), Blocks(block=32), TOP, TopK(bits=8))}
    assert len(found) == 6
    plan = plan_of(TOP)
    assert TrainingPlan.parse(plan.canonical()) == plan


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"method": "zip"}, "compression"), ({"method": "blocks", "bits": 2}, r"blocks\.bits"),
        ({"method": "top_k", "share": 0.0}, r"top_k\.share"), ({"method": "top_k", "block": 4}, "block"),
    ],
)  # fmt: skip
def test_what_is_no_compression_is_named(value: Any, message: str) -> None:
    """With its place."""
    text = plan_of(TOP).model_dump_json().replace(TOP.model_dump_json(), json.dumps(value))
    with pytest.raises(ConfigError, match=message):
        TrainingPlan.parse(text)


@pytest.mark.parametrize("mode", ["off", "trusted"])
@pytest.mark.parametrize("compression", [INT8, TOP])
def test_summary_and_preview_count_the_bytes_that_travel(compression: Any, mode: str) -> None:
    """And say in which form."""
    signed = [
        SignedPlan(plan=plan_of(one, mode=mode), enrolment=EnrolmentRules(least_sites=5))
        for one in (compression, None)
    ]
    small, whole = (summary_of(document, 5) for document in signed)
    saved = 2 * LAYOUT.size - compressed_size(LAYOUT.size, compression)
    assert whole["bytes_up_a_round"] - small["bytes_up_a_round"] == saved
    assert (small["compression"], whole["compression"]) == (described(compression), None)
    assert described(compression) in summary_text(small)
    assert "compressed" not in summary_text(whole)
    one, other = (preview_of(document, "a", tuple("abcde")) for document in signed)
    assert other.bytes_up - one.bytes_up == pytest.approx(5 * saved, rel=0.02)
    assert described(compression) in "\n".join(contents_text(one))
    assert as_record(one)["compression"] == described(compression)
