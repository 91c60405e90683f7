"""What the signed result says of a run's differential privacy."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_plans import site_plan
from toy_plans import toy_plan

from wardround.core.enrolment import EnrolmentRules, SignedPlan
from wardround.runtime.event_log import JsonlSink
from wardround.runtime.events import PrivacySpent
from wardround.runtime.result_record import PrivacyResult, ResultRecord
from wardround.server.execution import privacy_of

RULES = EnrolmentRules(least_sites=2)


def test_each_sites_last_figure_stands_in_the_result(tmp_path: Path) -> None:
    """Of a site that took no part since the server was resumed as well."""
    sink = JsonlSink(tmp_path / "events.jsonl")
    for round, sites in ((1, {"a": 1.0, "b": 1.5}), (2, {"a": 2.0, "b": 1.5}), (3, {"a": 2.5})):
        sink.emit(PrivacySpent("federated", round, "site", 1e-3, sites))
    found = privacy_of(SignedPlan(plan=site_plan(), enrolment=RULES), tmp_path / "events.jsonl")
    assert found == PrivacyResult(unit="site", noise="central", delta=1e-3, sites={"a": 2.5, "b": 1.5})
    assert found.text == "differential privacy: at most ε = 2.5 at δ = 0.001 per site (central noise)"
    patients = found.model_copy(update={"unit": "patient", "noise": "local", "sites": {}})
    assert (
        patients.text == "differential privacy: no ε was told at δ = 0.001 per patient and site (local noise)"
    )
    banded = patients.model_copy(update={"mechanism": "banded"})
    assert banded.text.endswith("(local noise, banded over the whole run)")


def test_a_run_without_privacy_claims_none(tmp_path: Path) -> None:
    """Nothing is read for it."""
    assert privacy_of(SignedPlan(plan=toy_plan(), enrolment=RULES), tmp_path / "none") is None


def test_a_record_of_before_has_no_privacy() -> None:
    """It is still read."""
    plain = {
        "run_id": "r", "plan": "0" * 64, "roster": "0" * 64, "sites": ["a"], "reason": "completed",
        "metric": "loss",
        "scores": [], "released_round": 1, "released": "0" * 64, "last_round": 1, "last": "0" * 64,
    }  # fmt: skip
    assert ResultRecord.model_validate(plain).privacy is None
    with pytest.raises(ValueError, match="privacy"):
        ResultRecord.model_validate(plain | {"privacy": {"unit": "nobody"}})
    assert ResultRecord.model_validate(plain | {"released": None, "released_round": None}).last == "0" * 64
    for part in ("released", "released_round"):
        with pytest.raises(ValueError, match="go together"):
            ResultRecord.model_validate(plain | {part: None})
