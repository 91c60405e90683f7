"""What peers have seen of a ledger outlives the process that was told; and a ledger that went two ways."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from wardround.client.ledger import seen
from wardround.client.ledger.branches import JOINING
from wardround.client.ledger.charging import room
from wardround.client.ledger.commands import replay_rows, verify_ledger
from wardround.client.ledger.heads import Head
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.reading import look, verify
from wardround.client.ledger.repair import Replayed, mend, replay, write_off
from wardround.client.ledger.row_file import FILE
from wardround.client.ledger.rows import WrittenOff, canonical
from wardround.client.ledger.seen import SEEN, read_seen
from wardround.client.ledger.store import make_mirror
from wardround.core.errors import BudgetError, ConfigError, PolicyError, RolledBackError, StorageError

IDS = [f"patient {i}" for i in range(20)]
SIGNED = {"who": "Dr Test", "why": "the disk broke"}
ONE, TWO = "11" * 32, "22" * 32


@pytest.fixture
def true(folder: Path, tmp_path: Path, policy: BudgetPolicy, asked: Any) -> Path:
    """A true copy after round 3; the ledger itself was put back to where round 1 was charged."""
    backup, copy = tmp_path / "backup", tmp_path / "true"
    with Ledger.create(folder, policy, units=1000) as ledger:
        asked.reserve(ledger, ledger.source("ward", IDS))
    shutil.copytree(folder, backup)
    with Ledger.open(folder) as ledger:
        source = ledger.source("ward", IDS)
        for round in (2, 3):
            asked.reserve(ledger, source, round)
            ledger.seal(run="run", round=round, stage=0, digest=ONE)
    folder.rename(copy)
    backup.rename(folder)
    return copy


def head(folder: Path) -> Head:
    """Of the whole ledger."""
    return verify(folder).head


def told(folder: Path, *heads: Head) -> None:
    """Peers say what they have seen, and the ledger lacks it."""
    with Ledger.open(folder) as ledger, pytest.raises(RolledBackError):
        ledger.require_head(heads)


def went_on(folder: Path, asked: Any, rounds: int = 1) -> Head:
    """The ledger that was put back is written to before anybody notices."""
    with Ledger.open(folder) as ledger:
        source, clinic = ledger.source("ward", IDS), ledger.source("clinic", ["new", *IDS[:3]])
        for round in range(2, 2 + rounds):
            asked.reserve(ledger, source, round, draw=f"another {round}")
            ledger.seal(run="run", round=round, stage=0, digest=TWO)
        asked.reserve(ledger, clinic, 9, run="elsewhere")
        return ledger.head()


def epsilon(folder: Path, ids: list[str] = IDS) -> float:
    """Of the worst-off patient of a source."""
    with Ledger.open(folder) as ledger:
        return ledger.epsilon(ledger.source("ward", ids)).value


# --- what was seen is remembered


def test_who_was_told_once_is_refused_in_every_later_process(true: Path, folder: Path, asked: Any) -> None:
    """Whatever it wants, before a row is written; until the rows are replayed."""
    before = (folder / FILE).read_bytes()
    told(folder, head(true))
    assert read_seen(folder).known == (head(true),)
    for _ in range(2):
        with pytest.raises(
            RolledBackError, match=r"(?s)older copy.*3 rows.*7 rows.*ledger replay.*write-off"
        ):
            Ledger.open(folder)
    with pytest.raises(RolledBackError):
        verify(folder)
    assert look(folder)[0].rows == 3, "its people may look at it"
    assert (folder / FILE).read_bytes() == before
    assert replay(folder, true) == Replayed(rows=4, own=0, behind=False)
    with Ledger.open(folder) as ledger:
        assert asked.reserve(ledger, ledger.source("ward", IDS), 3).again
    assert verify(folder).rows == 7


def test_what_was_seen_is_on_the_disk_before_anybody_is_refused(
    true: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between leaves a ledger that is closed; a full disk, one that is closed here and now."""
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), sync(descriptor))[1])
    with Ledger.open(folder) as ledger:
        synced.clear()
        with pytest.raises(RolledBackError):
            ledger.require_head([head(true)])
        assert len(synced) >= 2, "the file and its folder"
    (folder / SEEN).unlink()

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(seen, "write_atomic", full)
    with Ledger.open(folder) as ledger:
        for _ in range(2):
            with pytest.raises(RolledBackError):
                ledger.require_head([head(true)])
        with pytest.raises(RolledBackError):
            ledger.source("new", ["z"])


