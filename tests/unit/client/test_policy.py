"""The site's policy on plans: one plan that breaks each rule alone, and none that is refused for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from toy_plans import toy_plan

from wardround.client.own_figures import FIGURES, leaving_figures, on_grid
from wardround.client.policy import (
    LocalCounts,
    PlanPolicy,
    RefusedPlanError,
    columns_read,
    month_refusals,
    plan_refusals,
    require_allowed,
    rows_refusals,
    sentence,
)
from wardround.client.site_settings import read_site_settings, write_site_starter
from wardround.core.messages import SECONDS, SPENT
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import (
    BaseModelSpec,
    DataContract,
    LocalWork,
    RoundRules,
    SecureRules,
    StrategySpec,
    TextTemplate,
    TrainingPlan,
)
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.secagg.policy import SecurePolicy

MODULE = "base_model.model.encoder.layer.0.attention.self.query"
LAYOUT = Layout(
    tensors=(
        TensorSpec(name=f"{MODULE}.lora_A.weight", shape=(8, 64), role="lora_a", module=MODULE),
        TensorSpec(name=f"{MODULE}.lora_B.weight", shape=(64, 8), role="lora_b", module=MODULE),
        TensorSpec(name="base_model.model.classifier.weight", shape=(2, 64)),
        TensorSpec(name="base_model.model.classifier.bias", shape=(2,)),
    )
)
TEMPLATE = TextTemplate(segments=("Age {age}",))
DATA: dict[str, Any] = {
    "columns": {"label": "num"}, "template": TEMPLATE, "labels": ("no", "yes"), "unit_column": "patient"
}  # fmt: skip
PRIVATE = PrivacyRules(unit="patient", epsilon=8.0, delta=1e-4)


def sound(
    *, extra: tuple[TensorSpec, ...] = (), data: dict[str, Any] | None = None, **sections: Any
) -> TrainingPlan:
    """A plan that every default allows, but for what is changed."""
    layout = Layout(tensors=(*LAYOUT.tensors, *extra))
    plain: dict[str, Any] = {
        "data": DataContract(**(DATA | (data or {}))),
        "local": LocalWork(epochs=1.0, batch_size=16),
        "rounds": RoundRules(rounds=5),
    }
    return toy_plan(layout=layout, **(plain | sections))


def private(**changes: Any) -> TrainingPlan:
    """A private one."""
    rules = PrivacyRules(**(PRIVATE.model_dump() | changes))
    local = LocalWork(epochs=1.0, batch_size=16, max_grad_norm=None)
    return sound(privacy=rules, local=local, strategy=StrategySpec(weighting="uniform"))


def one(name: str, shape: tuple[int, ...] = (64, 64), **fields: Any) -> dict[str, Any]:
    """One more tensor."""
    return {"extra": (TensorSpec(name=name, shape=shape, **fields),)}


EMBEDDING = "base_model.model.embeddings.word_embeddings"
VIOLATIONS: dict[str, tuple[dict[str, Any], TrainingPlan]] = {
    "base_models": ({"base_models": ["1" * 64]}, sound(base=BaseModelSpec(name="other", digest="2" * 64))),
    "tasks": ({"tasks": ["causal_lm"]}, sound()),
    "strategies": ({"strategies": ["fedavg"]}, sound(strategy=StrategySpec(name="fedadam"))),
    "adapters": ({"adapters": ["dora"]}, sound()),
    "most_rank": ({}, sound(**one(f"{MODULE}2.lora_A.weight", (65, 64), role="lora_a", module=f"{MODULE}2"))),
    "most_coordinates": ({"most_coordinates": 1000}, sound()),
    "modules": ({"modules": ["*.value"]}, sound()),
    "heads": ({}, sound(**one("base_model.model.encoder.layer.0.output.dense.weight"))),
    "vocabulary": (
        {}, sound(**one(f"{EMBEDDING}.lora_embedding_A", (8, 900), role="lora_a", module=EMBEDDING)),
    ),
    "biases": ({}, sound(**one("base_model.model.encoder.layer.0.output.dense.bias", (64,)))),
    "columns": ({"columns": ["num", "patient"]}, sound()),
    "labels": ({"labels": [sound().data.labels_digest]}, sound(data={"labels": ("no", "yes", "rare")})),
    "templates": (
        {"templates": [sound().data.template_digest]},
        sound(data={"template": TextTemplate(segments=("Zip {zip}",))}),
    ),
    "most_tokens": ({}, sound(data={"max_length": 4097})),
    "least_batch": ({}, sound(local=LocalWork(epochs=1.0, batch_size=3))),
    "most_rounds": ({}, sound(rounds=RoundRules(rounds=201), local=LocalWork(steps=1))),
    "most_steps": ({}, sound(local=LocalWork(steps=20_001, learning_rate=1e-6))),
    "most_passes": ({}, sound(local=LocalWork(epochs=21.0))),
    "most_learning": ({}, sound(local=LocalWork(steps=1000, learning_rate=0.1))),
    "privacy": ({"privacy": "patient"}, private(unit="example")),
    "most_epsilon": ({"privacy": "patient", "most_epsilon": 4.0}, private()),
    "most_delta": ({}, private(delta=2e-3)),
    "most_bytes": ({"most_bytes": 100}, sound()),
}  # fmt: skip
"""Field → a policy (what differs from the default) and a plan that breaks just this rule."""

COUNTED: dict[str, tuple[dict[str, Any], TrainingPlan, LocalCounts]] = {
    "least_units": ({}, sound(), LocalCounts(100, 19)),
    "least_a_label": ({}, sound(), LocalCounts(100, 100, (99, 1))),
    "most_passes": ({}, sound(local=LocalWork(steps=200, batch_size=16)), LocalCounts(100, 100)),
    "most_steps": ({"most_steps": 30}, sound(), LocalCounts(100, 100)),
    "most_learning": ({"most_learning": 0.03}, sound(), LocalCounts(100, 100)),
}
ELSEWHERE = {"runs_a_month", "figures", "smallest_cell"}
"""Judged by what the site did before, and what stands in its replies: tests of their own."""


def names(refusals: Any) -> list[str]:
    """Fields that refuse."""
    return [str(refusal.found).partition(":")[0] for refusal in refusals]


def test_every_rule_of_the_policy_has_a_plan_that_breaks_it() -> None:
    """A new field comes with its violation."""
    assert {*VIOLATIONS, *COUNTED, *ELSEWHERE} == set(PlanPolicy.model_fields)


def test_a_sound_plan_breaks_none() -> None:
    """Under the defaults, and under each policy with which another plan is refused below."""
    assert list(plan_refusals(PlanPolicy(), sound())) == []
    assert list(plan_refusals(PlanPolicy(privacy="patient", most_epsilon=8.0), private())) == []
    assert list(rows_refusals(PlanPolicy(), sound(), LocalCounts(20, 20, (2, 18)))) == []


@pytest.mark.parametrize("field", list(VIOLATIONS))
def test_a_plan_that_breaks_one_rule_is_refused_for_that_alone(field: str) -> None:
    """Named with what was found and what is allowed; with the rule loosened it passes."""
    policy, plan = VIOLATIONS[field]
    found = list(plan_refusals(PlanPolicy(**policy), plan))
    assert names(found) == [field]
    assert f"plans.{field}" in str(found[0])
    with pytest.raises(RefusedPlanError) as error:
        require_allowed(PlanPolicy(**policy), SecurePolicy(), plan, groups=False)
    assert sentence(error.value.refusals[0]) in str(error.value)


def test_a_private_run_may_take_long_steps() -> None:
    """Clipped and noised at the site to a small ε, and not by the name of privacy alone."""
    long = LocalWork(steps=1, batch_size=16, learning_rate=20.0, max_grad_norm=None)
    rounds = {"rounds": RoundRules(rounds=5), "local": long}
    assert names(plan_refusals(PlanPolicy(), sound(**rounds))) == ["most_learning"]
    for changes, refused in (
        ({"epsilon": 8.0}, []),
        ({"epsilon": 10.5}, ["most_learning"]),
        ({"epsilon": None, "sigma": 0.5}, ["most_learning"]),
    ):
        rules = PrivacyRules(**(PRIVATE.model_dump() | changes))
        plan = sound(**rounds, privacy=rules, strategy=StrategySpec(weighting="uniform"))
        assert names(plan_refusals(PlanPolicy(), plan)) == refused, changes


@pytest.mark.parametrize("field", list(COUNTED))
def test_what_only_counts_can_tell_is_refused_without_a_count(field: str) -> None:
    """The reason says which rule, and no number of this site's."""
    policy, plan, counts = COUNTED[field]
    assert list(plan_refusals(PlanPolicy(**policy), plan)) == []
    found = list(rows_refusals(PlanPolicy(**policy), plan, counts))
    assert names(found) == [field]
    assert not any(character.isdigit() for character in f"{found[0].what} {found[0].found}")


