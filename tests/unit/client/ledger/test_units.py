"""Who is charged: no new name, no new export and no few new rows buy a fresh budget."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.ledger.keys import LedgerKeys
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.row_file import FILE
from wardround.client.ledger.units import FOLDER, UnitList, read_list
from wardround.core.errors import BudgetError, ConfigError, PolicyError
from wardround.privacy.secagg.secret import Secret

KEYS = LedgerKeys(Secret(bytes(range(32))))
OLD = [f"patient {i}" for i in range(50)]
ROUNDS = 5


@pytest.fixture
def spent(ledger: Ledger, asked: Any) -> float:
    """ε of the first source, `ward`, with fifty patients and five rounds."""
    source = ledger.source("ward", OLD)
    for round in range(ROUNDS):
        asked.reserve(ledger, source, round)
    return ledger.epsilon(source).value


def epsilon(ledger: Ledger, rounds: int, asked: Any, make: Any) -> float:
    """ε of so many rounds on one unit."""
    other = make()
    source = other.source("x", ["one"])
    for round in range(rounds):
        asked.reserve(other, source, round)
    assert ledger.book.cap == other.book.cap
    return float(other.epsilon(source).value)


def test_a_rename_buys_nothing(ledger: Ledger, spent: float) -> None:
    """The same patients under another name, in another order, with their rows repeated."""
    renamed = ledger.source("another name", [*reversed(OLD), *OLD])
    assert (renamed.number, renamed.unknown) == (0, 0)
    assert ledger.epsilon(renamed).value == spent


def test_a_source_is_on_record_once(ledger: Ledger, spent: float) -> None:
    """Its list is kept once; another name for it is a row, the same name none."""
    rows = ledger.head().rows
    ledger.source("ward", OLD)
    assert ledger.head().rows == rows
    ledger.source("another name", OLD)
    assert ledger.head().rows == rows + 1
    assert len(ledger.book.sources) == 1


def test_a_part_of_a_source_is_charged_on_top(ledger: Ledger, spent: float, asked: Any, make: Any) -> None:
    """And what is left of it is not, since they are known to be others."""
    part, rest = ledger.source("part", OLD[:10]), ledger.source("rest", OLD[10:])
    assert ledger.epsilon(part).value == spent
    asked.reserve(ledger, part, 99)
    six = epsilon(ledger, ROUNDS + 1, asked, make)
    assert ledger.epsilon(part).value == pytest.approx(six, rel=1e-12)
    assert ledger.epsilon(ledger.source("ward", OLD)).value == pytest.approx(six, rel=1e-12)
    assert ledger.epsilon(rest).value == spent


def test_every_unit_of_a_source_is_charged(ledger: Ledger, spent: float) -> None:
    """Sampled or not: each of them alone has the same ε."""
    for unit in (OLD[0], OLD[-1]):
        assert ledger.epsilon(ledger.source("one", [unit])).value == spent


def test_a_reexport_under_new_pseudonyms_takes_the_highest_spend(
    ledger: Ledger, spent: float, asked: Any, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, charged on top, and so are the old ids: each may be the other."""
    caplog.set_level(logging.WARNING)
    new = ledger.source("ward again", [f"pseudonym {i}" for i in range(50)])
    assert new.unknown == 50
    assert "50 units whom the ledger does not know" in caplog.text
    assert ledger.epsilon(new).value == spent
    asked.reserve(ledger, new, 98)
    six = epsilon(ledger, ROUNDS + 1, asked, make)
    assert ledger.epsilon(new).value == pytest.approx(six, rel=1e-12)
    old = ledger.source("ward", OLD)
    assert ledger.epsilon(old).value == pytest.approx(six, rel=1e-12)
    asked.reserve(ledger, old, 99)
    seven = epsilon(ledger, ROUNDS + 2, asked, make)
    assert ledger.epsilon(new).value == pytest.approx(seven, rel=1e-12), "what was spent later was not seen"


