"""What a finished plan is refused for: everything that can be told without a row or a model."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_plans import toy_plan

from wardround.core.enrolment import EnrolmentRules, SignedPlan
from wardround.core.errors import ConfigError, WardroundError
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import (
    AdapterSpec,
    DataContract,
    Encoding,
    LocalWork,
    ReleaseRule,
    RoundRules,
    SecureRules,
    StrategySpec,
    TaskSpec,
    TextTemplate,
    TrainingPlan,
)
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.sums.trusted import simulated_aggregator
from wardround.training.adapters import ADAPTERS
from wardround.training.plan_check import option_faults, plan_faults, site_advice
from wardround.training.plan_summary import summary_of, summary_text
from wardround.training.tasks import TASKS

LAYOUT = Layout(
    tensors=(
        TensorSpec(name="m.A", shape=(8, 5), role="lora_a", module="m"),
        TensorSpec(name="m.B", shape=(3, 8), role="lora_b", module="m"),
    )
)


def sound(**sections: Any) -> TrainingPlan:
    """A plan with every option written out."""
    task: dict[str, Any] = TASKS.get("sequence_classification").Options().model_dump(mode="json")
    adapter: dict[str, Any] = ADAPTERS.get("lora").Options().model_dump(mode="json")
    plain: dict[str, Any] = {
        "task": TaskSpec(name="sequence_classification", options=task, metrics="classification"),
        "adapter": AdapterSpec(options=adapter, layout=LAYOUT, initial_digest="1" * 64),
        "data": DataContract(
            columns={"text": "t", "label": "l"}, labels=("x", "y"), tokenizer_digest="2" * 64
        ),
    }
    return toy_plan(**(plain | sections))


def messages(plan: TrainingPlan, least: int = 5, *sites: int) -> str:
    """All faults as one text."""
    document = SignedPlan(plan=plan, enrolment=EnrolmentRules(least_sites=least))
    return "\n".join(map(str, plan_faults(document, sites)))


def test_a_sound_plan_has_no_fault() -> None:
    """For three sites as for thirty."""
    assert messages(sound(), 3, 5, 30) == ""
    assert option_faults(sound()) == ()


@pytest.mark.parametrize("name", ["fedsa", "dual_adapter"])
def test_a_plan_with_an_adapter_for_each_site_is_a_plan_like_others(name: str) -> None:
    """And its summary says to whoever signs or approves it what comes of it."""
    plan = sound(strategy=StrategySpec(name=name))
    assert messages(plan) == ""
    document = SignedPlan(plan=plan, enrolment=EnrolmentRules(least_sites=5))
    assert "none is released for everybody" in summary_text(summary_of(document, 5))
    other = SignedPlan(plan=sound(), enrolment=EnrolmentRules(least_sites=5))
    assert "none is released" not in summary_text(summary_of(other, 5))


@pytest.mark.parametrize("name", ["fedsa", "dual_adapter"])
@pytest.mark.parametrize(
    ("sections", "remedy"),
    [
        (
            {"release": ReleaseRule(metric="loss", direction="min", patience=2)},
            "set release.patience to null",
        ),
        (
            {
                "privacy": PrivacyRules(unit="example", noise="local", sigma=1.0, delta=1e-3, clip_norm=1.0),
                "local": LocalWork(steps=1, max_grad_norm=None),
            },
            "set strategy.name to fedavg or ffa_lora, or privacy to null",
        ),
    ],
    ids=["early stopping", "privacy"],
)
def test_what_an_adapter_for_each_site_does_not_go_with_is_refused(
    name: str, sections: dict[str, Any], remedy: str
) -> None:
    """By name, with what to set instead."""
    found = messages(sound(strategy=StrategySpec(name=name, weighting="uniform"), **sections))
    assert name in found
    assert remedy in found


def test_scaffold_is_a_plan_like_others() -> None:
    """Everybody ends with one adapter."""
    assert messages(sound(strategy=StrategySpec(name="scaffold"))) == ""


def adapter(**changed: Any) -> AdapterSpec:
    """An adapter's part of a plan."""
    plain: dict[str, Any] = {"layout": LAYOUT, "initial_digest": "1" * 64}
    return AdapterSpec(**(plain | changed))


def contract(**changed: Any) -> DataContract:
    """A data contract of a classifier."""
    plain: dict[str, Any] = {"columns": {"text": "t", "label": "l"}, "labels": ("x", "y")}
    return DataContract(**(plain | changed))


