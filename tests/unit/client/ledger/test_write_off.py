"""A ledger whose rows are lost for good: its cap is written off, and what is granted anew counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from restored_ledger import IDS, SIGNED, last, restore

from wardround.client.ledger.heads import Head
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.repair import write_off
from wardround.client.ledger.row_file import FILE
from wardround.core.errors import (
    BudgetError,
    ConfigError,
    PolicyError,
    RolledBackError,
    StorageError,
)
from wardround.privacy.accounting.mechanisms import Gaussian


def test_after_a_write_off_nothing_fits_but_what_is_granted_anew(
    backup: Path, folder: Path, policy: BudgetPolicy, asked: Any
) -> None:
    """For every unit, known or not, declared or not; who and why is on record."""
    seen = last(folder)
    restore(folder, backup)
    write_off(folder, **SIGNED, runs=["a run of the lost rows"])
    with Ledger.open(folder) as ledger:
        ledger.require_head([seen])
        ward = ledger.source("ward", IDS)
        new = ledger.source("new", ["z"])
        ledger.declare_disjoint(new, **SIGNED)
        for source in (ward, new):
            assert ledger.epsilon(source).value == pytest.approx(3.0, rel=1e-12)
            with pytest.raises(BudgetError, match=r"100\.0% before it"):
                asked.reserve(ledger, source, run="new run", mechanism=Gaussian(sigma=1e4))
        ledger.amend(BudgetPolicy(epsilon=4.0, delta=1e-5), **SIGNED)
        assert asked.exhaust(ledger, ward) > 0
        assert 3 < ledger.epsilon(ward).value <= 4
        note = ledger.book.notes[0]
        assert (note.kind, note.who, note.why) == ("write_off", *SIGNED.values())
        assert 0 < ledger.epsilon(ward, run="run").value < 1, "what a run cost by itself is still known"


def test_after_a_write_off_no_earlier_run_is_joined_again(backup: Path, folder: Path, asked: Any) -> None:
    """Neither those of the rows that are left, nor those that peers say."""
    write_off(folder, **SIGNED, runs=["known by peers"])
    with Ledger.open(folder) as ledger:
        ledger.amend(BudgetPolicy(epsilon=5.0, delta=1e-5), **SIGNED)
        source = ledger.source("ward", IDS)
        for run, round in (("run", 3), ("run", 9), ("known by peers", 1)):
            with pytest.raises(PolicyError, match="does not join a run again"):
                asked.reserve(ledger, source, round, run=run)
        with pytest.raises(PolicyError, match="does not join"):
            ledger.seal(run="run", round=2, stage=0, digest="22" * 32)
        ledger.seal(run="run", round=3, stage=0, digest="11" * 32)  # the same bytes may still be sent again
        asked.reserve(ledger, source, run="new")


def test_a_write_off_covers_the_lost_branch_and_nothing_later(backup: Path, folder: Path, asked: Any) -> None:
    """Heads of the rows that were lost pass from then on; a second loss is noticed again."""
    lost = last(folder)
    restore(folder, backup)
    common = last(folder)
    write_off(folder, **SIGNED)
    with Ledger.open(folder) as ledger:
        ledger.amend(BudgetPolicy(epsilon=9.0, delta=1e-5), **SIGNED)
        asked.reserve(ledger, ledger.source("ward", IDS), run="new")
        ledger.require_head([common, lost, Head(0, lost.rows + 100, "33" * 28)])
        later = ledger.head()
        assert later.epoch == 1
        with pytest.raises(RolledBackError, match="two ways"):
            ledger.require_head([Head(0, common.rows, "33" * 28)])
    restore(folder, backup)
    with Ledger.open(folder) as ledger, pytest.raises(RolledBackError, match="older copy"):
        ledger.require_head([later])
    write_off(folder, **SIGNED)
    with pytest.raises(RolledBackError):
        Ledger.open(folder)
    write_off(folder, **SIGNED)
    Ledger.open(folder).close()


def test_the_rows_of_a_mirror_that_lost_are_kept_aside(
    backup: Path, folder: Path, mirror: Path, asked: Any
) -> None:
    """Under another name; the mirror then follows the ledger again."""
    whole = (mirror / FILE).read_bytes()
    restore(folder, backup)
    write_off(folder, **SIGNED, mirror=mirror)
    assert (mirror / "lost-at-row-3.jsonl").read_bytes() == whole
    Ledger.open(folder, mirror=mirror).close()
    assert (mirror / FILE).read_bytes() == (folder / FILE).read_bytes()
    write_off(folder, **SIGNED, mirror=mirror)
    assert len(list(mirror.glob("lost-*"))) == 1


def test_without_a_cap_a_write_off_is_infinite(tmp_path: Path, asked: Any) -> None:
    """Nothing bounds what the lost rows said, also under a cap that comes later."""
    folder = tmp_path / "open"
    with Ledger.create(folder, BudgetPolicy(epsilon=None, delta=1e-5), units=1000) as ledger:
        asked.reserve(ledger, ledger.source("ward", IDS))
    write_off(folder, **SIGNED)
    with Ledger.open(folder) as ledger:
        source = ledger.source("ward", IDS)
        assert ledger.epsilon(source).value == float("inf")
        ledger.amend(BudgetPolicy(epsilon=3.0, delta=1e-5), **SIGNED)
        with pytest.raises(BudgetError, match="nothing bounds their account"):
            asked.reserve(ledger, source, run="new")


def test_nobody_writes_off_without_a_name_or_over_a_torn_line(backup: Path, folder: Path) -> None:
    """One loss after the other."""
    with pytest.raises(ConfigError, match="who does this and why"):
        write_off(folder, who="Dr Test", why=" ")
    with (folder / FILE).open("ab") as file:
        file.write(b"{")
    with pytest.raises(StorageError, match=r"(?s)torn line.*ledger mend"):
        write_off(folder, **SIGNED)


def test_a_released_unit_stays_released_after_a_write_off(make: Any, asked: Any) -> None:
    """Infinity is more than the cap."""
    ledger = make(3.0, allow_release=True)
    source = ledger.source("ward", IDS)
    ledger.release_without_privacy(source, run="open", plan=asked.PLAN)
    folder = ledger._store.folder
    ledger.close()
    write_off(folder, **SIGNED)
    with Ledger.open(folder) as again:
        assert again.epsilon(again.source("ward", IDS)).value == float("inf")
