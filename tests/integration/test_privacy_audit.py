"""`wardround audit privacy` on runs of every kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wardround import cli
from wardround.core.errors import ConfigError, DataError
from wardround.simulations import privacy_audit
from wardround.simulations.config import RunConfig
from wardround.simulations.privacy_audit import Audit, audited
from wardround.simulations.simulate import run_simulation
from wardround.training.private import gradient
from wardround.training.private.audit.findings import Finding
from wardround.training.private.audit.sensitivity import sensitivity

Make = Callable[..., RunConfig]
LOCAL: dict[str, Any] = {"unit": "patient", "epsilon": 4.0, "delta": 1e-2}
GIVEN: dict[str, Any] = {"epsilon": None, "sigma": 2.0}
"""For tests of no figure: a noise that is written down, where one that fits ε is searched for in seconds."""


@pytest.fixture(autouse=True)
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward passes are most of the time; other tests take more of them."""
    monkeypatch.setattr(privacy_audit, "sensitivity", partial(sensitivity, batches=2))
    monkeypatch.setattr(privacy_audit, "ROUNDS", (1,))


@pytest.fixture
def wards(notes: Callable[..., Make], tmp_path: Path) -> Make:
    """Three sites of 20 patients with two rows each; a third of the patients is held back."""
    make = notes(120, 3, 2, unit_column="patient", id_column="note", labels=["0", "1"])

    def private(name: str, privacy: dict[str, Any] | None, **sections: Any) -> RunConfig:
        local = {"max_grad_norm": None if privacy else 1.0, **sections.pop("local", {})}
        if privacy is not None:
            sections |= {"privacy": privacy}
        return make(name, strategy={"weighting": "uniform"}, local=local, **sections)

    return private


def named(audit: Audit) -> list[str]:
    """Names of the gate's findings."""
    return [finding.test for finding in audit.gate]


def test_a_private_run_passes_and_a_broken_step_does_not(
    wards: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0, and 1; nothing of a row is in what is printed."""
    run = run_simulation(wards("local", LOCAL)).folder
    result = CliRunner().invoke(cli.app, ["audit", "privacy", str(run)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for said in ("the gate passed", "sensitivity", "canaries", "AUC", "ε = 4 at δ = 0.01 per patient"):
        assert said in result.output
    for secret in ("slow", "sharp", "p11"):
        assert secret not in result.output
    plain = gradient.add_noise
    monkeypatch.setattr(gradient, "add_noise", lambda total, size, source: plain(total, size / 2, source))
    result = CliRunner().invoke(cli.app, ["audit", "privacy", str(run), "--json"])
    assert result.exit_code == 1
    record = json.loads(result.output)
    assert record["gate_passed"] is False
    failed = {found["test"] for found in record["gate"] if not found["passed"]}
    assert "noise, deviation" in failed
    assert not any("sensitivity" in name for name in failed)


def test_a_run_without_privacy_is_asked_about_its_members_alone(wards: Make) -> None:
    """The gate does not apply, which is said; validation rows stand in for test rows, which is said."""
    run = run_simulation(wards("plain", None)).folder
    result = CliRunner().invoke(cli.app, ["audit", "privacy", str(run)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "the gate does not apply" in result.output
    assert "what sites held back" in result.output
    assert "the gate passed" not in result.output
    audit = audited(run, designed="slow 1")
    assert audit.passed is None
    assert set(audit.membership) == {"rows", "designed canaries"}
    ordinary, planted = (audit.membership[name]["calibrated"] for name in ("rows", "designed canaries"))
    assert 0 < planted.members < ordinary.members
    assert planted.others > 0
    assert 60 <= planted.members + planted.others + ordinary.members + ordinary.others <= 120


def test_noise_in_sums_is_tested_where_it_is_added(wards: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributed: shares of sites, and the sensitivity of their one sum. Central: the server's noise."""
    secure = {"mode": "real", "policy": {"least_cohort": 3, "least_honest": 2, "modes": ["real"]}}
    one_step = {"steps": 1, "optimiser": "sgd", "learning_rate": 0.5}
    shared = LOCAL | GIVEN | {"noise": "distributed", "sample_rate": 0.5}
    audit = audited(run_simulation(wards("shared", shared, local=one_step, secure=secure)).folder)
    assert audit.passed, audit.gate
    assert {"sensitivity, rows one by one", "noise, deviation"} <= set(named(audit))
    assert "canaries" in audit.untested[0]
    central = {"unit": "site", "noise": "central", "epsilon": 30.0, "delta": 0.1, "clip_norm": 0.5}
    audit = audited(run_simulation(wards("central", central, data={"validation_fraction": 0.0})).folder)
    assert audit.passed, audit.gate
    assert named(audit) == ["noise, deviation", "noise, mean", "noise, between steps"]
    assert len(audit.untested) == 2
    assert "nobody to compare with" in audit.notices[0]


def test_other_rows_or_an_unfinished_run_are_refused(wards: Make, tmp_path: Path) -> None:
    """They would say nothing of this run."""
    run = run_simulation(wards("other", LOCAL)).folder
    (run / "adapter").rename(run / "gone")
    with pytest.raises(ConfigError, match="has not ended"):
        audited(run)
    (run / "gone").rename(run / "adapter")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("slow 7", "slow 8", 1))
    with pytest.raises(DataError, match="not those of the run"):
        audited(run)


def test_json_has_words_for_infinity() -> None:
    """A sum that is not finite is a finding too, and a claim of no noise at all."""
    findings = [Finding("sensitivity", math.inf, 0.0, 1.0), Finding("canaries", 3.0, 0.0, math.inf)]
    record = json.loads(json.dumps(Audit("none", findings).record(), allow_nan=False))
    assert [found["passed"] for found in record["gate"]] == [False, True]
    assert record["gate"][0]["found"] == record["gate"][1]["most"] == "inf"
    assert record["gate_passed"] is False