EVERYBODYS = simulated_aggregator(7).public.hex()
HALF = RoundRules(rounds=2, participation=0.5)
GROUPS = StrategySpec(name="group_median", options={"group_size": 5, "attackers": 1})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"task": TaskSpec(name="sequence_classificatio", metrics="classification")}, "did you mean"),
        ({"task": TaskSpec(name="my.code:TASK", metrics="classification")}, "path to code"),
        ({"strategy": StrategySpec(name="my.code:STRATEGY")}, "path to code"),
        ({"adapter": adapter(method="my.code:M")}, "path to code"),
        ({"strategy": StrategySpec(name="fedavg", options={"mu": 1})}, "mu"),
        ({"task": TaskSpec(name="causal_lm", metrics="nothing")}, "metric family"),
        ({"release": ReleaseRule(metric="bleu")}, "unknown release metric"),
        ({"release": ReleaseRule(metric="accuracy", direction="min")}, "worst round"),
        ({"local": LocalWork(steps=1, momentum=0.5)}, "no effect"),
        ({"name": "a\nb"}, "name is none"),
        ({"rounds": RoundRules(rounds=10**9)}, "more rounds than anybody"),
        ({"adapter": adapter(initial_digest="../x")}, "no digest"),
        ({"adapter": AdapterSpec(layout=Layout(tensors=()), initial_digest="1" * 64)}, "layout"),
        ({"data": DataContract(columns={}, template=TextTemplate(segments=("{a.b}",)))}, "not allowed"),
        ({"strategy": GROUPS}, "too few sites for the groups"),
        ({"strategy": GROUPS, "rounds": HALF}, "too few sites for the groups"),
        ({"rounds": RoundRules(rounds=2, participation=0.2)}, "no site may take part"),
        ({"secure": SecureRules(threshold=3)}, "no site may take part"),
        ({"secure": SecureRules(mode="trusted", aggregator=EVERYBODYS)}, "make its key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_fault_is_named(sections: dict[str, Any], message: str) -> None:
    """Whoever reads the plan refuses it with the reason, and imports no code that it names."""
    assert message in messages(sound(**sections), 5)


def test_a_ring_that_so_many_sites_overflow_is_refused() -> None:
    """It holds the least number, and not the one that is expected."""
    narrow = sound(encoding=Encoding(bits=16, largest=0.5, most_weight=1), secure=SecureRules(mode="off"))
    assert messages(narrow, 5) == ""
    assert "ring" in messages(narrow, 5, 20_000)


def test_noise_that_does_not_fit_the_ring_is_refused() -> None:
    """As at the server, before anybody trains."""
    rules = PrivacyRules(unit="site", noise="central", sigma=50.0, delta=1e-3)
    data = DataContract(columns={"text": "t", "label": "l"}, labels=("x", "y"), validation_fraction=0)
    sections: dict[str, Any] = {"privacy": rules, "strategy": StrategySpec(weighting="uniform"), "data": data}
    tight = sound(**sections, encoding=Encoding(bits=16, largest=1e-6, norm=1.0, most_weight=1))
    wide = sound(**sections, encoding=Encoding(bits=32, largest=100.0, norm=1.0, most_weight=1))
    assert "no room for the noise" in messages(tight)
    assert messages(wide) == ""


def test_fewer_sites_than_the_plan_waits_for_are_told() -> None:
    """Nothing would ever begin."""
    assert "waits for more sites than are expected" in messages(sound(), 7, 5)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"task": TaskSpec(name="sequence_classification", metrics="language")}, "not its task's"),
        ({"task": TaskSpec(name="sequence_classification", options={"x": 1}, metrics="classification")}, "x"),
        ({"adapter": adapter(options={"r": 4})}, "not written out"),
        ({"adapter": adapter(options={"rank": 4})}, "rank"),
        ({"data": contract(columns={"label": "l"})}, "not mapped: text"),
        ({"data": contract(columns={"text": "t", "label": "l", "q": "q"})}, "not known: q"),
        ({"data": contract(labels=())}, "no label list"),
        ({"data": contract(labels=("1", "1.0"))}, "label twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_only_the_files_know_is_refused(sections: dict[str, Any], message: str) -> None:
    """Options, roles, labels."""
    assert message in "\n".join(map(str, option_faults(sound(**sections))))


PRIVATE: dict[str, Any] = {
    "privacy": PrivacyRules(unit="site", noise="central", sigma=1.0, delta=1e-3),
    "strategy": StrategySpec(weighting="uniform"), "data": contract(validation_fraction=0),
    "encoding": Encoding(bits=32, largest=100.0, norm=1.0, most_weight=1),
}  # fmt: skip
BASES = [json.loads(plan.canonical()) for plan in (sound(), sound(**PRIVATE), sound(strategy=GROUPS))]
ODD = st.sampled_from(
    [0, 1, -1, 2, 3, 2**31, 2**63, 10**400, 0.5, -0.0, 5e-324, 1e-300, 1e300, "", "a:b", "\x00", "real", [],
     {}, None, True, [1e308, 1e308], ["x", "x"], {"x": 1}]
)  # fmt: skip


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places of everything in a plain plan."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, child in inner for found in leaves(child, (*place, key)))]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(range(len(BASES))), st.lists(st.tuples(st.randoms(), ODD), min_size=1, max_size=2))
def test_whatever_stands_in_a_plan_it_is_judged(base: int, changes: list[tuple[Any, Any]]) -> None:
    """Odd numbers, empty names, wrong kinds in any place: refused by an error of ours, or sound."""
    fields = copy.deepcopy(BASES[base])
    for draw, odd in changes:
        *above, last = draw.choice([place for place in leaves(fields) if place])
        target = fields
        for key in above:
            target = target[key]
        target[last] = copy.deepcopy(odd)  # lists of one example stay out of the next
    rules = EnrolmentRules(least_sites=5).model_dump()
    try:
        document = SignedPlan.parse(json.dumps({"plan": fields, "enrolment": rules}))
        document.canonical()
    except ConfigError:
        return
    faults = plan_faults(document, [8])
    assert all(isinstance(fault, WardroundError) for fault in faults)
    if not faults:
        assert summary_text(summary_of(document, 8))


def test_advice_below_five_sites_and_where_sites_refuse_by_default() -> None:
    """A plan that is not refused may still be told of."""
    assert any("at least 5 are advised" in line for line in site_advice(sound(), 4))
    assert not any("advised" in line for line in site_advice(sound(), 5))
    assert any(
        "unless their own policy" in line for line in site_advice(sound(secure=SecureRules(mode="off")), 9)
    )


def test_the_summary_says_what_the_plan_says() -> None:
    """Threshold, losses, colluders, width, bytes: of the expected number of sites."""
    document = SignedPlan(plan=sound(), enrolment=EnrolmentRules(least_sites=5, offer_expires_s=3600))
    record = summary_of(document, 10)
    assert (record["threshold"], record["cohort"], record["bits"]) == (7, 10, 16)
    assert record["bytes_down_a_round"] == 4 * LAYOUT.size
    assert record["bytes_up_a_round"] > 2 * LAYOUT.size
    text = summary_text(record)
    assert "7 of 10 confirm a sum, 3 may be lost, 3 may work with the server" in text
    assert "the offer stands 3600 s" in text
    off = SignedPlan(plan=sound(secure=SecureRules(mode="off")), enrolment=document.enrolment)
    assert "the server sees each contribution" in summary_text(summary_of(off, 10))


def test_the_summary_tells_epsilon() -> None:
    """The target of local noise; of a given noise what it costs, where units are said."""
    rules = {"unit": "patient", "noise": "local", "delta": 1e-3}
    sections: dict[str, Any] = {
        "strategy": StrategySpec(weighting="uniform"), "local": LocalWork(steps=1, max_grad_norm=None),
        "data": DataContract(columns={"text": "t", "label": "l"}, labels=("x", "y"), unit_column="p"),
    }  # fmt: skip
    enrolment = EnrolmentRules(least_sites=5)
    target = SignedPlan(
        plan=sound(privacy=PrivacyRules(epsilon=3.0, **rules), **sections), enrolment=enrolment
    )
    assert "ε at most 3 a patient" in summary_text(summary_of(target, 5))
    given = SignedPlan(plan=sound(privacy=PrivacyRules(sigma=2.0, **rules), **sections), enrolment=enrolment)
    assert "is not known before" in summary_text(summary_of(given, 5))
    few, many = (summary_of(given, 5, [units])["privacy"]["epsilon"] for units in (20, 200))
    assert few > many > 0
    blocks = PrivacyRules(epsilon=3.0, mechanism="banded", **rules)
    banded = SignedPlan(plan=sound(privacy=blocks, **sections), enrolment=enrolment)
    assert "local noise, correlated over the run's steps" in summary_text(summary_of(banded, 5))


def test_a_plan_is_checked_without_torch() -> None:
    """A server asks the same questions, and has no torch."""
    code = (
        "import sys, wardround.training.plan_check, wardround.training.plan_summary, "
        "wardround.runtime.plan_folder, wardround.runtime.signed_plan\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
