"""A source that changes while a run goes on: said at the site, and what was left of a round is not used."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from federation import Federation
from offers import COUNTS, RUN, codes, node, offer, own_rows

from wardround.client.checkpoints import RoundPlace
from wardround.client.site import Site


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Three sites' folders, and a plan in `plan`."""
    federation = Federation.make(tmp_path_factory.mktemp("rows"), tiny_bert, COUNTS | {"basel": 20})
    federation.plan("plan")
    return federation


@pytest.fixture
def federation(made: Federation, tmp_path: Path) -> Federation:
    """A copy that a test may spoil, with rows of its own for basel."""
    found = made.copied(tmp_path / "practice")
    own_rows(found, tmp_path)
    return found


def served(federation: Federation) -> Site:
    """Basel's site as a worker that started now has it."""
    site = node(federation).get((RUN, "basel"))
    assert site is not None
    return site


def test_rows_that_changed_are_said_once_and_the_run_goes_on(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that is gone, one that is mended, one more: by numbers alone, and only at the site."""
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    first = served(federation)
    note = federation.practice.sites["basel"].path / "runs" / RUN / "rows.json"
    assert json.loads(note.read_text())["training"] == len(first.training)
    with caplog.at_level(logging.WARNING):
        assert served(federation).rows == first.rows
    assert not caplog.records
    file = tmp_path / "basel.jsonl"
    lines = file.read_text().splitlines()
    mended = json.dumps(json.loads(lines[3]) | {"note": "kanarienvogel"})
    for changed in (lines[:-2], [*lines[:3], mended, *lines[4:-2]]):
        file.write_text("\n".join(changed) + "\n")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found, again = served(federation), served(federation)
        assert found.rows == again.rows != first.rows
        assert [record for record in caplog.records if "rows have changed" in record.getMessage()] != []
        assert len(caplog.records) == 1, "once"
        assert "kanarienvogel" not in caplog.text + note.read_text()


def test_a_round_that_was_left_begins_anew_over_other_rows(federation: Federation, tmp_path: Path) -> None:
    """Its batches were drawn over rows by their place."""
    node(federation).answer(offer(federation))
    first = served(federation)
    place = RoundPlace(1, "00" * 32, first.rows, first.bench.layout)
    file = tmp_path / "basel.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], *reversed(lines[3:])]) + "\n")
    second = served(federation)
    assert len(second.training) == len(first.training)
    assert RoundPlace(1, "00" * 32, second.rows, second.bench.layout) != place