def test_a_restored_folder_has_forgotten_and_is_told_again(true: Path, folder: Path, tmp_path: Path) -> None:
    """What lies beside the rows is lost with them."""
    shutil.copytree(folder, tmp_path / "again")
    told(folder, head(true))
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "again", folder)
    told(folder, head(true))
    with pytest.raises(RolledBackError):
        Ledger.open(folder)


@pytest.mark.parametrize(
    "content", ["", "{", '{"version":2}', '{"heads":[{"epoch":0,"rows":1,"digest":"x"}]}']
)
def test_a_note_that_cannot_be_read_is_not_passed_over(true: Path, folder: Path, content: str) -> None:
    """Nobody guesses what it said."""
    (folder / SEEN).write_text(content)
    with pytest.raises(StorageError, match=SEEN):
        Ledger.open(folder)


def test_heads_of_another_ledger_are_named_where_it_is_verified(
    true: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last time that it happened."""
    seen.note_strangers(true, 4, 1_800_000_000)
    verify_ledger(true, key=None, mirror=None)
    assert "4 peers gave back another ledger's head on 2027-01-15" in capsys.readouterr().out
    Ledger.open(true).close()


# --- it went two ways


def test_a_ledger_that_went_on_is_replayed_and_both_ways_are_counted(
    true: Path, folder: Path, asked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if it had done the one after the other; peers may have seen either."""
    seen_of_true, seen_of_own = head(true), went_on(folder, asked)
    own = (folder / FILE).read_bytes()
    told(folder, seen_of_true)
    replay_rows(folder, true)
    said = capsys.readouterr().out
    assert "4 rows were appended" in said
    assert "its own 4 rows are counted after them" in said
    assert (folder / FILE).read_bytes().startswith((true / FILE).read_bytes())
    assert (folder / f"branch-{seen_of_own.digest[:16]}.jsonl").read_bytes() == own
    assert not (folder / JOINING).exists()
    with Ledger.open(folder) as ledger:
        ledger.require_head([seen_of_true, seen_of_own])
        with pytest.raises(PolicyError, match="has a contribution already"):
            ledger.seal(run="run", round=2, stage=0, digest=TWO)
        assert len(ledger.book.draws.of(("run", 2, 0))) == 2
    # The same by hand, on the true copy.
    with Ledger.open(true) as ledger:
        asked.reserve(ledger, ledger.source("ward", IDS), 22, draw="another 2")
        asked.reserve(ledger, ledger.source("clinic", ["new", *IDS[:3]]), 9, run="elsewhere")
    assert epsilon(folder) == epsilon(true)
    assert epsilon(folder, ["new", *IDS[:3]]) == epsilon(true, ["new", *IDS[:3]])
    verify(folder)


def test_what_stands_on_both_ways_is_charged_once(true: Path, folder: Path, asked: Any) -> None:
    """The same draw has the same noise; asked for otherwise it is charged on top."""
    with Ledger.open(folder) as ledger:
        source = ledger.source("ward", IDS)
        asked.reserve(ledger, source, 2)
        asked.reserve(ledger, source, 3, mechanism=asked.BITE)
    replay(folder, true)
    book, _ = look(folder)
    assert len(book.draws.of(("run", 2, 0))) == 1
    assert [charge.terms.mechanism for charge in book.draws.of(("run", 3, 0))] == [asked.STEP, asked.BITE]


def test_a_run_without_privacy_on_the_other_way_stays_one(tmp_path: Path, folder: Path, asked: Any) -> None:
    """Its patients' ε is infinite."""
    policy = BudgetPolicy(epsilon=3.0, delta=1e-5, allow_release=True)
    with Ledger.create(folder, policy, units=1000) as ledger:
        ledger.source("ward", IDS)
    shutil.copytree(folder, tmp_path / "true")
    with Ledger.open(tmp_path / "true") as ledger:
        asked.reserve(ledger, ledger.source("ward", IDS))
    with Ledger.open(folder) as ledger:
        ledger.release_without_privacy(ledger.source("ward", IDS), run="open", plan=asked.PLAN)
    replay(folder, tmp_path / "true")
    assert epsilon(folder) == float("inf")


def test_a_settled_charge_of_the_other_way_counts_whole(true: Path, folder: Path, asked: Any) -> None:
    """What lowers is left out."""
    with Ledger.open(folder) as ledger:
        source = ledger.source("ward", IDS)
        reservation = asked.reserve(ledger, source, 5, draw="stopped")
        assert ledger.settle(reservation, 1) == 1
    replay(folder, true)
    assert look(folder)[0].steps_left(("run", 5, 0, "stopped")) == 10


def test_a_copy_that_is_not_long_enough_leaves_it_closed(
    true: Path, folder: Path, tmp_path: Path, asked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The longer one, once it is found, is joined to what came of that; every way that was gone is known."""
    first = went_on(folder, asked)
    told(folder, head(true))
    short = tmp_path / "short"
    shutil.copytree(true, short)
    rows = (true / FILE).read_bytes().splitlines(keepends=True)
    (short / FILE).write_bytes(b"".join(rows[:5]))
    replay_rows(folder, short)
    assert "the ledger stays closed" in capsys.readouterr().out
    with pytest.raises(RolledBackError):
        Ledger.open(folder)
    second = head_of_closed(folder)
    assert replay(folder, true).behind is False
    with Ledger.open(folder) as ledger:
        ledger.require_head([first, second, head(true)])
        assert len(ledger.book.draws.of(("run", 2, 0))) == 2
        assert len(ledger.book.draws.of(("elsewhere", 9, 0))) == 1


def head_of_closed(folder: Path) -> Head:
    """Of a ledger that does not open."""
    note = (folder / SEEN).read_bytes()
    (folder / SEEN).unlink()
    found = head(folder)
    (folder / SEEN).write_bytes(note)
    return found


@pytest.mark.parametrize("at", range(6))
def test_a_kill_while_two_ways_are_joined_leaves_the_ledger_as_it_was(
    true: Path, folder: Path, asked: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Or, after the last step, as it will be."""
    went_on(folder, asked)
    told(folder, head(true))
    before = (folder / FILE).read_bytes()
    calls = iter(range(100))
    replace, sync = Path.replace, os.fsync

    class Killed(BaseException):
        """As a kill: nothing of ours runs after it."""

    def fails(call: Any) -> Any:
        def failing(*arguments: Any) -> Any:
            if next(calls) == at * 2:
                raise Killed
            return call(*arguments)

        return failing

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails(replace))
        patch.setattr(os, "fsync", fails(sync))
        with pytest.raises(Killed):
            replay(folder, true)
    assert (folder / FILE).read_bytes() == before
    with pytest.raises(RolledBackError):
        Ledger.open(folder)
    assert replay(folder, true).own == 4
    Ledger.open(folder).close()


def test_a_mirror_that_followed_the_other_way_is_set_aside(true: Path, folder: Path, asked: Any) -> None:
    """Under another name; it then follows the ledger."""
    mirror = folder.with_name("mirror")
    make_mirror(folder, mirror)
    went_on(folder, asked)
    Ledger.open(folder, mirror=mirror).close()
    own = (mirror / FILE).read_bytes()
    told(folder, head(true))
    replay(folder, true, mirror=mirror)
    assert (mirror / "lost-at-row-3.jsonl").read_bytes() == own
    Ledger.open(folder, mirror=mirror).close()
    assert (mirror / FILE).read_bytes() == (folder / FILE).read_bytes()


@pytest.mark.parametrize("what", ["amend", "write off"])
def test_what_a_person_signed_on_the_other_way_is_not_carried_over(
    true: Path, folder: Path, what: str
) -> None:
    """Nor dropped: nothing is done, and the cap can be written off."""
    if what == "amend":
        with Ledger.open(folder) as ledger:
            ledger.amend(BudgetPolicy(epsilon=2.0, delta=1e-5), **SIGNED)
    else:
        write_off(folder, **SIGNED)
    before = sorted((path.name, path.read_bytes()) for path in folder.glob("*.jsonl"))
    with pytest.raises(StorageError, match=r"(?s)a person changed its rules.*write-off"):
        replay(folder, true)
    assert sorted((path.name, path.read_bytes()) for path in folder.glob("*.jsonl")) == before


def test_a_line_that_was_cut_off_on_the_other_way_is_no_obstacle(true: Path, folder: Path) -> None:
    """It charged nothing."""
    with (folder / FILE).open("ab") as file:
        file.write(b'{"body":')
    mend(folder, **SIGNED)
    replay(folder, true)
    Ledger.open(folder).close()


# --- the cap is written off


def test_a_write_off_counts_what_the_ledger_did_by_itself_beside_the_cap(
    true: Path, folder: Path, asked: Any
) -> None:
    """However far it had gone: nothing bounded its own rows together with the lost ones."""
    went_on(folder, asked, rounds=8)
    before, _ = look(folder)
    left, cap = room(before), before.cap
    assert left is not None
    assert cap is not None
    assert head(folder).rows > head(true).rows
    told(folder, head(true))
    write_off(folder, **SIGNED)
    with Ledger.open(folder) as ledger:
        source = ledger.source("ward", IDS)
        own = cap.budget - left
        assert own > 0.01
        assert ledger.epsilon(source).value == pytest.approx(3.0 + own, rel=1e-9)
        ledger.amend(BudgetPolicy(epsilon=3.0 + own, delta=1e-5), **SIGNED)
        with pytest.raises(BudgetError):
            asked.reserve(ledger, source, run="new")
        ledger.amend(BudgetPolicy(epsilon=9.0, delta=1e-5), **SIGNED)
        asked.reserve(ledger, source, run="new")
        with pytest.raises(PolicyError, match="does not join a run again"):
            asked.reserve(ledger, source, 30)
    assert verify(folder).head.epoch == 1


def test_who_knows_that_it_went_on_says_so(true: Path, folder: Path, asked: Any) -> None:
    """Without peers nobody else can tell."""
    went_on(folder, asked)
    shutil.copytree(folder, folder.with_name("plain"))
    write_off(folder.with_name("plain"), **SIGNED)
    assert epsilon(folder.with_name("plain")) == pytest.approx(3.0, rel=1e-12)
    write_off(folder, **SIGNED, went_on=True)
    assert epsilon(folder) > 3.003


def test_no_later_write_off_takes_anything_back(true: Path, folder: Path, asked: Any) -> None:
    """Neither after one beside the cap nor after two ways were joined."""
    went_on(folder, asked)
    joined = folder.with_name("joined")
    shutil.copytree(folder, joined)
    replay(joined, true)
    write_off(folder, **SIGNED, went_on=True)
    before = epsilon(folder)
    for of in (folder, joined):
        write_off(of, **SIGNED)
    assert epsilon(folder) == before
    assert epsilon(joined) > 3.005


def test_a_cap_that_the_lost_rows_had_raised_is_written_off(true: Path, folder: Path, asked: Any) -> None:
    """As somebody knows who raised it."""
    write_off(folder, **SIGNED, epsilon=5.0)
    assert epsilon(folder) == pytest.approx(5.0, rel=1e-9)
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="a cap that was raised"):
            write_off(folder, **SIGNED, epsilon=wrong)


def test_a_write_off_of_an_earlier_version_is_read_as_it_was() -> None:
    """Its row had neither field."""
    row = WrittenOff(row=4, at=1, who="Dr Test", why="lost")
    fields = json.loads(canonical(row))
    assert (fields.pop("beside"), fields.pop("epsilon")) == (False, None)
    assert WrittenOff.model_validate_json(json.dumps(fields)) == row
