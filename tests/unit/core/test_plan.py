"""The training plan's own guards."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError
from toy_plans import toy_plan

from wardround.core.errors import ConfigError
from wardround.core.plan import (
    Encoding,
    SecureRules,
    StrategySpec,
    TrainingPlan,
)


@pytest.mark.parametrize("text", ["Infinity", "-Infinity", "NaN"])
@pytest.mark.parametrize(
    "place",
    [
        "rounds.deadline_s", "local.learning_rate", "local.epsilon", "release.least_improvement",
        "encoding.largest", "encoding.norm",
    ],
)  # fmt: skip
def test_what_is_no_number_is_a_named_fault(place: str, text: str) -> None:
    """Infinity and NaN in any figure of a plan: a ConfigError that names the place, never a later crash."""
    section, _, key = place.partition(".")
    whole = toy_plan()
    values = getattr(whole, section)
    broken = whole.model_copy(
        update={section: values.model_copy(update={key: float(text.replace("Infinity", "inf"))})}
    )
    with pytest.raises(ConfigError, match=place.replace(".", r"\.")):
        TrainingPlan.parse(broken.model_dump_json().replace(f'"{key}":null', f'"{key}":{text}'))
    with pytest.raises(ValidationError):
        type(values)(**{**values.model_dump(), key: float(text.replace("Infinity", "inf"))})


@pytest.mark.parametrize("value", [math.inf, math.nan, {1, 2}, object()], ids=["inf", "nan", "set", "object"])
def test_an_option_that_json_does_not_know_is_a_named_fault(value: object) -> None:
    """Options are checked by the file that they belong to; what slips through it is still no digest."""
    plan = toy_plan(strategy=StrategySpec(options={"mu": [value]}))
    with pytest.raises(ConfigError, match="JSON"):
        _ = plan.digest


def test_a_changed_copy_has_a_digest_of_its_own() -> None:
    """Also where the original's was asked for first: a plan made from another one must not pass for it."""
    plan = toy_plan()
    before = plan.digest
    changed = plan.model_copy(update={"name": "another"})
    assert changed.digest != before
    assert changed.digest == TrainingPlan.parse(changed.canonical()).digest
    assert plan.model_copy().digest == before


def test_the_bounds_of_a_contribution_have_no_default() -> None:
    """No scale follows from a plan that leaves them out: it is no plan, and the place is named."""
    text = toy_plan().model_dump_json()
    for key in ("largest", "most_weight"):
        values = json.loads(text)
        del values["encoding"][key]
        with pytest.raises(ConfigError, match=rf"encoding\.{key}"):
            TrainingPlan.parse(json.dumps(values))
    values = json.loads(text)
    del values["encoding"]
    with pytest.raises(ConfigError, match="encoding"):
        TrainingPlan.parse(json.dumps(values))


@pytest.mark.parametrize(
    "encoding",
    [
        {"bits": 17}, {"bits": 10}, {"largest": 0.0}, {"largest": -1.0}, {"norm": 0.0},
        {"most_weight": 0}, {"most_weight": 2**32 + 1}, {"fraction_bits": 36},
    ],
    ids=str,
)  # fmt: skip
def test_a_ring_or_a_bound_that_is_none_is_refused(encoding: dict[str, Any]) -> None:
    """Widths that nothing packs, bounds that bound nothing, what an earlier version had."""
    with pytest.raises(ValidationError):
        Encoding(**({"largest": 0.5, "most_weight": 100} | encoding))


@pytest.mark.parametrize(
    "changes",
    [
        {"encoding": Encoding(bits=20, largest=0.5, most_weight=100)},
        {"encoding": Encoding(largest=0.6, most_weight=100)},
        {"encoding": Encoding(largest=0.5, norm=1.0, most_weight=100)},
        {"encoding": Encoding(largest=0.5, most_weight=101)},
        {"secure": SecureRules(mode="off")},
        {"secure": SecureRules(threshold=4)},
        {"secure": SecureRules(attempts=2)},
        {"secure": SecureRules(complete_to=50)},
        {"secure": SecureRules(mode="trusted", aggregator="0f" * 32)},
    ],
)
def test_how_contributions_are_summed_is_part_of_the_plan(changes: dict[str, Any]) -> None:
    """A ring, a bound or a rule of the sums that differs makes another plan; a plan says nothing: `real`."""
    assert toy_plan(**changes).digest != toy_plan().digest
    assert TrainingPlan.parse(toy_plan(**changes).canonical()).digest == toy_plan(**changes).digest
    assert toy_plan().secure.mode == "real"


def test_another_aggregator_is_another_plan() -> None:
    """What is sealed to its key is opened by nobody else: it decides who sees contributions."""
    plans = [toy_plan(secure=SecureRules(mode="trusted", aggregator=key * 32)) for key in ("0f", "f0")]
    assert plans[0].digest != plans[1].digest


@pytest.mark.parametrize(
    ("secure", "reason"),
    [
        ({"mode": "trusted"}, r"needs the aggregator's public key.*secure\.aggregator"),
        ({"mode": "trusted", "aggregator": None}, "needs the aggregator's public key"),
        ({"mode": "real", "aggregator": "0f" * 32}, "secure.mode=real has none"),
        ({"mode": "off", "aggregator": "0f" * 32}, "secure.mode=off has none"),
        ({"mode": "trusted", "aggregator": "0f" * 31}, r"secure\.aggregator"),
        ({"mode": "trusted", "aggregator": "0F" * 32}, r"secure\.aggregator"),
        ({"mode": "trusted", "aggregator": "key of ours"}, r"secure\.aggregator"),
    ],
)
def test_a_plan_names_an_aggregator_under_trusted_alone(secure: dict[str, Any], reason: str) -> None:
    """Required there, refused elsewhere, and 32 bytes in hex: a ConfigError says which."""
    values = json.loads(toy_plan().canonical()) | {"secure": secure}
    with pytest.raises(ConfigError, match=f"(?s){reason}"):
        TrainingPlan.parse(json.dumps(values))