def test_ten_new_rows_buy_nothing(ledger: Ledger, spent: float, asked: Any, make: Any) -> None:
    """The forty-nine who are still there go on; the new ones begin where the worst-off of the old are."""
    grown = ledger.source("ward, grown", [*OLD[1:], *(f"new {i}" for i in range(10))])
    assert grown.unknown == 10
    assert ledger.epsilon(grown).value == spent
    asked.reserve(ledger, grown, 98)
    six = epsilon(ledger, ROUNDS + 1, asked, make)
    for ids in ([*OLD[1:], *(f"new {i}" for i in range(10))], ["new 3"], [OLD[7]], [OLD[0]]):
        # Who left may have come back as one of the new: patient 0 is charged as well.
        assert ledger.epsilon(ledger.source("who", ids)).value == pytest.approx(six, rel=1e-12), ids


def test_growth_costs_a_patient_no_more_than_it_should(ledger: Ledger, asked: Any, make: Any) -> None:
    """Twelve months with ten new patients each, a round a month: nobody is charged for more than twelve."""
    for month in range(12):
        source = ledger.source(f"month {month}", [f"patient {i}" for i in range(50 + 10 * month)])
        asked.reserve(ledger, source, month)
    twelve = epsilon(ledger, 12, asked, make)
    assert ledger.epsilon(source).value == pytest.approx(twelve, rel=1e-12)


def test_a_person_signs_that_they_are_others(
    ledger: Ledger, folder: Path, spent: float, asked: Any, make: Any
) -> None:
    """Then they have a budget of their own, for good; who, why and when is on record."""
    new = ledger.source("children", [f"child {i}" for i in range(9)])
    rows = ledger.head().rows
    ledger.declare_disjoint(new, who="Dr Test", why="the children's clinic opened this year")
    assert ledger.head().rows == rows + 1
    assert ledger.epsilon(new).value == 0
    asked.reserve(ledger, new, 99)
    assert ledger.epsilon(ledger.source("ward", OLD)).value == spent
    one = epsilon(ledger, 1, asked, make)
    assert ledger.epsilon(new).value == pytest.approx(one, rel=1e-12)
    ledger.close()
    with Ledger.open(folder) as again:
        (note,) = again.book.notes
        assert (note.who, note.why, note.at) == (
            "Dr Test",
            "the children's clinic opened this year",
            1_800_000_000,
        )
        assert again.epsilon(again.source("children", [f"child {i}" for i in range(9)])).value == one


def test_who_comes_after_a_declaration_may_be_of_either(ledger: Ledger, spent: float, asked: Any) -> None:
    """The highest of both counts, not their sum: nobody is in two populations that are disjoint."""
    children = ledger.source("children", ["child 1", "child 2"])
    ledger.declare_disjoint(children, who="Dr Test", why="others")
    for round in range(2 * ROUNDS):
        asked.reserve(ledger, children, 100 + round)
    high = ledger.epsilon(children).value
    assert high > spent
    unknown = ledger.source("unknown", ["who 1"])
    assert ledger.epsilon(unknown).value == pytest.approx(high, rel=1e-12)
    asked.reserve(ledger, unknown, 200)
    assert ledger.epsilon(children).value > high
    assert spent < ledger.epsilon(ledger.source("ward", OLD)).value < high


def test_who_is_declared_is_nobody_of_before_declared_or_not(
    ledger: Ledger, spent: float, asked: Any
) -> None:
    """Neither of the old ones, nor of the unknown who came between."""
    asked.reserve(ledger, ledger.source("unknown", ["who 1"]), 98)
    children = ledger.source("children", ["child 1"])
    ledger.declare_disjoint(children, who="Dr Test", why="others")
    assert ledger.epsilon(children).value == 0


def test_the_highest_spend_is_that_of_one_patient(ledger: Ledger, asked: Any) -> None:
    """Of two halves of one export that were charged apart, an unknown patient is one, not both."""
    ledger.source("all", OLD)
    for number, half in enumerate((OLD[:25], OLD[25:])):
        source = ledger.source("half", half)
        for round in range(number + 1):
            asked.reserve(ledger, source, round, run=f"run {number}")
    two = ledger.epsilon(source).value
    assert ledger.epsilon(ledger.source("unknown", ["who"])).value == two


@pytest.mark.parametrize(("who", "why"), [("", "x"), ("Dr Test", ""), ("  ", "x"), ("x" * 300, "x")])
def test_nobody_signs_without_a_name_and_a_reason(ledger: Ledger, spent: float, who: str, why: str) -> None:
    """The row is there to ask somebody about it."""
    new = ledger.source("new", ["who"])
    with pytest.raises(ConfigError, match="who does this and why"):
        ledger.declare_disjoint(new, who=who, why=why)


