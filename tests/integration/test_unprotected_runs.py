"""A run without differential privacy stands in the site's ledger before the site has accepted it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from federation import Federation
from offers import COUNTS, RUN, codes, node, offer, own_rows

from wardround.client.accepted import RunFolders
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.core.errors import BudgetError
from wardround.runtime.plan_folder import SIGNED

PATIENTS = [f"basel{number}" for number in range(5)]
PRIVATE = {"unit": "patient", "noise": "local", "sigma": 1.0, "delta": 1e-3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Three sites' folders, and two plans: `plan` without privacy, `private`."""
    federation = Federation.make(tmp_path_factory.mktemp("unprotected"), tiny_bert, COUNTS)
    federation.plan("plan")
    federation.plan(
        "private", units=(4, 6), privacy=PRIVATE, strategy={"weighting": "uniform"},
        local={"epochs": 1, "batch_size": 2, "max_grad_norm": None},
    )  # fmt: skip
    return federation


def give(federation: Federation, **policy: bool) -> Path:
    """Basel's ledger, anew, with a cap of ε = 50."""
    folder = federation.practice.sites["basel"].path / "ledger"
    shutil.rmtree(folder, ignore_errors=True)
    Ledger.create(folder, BudgetPolicy(epsilon=50.0, delta=1e-3, **policy), units=5).close()
    return folder


def test_under_a_cap_it_is_refused_at_once(federation: Federation) -> None:
    """Not in round 1: the operator sees it with the offer, and nothing of the run was accepted."""
    folder = give(federation)
    answer = node(federation).answer(offer(federation))
    assert codes(answer) == ("refused", ["budget"])
    assert "without differential privacy" in answer.reasons[0].text
    assert RunFolders(federation.practice.sites["basel"].path / "runs").accepted(RUN) is None
    with Ledger.open(folder) as ledger:
        assert ledger.epsilon(ledger.source("again", PATIENTS)).value == 0


def test_where_it_is_allowed_nothing_bounds_its_patients_any_more(federation: Federation) -> None:
    """Those that were held back as well; a restarted site writes it once; a later private run is refused."""
    folder = give(federation, allow_release=True)
    own = node(federation)
    assert codes(own.answer(offer(federation))) == ("accepted", [])
    size = (folder / "ledger.jsonl").stat().st_size
    assert node(federation).get((RUN, "basel")) is not None
    assert (folder / "ledger.jsonl").stat().st_size == size
    with Ledger.open(folder) as ledger:
        for patient in PATIENTS:
            assert ledger.epsilon(ledger.source(patient, [patient])).value == math.inf, patient
    data = (federation.practice.folder / "private" / SIGNED).read_bytes()
    run = RUN.replace("0a", "0b")
    assert codes(node(federation).answer(offer(federation, plan=data, run_id=run))) == ("accepted", [])
    site = node(federation).get((run, "basel"))
    assert site is not None
    assert site.privacy is not None
    with pytest.raises(BudgetError, match="without differential privacy"):
        site.privacy.reserve(site.plan, run, 1, cohort=3, coordinates=10)


def test_every_reservation_has_the_mark_of_the_rows(federation: Federation, tmp_path: Path) -> None:
    """Other rows, another mark; two draws over the same rows differ all the same."""
    folder, rows = give(federation), own_rows(federation, tmp_path)
    data = (federation.practice.folder / "private" / SIGNED).read_bytes()
    assert codes(node(federation).answer(offer(federation, plan=data))) == ("accepted", [])
    marks = []
    for changed in (False, True):
        if changed:
            rows.write_text(rows.read_text().replace("case 3 ", "case three "))
        own = node(federation).get((RUN, "basel"))
        assert own is not None
        assert own.privacy is not None
        names = {own.privacy.draw(1), own.privacy.draw(1)}
        assert len(names) == 2
        (mark,) = {name.partition("-")[2] for name in names}
        assert len(mark) == 16
        own.privacy.reserve(own.plan, RUN, 1 + changed, cohort=3, coordinates=10)
        assert f"-{mark}" in (folder / "ledger.jsonl").read_text()
        marks.append(mark)
    assert marks[0] != marks[1]


def test_a_site_without_a_ledger_has_no_account_to_keep(federation: Federation) -> None:
    """It accepts what its policy allows, as before."""
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    assert not (federation.practice.sites["basel"].path / "ledger").exists()


def test_it_stands_there_for_whoever_came_later(federation: Federation, tmp_path: Path) -> None:
    """Rows may be added while the run goes on: a site that starts again writes their patients down."""
    folder, rows = give(federation, allow_release=True), own_rows(federation, tmp_path)
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    row = json.loads(rows.read_text().splitlines()[0]) | {"patient": "basel-new"}
    rows.write_text(rows.read_text() + json.dumps(row) + "\n")
    assert node(federation).get((RUN, "basel")) is not None
    with Ledger.open(folder) as ledger:
        releases = [
            line for line in (folder / "ledger.jsonl").read_text().splitlines() if '"release"' in line
        ]
        assert len(releases) == 2
        assert ledger.epsilon(ledger.source("new", ["basel-new"])).value == math.inf
