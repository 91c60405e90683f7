"""A run without differential privacy stands in the site's ledger before the site has accepted it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from federation import Federation
from offers import COUNTS, RUN, codes, node, offer, own_rows, require_nothing_granted

from wardround.client.accepted import RunFolders
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.reading import look
from wardround.client.ledger.sources import source_at
from wardround.client.ledger.summary import reservations, summarise
from wardround.core.errors import BudgetError
from wardround.runtime.plan_folder import SIGNED

PATIENTS = [f"basel{number}" for number in range(5)]
PRIVATE = {"unit": "patient", "noise": "local", "sigma": 1.0, "delta": 1e-3}


SECTIONS: dict[str, Any] = {
    "units": (4, 6), "privacy": PRIVATE, "strategy": {"weighting": "uniform"},
    "local": {"epochs": 1, "batch_size": 2, "max_grad_norm": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Three sites' folders, and two plans: `plan` without privacy, `private`."""
    federation = Federation.make(tmp_path_factory.mktemp("unprotected"), tiny_bert, COUNTS)
    federation.plan("plan")
    federation.plan("private", **SECTIONS)
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
    require_nothing_granted(federation)


def test_whom_a_private_run_holds_back_ends_the_cap_on_them(federation: Federation) -> None:
    """Their exact scores leave, and another seed would train on them: refused, with a way on."""
    folder = give(federation)
    data = (federation.practice.folder / "private" / SIGNED).read_bytes()
    answer = node(federation).answer(offer(federation, plan=data))
    assert codes(answer) == ("refused", ["budget"])
    assert "holds back" in answer.reasons[0].text
    for remedy in ("data.validation_fraction=0", "--allow-release"):
        assert remedy in answer.reasons[0].text
    assert RunFolders(federation.practice.sites["basel"].path / "runs").accepted(RUN) is None
    book, _ = look(folder)
    assert [reason for reason, _ in book.refusals] == ["no_privacy"]


def test_where_it_is_allowed_those_held_back_are_on_record_and_the_others_keep_their_cap(
    federation: Federation,
) -> None:
    """Once for a run; a run under another seed cannot train on them."""
    folder = give(federation, allow_release=True)
    data = (federation.practice.folder / "private" / SIGNED).read_bytes()
    assert codes(node(federation).answer(offer(federation, plan=data))) == ("accepted", [])
    size = (folder / "ledger.jsonl").stat().st_size
    site = node(federation).get((RUN, "basel"))
    assert (folder / "ledger.jsonl").stat().st_size == size
    assert site is not None
    assert site.privacy is not None
    (held_back,) = set(PATIENTS) - set(site.privacy.units)
    site.privacy.reserve(site.plan, RUN, 1, cohort=3, coordinates=10)
    with Ledger.open(folder) as ledger:
        found = {one: ledger.epsilon(ledger.source(one, [one])).value for one in PATIENTS}
        assert {one for one, value in found.items() if value == math.inf} == {held_back}
        assert all(0 < value < 50 for one, value in found.items() if one != held_back)
        (line,) = summarise(ledger.book).runs
        alone = ledger.epsilon(ledger.source("others", sorted(set(site.privacy.units))), run=RUN)
        assert (line.released, line.epsilon) == (1, alone)
    other = federation.plan("reseeded", seed=1, **SECTIONS)
    run = RUN.replace("0a", "0b")
    data = (other / SIGNED).read_bytes()
    assert codes(node(federation).answer(offer(federation, plan=data, run_id=run))) == ("accepted", [])
    again = node(federation).get((run, "basel"))
    assert again is not None
    assert again.privacy is not None
    assert held_back in again.privacy.units
    with pytest.raises(BudgetError, match="without differential privacy"):
        again.privacy.reserve(again.plan, run, 1, cohort=3, coordinates=10)