def test_there_has_to_be_something_to_declare(ledger: Ledger, spent: float) -> None:
    """A source of known patients brought nobody."""
    with pytest.raises(ConfigError, match="nothing to declare"):
        ledger.declare_disjoint(ledger.source("part", OLD[:3]), who="Dr Test", why="x")


def contents(*texts: str) -> list[bytes]:
    """Digests of contents, as a caller has them."""
    return [text.encode() for text in texts]


def test_the_same_content_under_another_id_is_the_same_patient(ledger: Ledger, asked: Any) -> None:
    """Whatever a person signs; who shares no content has the budget that was signed for."""
    ward = ledger.source("ward", ["a", "b", "c"], contents("A", "B", "C"))
    asked.reserve(ledger, ward)
    spent = ledger.epsilon(ward).value
    new = ledger.source("new", ["x", "y"], contents("B", "Y"))
    assert new.unknown == 2
    ledger.declare_disjoint(new, who="Dr Test", why="they are others, they say")
    assert ledger.epsilon(new).value == spent
    assert ledger.epsilon(ledger.source("y", ["y"])).value == 0
    assert ledger.epsilon(ledger.source("x", ["x"])).value == spent
    row = [json.loads(line)["body"] for line in (ledger._store.folder / FILE).read_text().splitlines()][3]
    assert (row["kind"], row["unknown"], row["contested"]) == ("source", 2, 1)
    same = ledger.source("same", ["w"], contents("A"))
    with pytest.raises(ConfigError, match="nothing to declare"):
        ledger.declare_disjoint(same, who="Dr Test", why="others")


def test_nothing_is_known_by_a_content_that_is_not_given(ledger: Ledger, asked: Any) -> None:
    """Beside some ids there may be none: those are known by their ids alone."""
    ward = ledger.source("ward", ["a", "b"], [b"A", None])
    asked.reserve(ledger, ward)
    new = ledger.source("new", ["x", "y"], [None, b"B"])
    ledger.declare_disjoint(new, who="Dr Test", why="others")
    assert ledger.epsilon(new).value == 0
    assert ledger.source("none", ["a", "b"], [None, None]).digest == ledger.source("ids", ["a", "b"]).digest


def test_content_that_turns_up_later_undoes_a_declaration(ledger: Ledger, asked: Any) -> None:
    """For whom it is about, and nobody else."""
    ward = ledger.source("ward", ["a", "b"], contents("A", "B"))
    new = ledger.source("new", ["x", "y"], contents("X", "Y"))
    ledger.declare_disjoint(new, who="Dr Test", why="others")
    asked.reserve(ledger, ward)
    spent = ledger.epsilon(ward).value
    assert ledger.epsilon(new).value == 0
    ledger.source("new, in June", ["x", "y"], contents("A", "Y"))
    assert ledger.epsilon(ledger.source("x", ["x"])).value == spent
    assert ledger.epsilon(ledger.source("y", ["y"])).value == 0


def test_content_of_ones_own_says_nothing_new(ledger: Ledger, asked: Any) -> None:
    """Nor do equal contents within one export, whose ids are distinct patients."""
    ward = ledger.source("ward", ["a", "b"], contents("standard text", "standard text"))
    ledger.source("ward, in June", ["a", "b", "b"], contents("standard text", "standard text", "B"))
    asked.reserve(ledger, ward)
    assert {batch.contested for batch in ledger.book.population.batches} == {False}


def test_a_source_with_every_patient_refuses_what_one_of_them_cannot_take(make: Any, asked: Any) -> None:
    """The worst-off decides; the others have room alone."""
    ledger = make(1.0)
    everybody, one = ledger.source("all", OLD), ledger.source("one", OLD[:1])
    asked.exhaust(ledger, one)
    with pytest.raises(BudgetError):
        asked.reserve(ledger, everybody, 1000, mechanism=asked.BITE)
    asked.reserve(ledger, ledger.source("others", OLD[1:]), 1001, mechanism=asked.BITE)