def test_all_reasons_at_once() -> None:
    """Of the plan and of the sums."""
    plan = sound(
        local=LocalWork(steps=20_001, batch_size=1, learning_rate=1.0), secure=SecureRules(mode="off"),
        **one(EMBEDDING + ".weight", (900, 64)),
    )  # fmt: skip
    with pytest.raises(RefusedPlanError) as error:
        require_allowed(PlanPolicy(), SecurePolicy(), plan, groups=True)
    found = names(error.value.refusals)
    assert found[:4] == ["vocabulary", "least_batch", "most_steps", "most_learning"]
    assert [refusal.what for refusal in error.value.refusals[4:]] == [
        "this site's policy does not allow the plan's aggregation",
        "this site's policy does not allow the plan's strategy sums over groups",
    ]


@pytest.mark.parametrize(
    "name",
    ["base_model.model.lm_head.weight", "base_model.model.transformer.wte.weight", "x.embed_tokens.weight"],
)
def test_layers_of_the_vocabulary_are_known_by_their_names(name: str) -> None:
    """Trained in full or by factors."""
    module = name.removesuffix(".weight")
    factor = one(f"{module}.lora_A.weight", (8, 64), role="lora_a", module=module)
    for extra in (one(name), factor):
        assert names(plan_refusals(PlanPolicy(), sound(**extra))) == ["vocabulary"]
        assert "vocabulary" not in names(plan_refusals(PlanPolicy(vocabulary=True), sound(**extra)))


