"""What a consortium signs: one canonical text, one digest, and nothing that can be read in two ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_plans import toy_plan

from wardround.core.checked import known_keys
from wardround.core.enrolment import LONGEST_OFFER_S, UNREADY, EnrolmentRules, SignedPlan
from wardround.core.errors import ConfigError, DataError, ModelError
from wardround.core.plan import TrainingPlan

RULES = EnrolmentRules(least_sites=3)


def test_the_plan_inside_has_its_own_digest() -> None:
    """Rules of enrolment change the document's digest, and nothing of the plan's."""
    plan = toy_plan()
    one, other = (SignedPlan(plan=plan, enrolment=EnrolmentRules(least_sites=n)) for n in (3, 4))
    assert one.plan.digest == other.plan.digest == plan.digest
    assert one.digest != other.digest
    assert json.loads(one.canonical())["plan"] == json.loads(plan.canonical())


def test_enrolment_added_no_field_to_the_plan() -> None:
    """A plan's digest of today is that of yesterday."""
    assert set(known_keys(SignedPlan)[""]) == {"plan", "enrolment"}
    assert "enrolment" not in TrainingPlan.model_fields


@given(
    st.integers(1, 10**6),
    st.floats(0, LONGEST_OFFER_S, exclude_min=True),
    st.floats(0, LONGEST_OFFER_S),
)
def test_reading_gives_what_was_written(least: int, offer: float, grace: float) -> None:
    """The canonical text is a fixed point of reading and writing."""
    rules = EnrolmentRules(least_sites=least, offer_expires_s=offer, grace_s=grace)
    document = SignedPlan(plan=toy_plan(), enrolment=rules)
    again = SignedPlan.parse(document.canonical())
    assert again == document
    assert (again.canonical(), again.digest) == (document.canonical(), document.digest)


@pytest.mark.parametrize(
    "wrong",
    [
        {"least_sites": 0}, {}, {"least_sites": 3, "offer_expires_s": 0}, {"least_sites": 3, "grace_s": -1},
        {"least_sites": 3, "quorum": 2}, {"least_sites": 3, "offer_expires_s": LONGEST_OFFER_S * 2},
        {"least_sites": 1.5}, {"least_sites": 3, "grace_s": None},
    ],
    ids=str,
)  # fmt: skip
def test_rules_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    """By the name of what is wrong."""
    document = {"plan": json.loads(toy_plan().canonical()), "enrolment": wrong}
    with pytest.raises(ConfigError, match="enrolment"):
        SignedPlan.parse(json.dumps(document))


def test_every_code_of_an_error_is_one_that_enrolment_knows() -> None:
    """What a site may say is a closed list."""
    assert {DataError("x").code, ModelError("x").code} <= set(UNREADY)
    assert DataError("x", code="labels").code == "labels"