def test_a_charge_is_refused_for_whom_it_may_meet(make: Any, asked: Any) -> None:
    """Also where the source itself has room: one of them may be the worst-off under another id."""
    ledger = make(1.0)
    ward = ledger.source("ward", OLD)
    asked.exhaust(ledger, ward)
    with pytest.raises(BudgetError):
        asked.reserve(ledger, ledger.source("unknown", ["who"]), 1000, mechanism=asked.BITE)


def test_delta_is_below_one_over_the_units_that_are_known(make: Any) -> None:
    """When the ledger is made, and when it gets to know more."""
    with pytest.raises(PolicyError, match="too large for so few units"):
        make(3.0, units=100_000)
    ledger = make(3.0, units=10)
    ledger.source("ward", range(99_999))
    rows = ledger.head().rows
    with pytest.raises(PolicyError, match="100001 units"):
        ledger.source("more", ["x", "y"])
    assert ledger.head().rows == rows


@pytest.mark.parametrize("ids", [[], [""], ["a", ""]])
def test_a_row_without_an_id_cannot_be_charged(ledger: Ledger, ids: list[str]) -> None:
    """It is refused, and not charged to nobody."""
    with pytest.raises(ConfigError, match="needs the id of every unit"):
        ledger.source("ward", ids)
    with pytest.raises(ConfigError, match="beside the ids"):
        ledger.source("ward", ["a", "b"], contents("A"))


def test_numbers_are_ids_as_they_are_written(ledger: Ledger) -> None:
    """1 is "1", and "01" is somebody else."""
    first = ledger.source("numbers", [1, 2])
    assert ledger.source("text", ["2", "1"]).number == first.number
    assert ledger.source("zeros", ["01", "02"]).unknown == 2


def test_ids_are_in_no_file(ledger: Ledger, folder: Path) -> None:
    """Neither in the clear nor as a plain hash; under another secret the lists differ."""
    ledger.source("ward", ["Anna Musterfrau"], contents("a letter"))
    files = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for text in (b"Anna Musterfrau", b"a letter"):
        assert text not in files
    assert (
        UnitList.of(KEYS, ["a"], None).digest != UnitList.of(LedgerKeys(Secret.fresh()), ["a"], None).digest
    )


def test_no_row_holds_a_units_hash(ledger: Ledger, folder: Path) -> None:
    """Rows have the digest of the list alone, so that they can be shown."""
    ledger.source("ward", ["a", "b"])
    (path,) = (folder / FOLDER).iterdir()
    hashed = read_list(folder, path.stem).ids.tobytes()
    rows = (folder / FILE).read_text()
    assert all(hashed[at : at + 16].hex() not in rows for at in (0, 16))


def test_a_hash_is_hmac_sha256_with_a_tag() -> None:
    """Frozen: ledgers keep them for years."""
    assert KEYS.hash_ids(["a"]).tobytes().hex() == "07ecc5504997bf3c3eb7408836700dc0"
    assert KEYS.hash_contents([b"a"]).tobytes() != KEYS.hash_ids(["a"]).tobytes()
    assert KEYS.public == "286b2639525585afa9f181d274c8af242100fb316e5b65da95001481430db496"
    assert KEYS.check == "bbe0556b962acfe8807603821f0b273929cd2106ecd98db14010c6d6efaddb96"


def test_a_list_is_read_again_as_it_was(tmp_path: Path) -> None:
    """Hashes that end in zeros included."""
    ids = np.unique(KEYS.hash_ids(map(str, range(3000))))
    assert any(value.endswith(b"\0") for value in (ids.tobytes()[at : at + 16] for at in range(0, 48000, 16)))
    units = UnitList.of(KEYS, range(3000), [f"{i}".encode() for i in range(3000)])
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / f"{units.digest}.units").write_bytes(units.encoded)
    again = read_list(tmp_path, units.digest)
    np.testing.assert_array_equal(again.ids, units.ids)
    np.testing.assert_array_equal(again.contents, units.contents)
    assert again.digest == units.digest


def test_epsilon_without_any_charge_is_zero(ledger: Ledger) -> None:
    """Also of a source that is not the first."""
    ledger.source("ward", OLD)
    assert ledger.epsilon(ledger.source("new", ["x"])).value == 0
    assert not math.isinf(ledger.epsilon(ledger.source("new", ["x"]), run="none").value)