def test_a_plan_that_holds_nobody_back_needs_no_such_permission(federation: Federation) -> None:
    """Under a cap, with the policy as it is by default."""
    folder = give(federation)
    plan = federation.plan("whole", data=federation.data(validation_fraction=0.0), **SECTIONS)
    signed = (plan / SIGNED).read_bytes()
    assert codes(node(federation).answer(offer(federation, plan=signed))) == ("accepted", [])
    site = node(federation).get((RUN, "basel"))
    assert site is not None
    assert site.privacy is not None
    site.privacy.reserve(site.plan, RUN, 1, cohort=3, coordinates=10)
    assert 0 < summarise(look(folder)[0]).highest.value < 50


@pytest.mark.parametrize("column", [None, "patient"])
def test_rows_of_nobody_are_no_privacy_for_a_patient(federation: Federation, column: str | None) -> None:
    """Where no column names the patient, one row of each row's own unit bounds nothing, whatever K says."""
    plan = federation.plan(
        "rows", **SECTIONS | {"units": (8, 12), "privacy": PRIVATE | {"unit": "example", "most_examples": 2}},
        data=federation.data(unit_column=column, validation_fraction=0.0),
    )  # fmt: skip
    data, (refused, accepted) = (plan / SIGNED).read_bytes(), (("refused", ["budget"]), ("accepted", []))
    give(federation)
    answer = node(federation).answer(offer(federation, plan=data))
    assert codes(answer) == (accepted if column else refused)
    assert column or "nothing bounds how many of them one patient has" in answer.reasons[0].text
    folder = give(federation, allow_release=True)
    assert codes(node(federation).answer(offer(federation, plan=data))) == accepted
    site = node(federation).get((RUN, "basel"))
    assert site is not None
    assert site.privacy is not None
    site.privacy.reserve(site.plan, RUN, 1, cohort=3, coordinates=10)
    book, _ = look(folder)
    (line,) = reservations(book)
    assert line.mechanism.kind == ("bounded_mixture" if column else "no_privacy")
    assert (summarise(book).highest.value == math.inf) is (column is None)


@pytest.mark.parametrize("private", [True, False])
def test_the_same_rows_under_new_pseudonyms_are_the_same_patients(
    federation: Federation, tmp_path: Path, private: bool
) -> None:
    """Whatever a person signs, and in whatever order they come; one with other rows is a new one then."""
    folder, rows = (
        give(federation, allow_release=True, allow_after_release=True),
        own_rows(federation, tmp_path),
    )
    whole = federation.plan("whole", data=federation.data(validation_fraction=0.0), **SECTIONS)
    data = ((whole if private else federation.practice.folder / "plan") / SIGNED).read_bytes()
    runs = [RUN, RUN.replace("0a", "0b")]

    def charge(run: str) -> None:
        data_of = (whole / SIGNED).read_bytes() if run != RUN else data
        assert codes(node(federation).answer(offer(federation, plan=data_of, run_id=run))) == ("accepted", [])
        site = node(federation).get((run, "basel"))
        assert site is not None
        if site.privacy is not None:
            site.privacy.reserve(site.plan, run, 1, cohort=3, coordinates=10)

    charge(runs[0])
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    again = [row | {"patient": row["patient"].replace("basel", "new")} for row in reversed(lines)]
    again = [row | {"note": "another text"} if row["patient"] == "new3" else row for row in again]
    rows.write_text("".join(json.dumps(row) + "\n" for row in again))
    charge(runs[1])
    with Ledger.open(folder) as ledger:
        source = ledger.source("export", sorted({row["patient"] for row in again}))
        (brought,) = {batch.source for batch in ledger.book.population.batches} - {0}
        ledger.declare_disjoint(
            source_at(ledger.book, brought, "tiny"), who="Dr Test", why="they are others, they say"
        )
        spent = {one: ledger.epsilon(ledger.source(one, [one])).value for one in ("new0", "new3")}
        once = ledger.epsilon(source, run=runs[1]).value
        assert once < math.inf
        assert spent["new3"] < spent["new0"]
        assert (spent["new0"] == math.inf) is not private


def test_every_reservation_has_the_mark_of_the_rows(federation: Federation, tmp_path: Path) -> None:
    """Other rows, another mark; two draws over the same rows differ all the same."""
    folder, rows = give(federation, allow_release=True), own_rows(federation, tmp_path)
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