def test_magnitudes_are_judged_by_the_module_that_they_scale() -> None:
    """They are no head, and no more of the vocabulary than the factors beside them."""
    for module, allowed, refused in (
        (f"{MODULE}2", PlanPolicy(), []),
        (f"{MODULE}2", PlanPolicy(modules=("*.query",)), ["modules"]),
        ("base_model.model.lm_head", PlanPolicy(), ["vocabulary"]),
    ):
        own = one(f"{module}.lora_magnitude_vector", (64,), role="magnitude", module=module)
        assert names(plan_refusals(allowed, sound(**own))) == refused


def test_a_core_between_frozen_factors_is_judged_by_its_rank_and_its_module() -> None:
    """It is a dense tensor, and no head."""
    allowed = PlanPolicy(most_rank=16)
    for size, refused in ((16, []), (17, ["most_rank"])):
        core = one(f"{MODULE}2.lora_R.weight", (size, size), module=f"{MODULE}2")
        assert names(plan_refusals(allowed, sound(**core))) == refused
        narrow = PlanPolicy(most_rank=32, modules=("*.query",))
        assert names(plan_refusals(narrow, sound(**core))) == ["modules"]


def test_so_many_runs_in_thirty_days() -> None:
    """The thirty-first is refused; what lies further back does not count."""
    day, policy = 86_400.0, PlanPolicy(runs_a_month=3)
    accepted = (1 * day, 40 * day, 50 * day, 60 * day)
    assert names(month_refusals(policy, accepted, 69.9 * day)) == ["runs_a_month"]
    assert list(month_refusals(policy, accepted, 70.1 * day)) == []


ALL = {
    SECONDS: 3.2, f"{SECONDS}.training": 0.2, SPENT: 1.25, "train.loss": 0.7, "train.examples": 31.0,
    "validation.accuracy": 0.5, "clipped": 2.0, "shortened_by": 0.1, "private.units_a_step": 3.0,
}  # fmt: skip


def test_of_a_site_alone_nothing_leaves_by_default_but_epsilon_and_rough_times() -> None:
    """Whatever the handler computes, and whatever is invented later."""
    assert leaving_figures((), ALL) == {SECONDS: 4.0, f"{SECONDS}.training": 1.0, SPENT: 1.25}
    assert set(leaving_figures(tuple(FIGURES), ALL)) == set(ALL) - {"private.units_a_step"}
    assert set(leaving_figures(("validation",), ALL)) - set(leaving_figures((), ALL)) == {
        "validation.accuracy"
    }


@given(st.floats(0, 1e7))
def test_times_are_told_on_a_grid(seconds: float) -> None:
    """Up to the next power of two."""
    told = on_grid(seconds)
    assert told >= seconds
    assert told in {2.0**power for power in range(26)}
    assert told == 1.0 or told < 2 * seconds


def test_columns_are_those_of_roles_template_ids_and_units() -> None:
    """All that a plan reads of a row."""
    assert columns_read(sound(data={"id_column": "row"})) == {"num", "age", "patient", "row"}


def test_digests_of_labels_and_templates_tell_them_apart() -> None:
    """In order; no template has none."""
    swapped = sound(data={"labels": ("yes", "no")}).data
    assert swapped.labels_digest != sound().data.labels_digest
    assert DataContract(columns={"text": "t"}).template_digest is None


def test_the_starter_says_the_defaults(tmp_path: Path) -> None:
    """Every field of the section, with the value that holds without it."""
    path = tmp_path / "site.yaml"
    write_site_starter(path)
    assert read_site_settings(path).plans == PlanPolicy()
    assert set(yaml.safe_load(path.read_text())["plans"]) == set(PlanPolicy.model_fields)


def test_an_epsilon_without_privacy_is_no_rule() -> None:
    """It would promise what it does not keep."""
    with pytest.raises(ValueError, match="set privacy"):
        PlanPolicy(most_epsilon=1.0)
