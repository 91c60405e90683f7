"""Laws of reading: what was written comes back, and damage to one line stays with that line."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.training.sources import SOURCES
from wardround.training.sources.contract import BrokenRow, Row

# Everything that is text: controls and line ends as well, lone surrogates not.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CELL = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT


def read(kind: str, content: bytes, **options: Any) -> list[Row | BrokenRow]:
    """Rows of a file with that content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{kind}"
        path.write_bytes(content)
        return list(SOURCES.get(kind).read(path, options))


@settings(deadline=None)
@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), max_size=6), st.sampled_from([",", ";", "\t", "|"]))
def test_a_written_table_comes_back(rows: list[list[str]], delimiter: str) -> None:
    """Any text in any cell, whatever the delimiter; the empty text is None; lines rise."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([["a", "b", "c"], *rows])
    found = read("csv", file.getvalue().encode())
    assert [list(row.values.values()) for row in found if isinstance(row, Row)] == [
        [cell or None for cell in row] for row in rows
    ]
    assert not [row for row in found if isinstance(row, BrokenRow)]
    numbers = [row.number for row in found]
    assert numbers == sorted(set(numbers))


@settings(deadline=None)
@given(st.lists(st.dictionaries(TEXT, CELL, max_size=4), max_size=6), st.booleans())
def test_written_lines_and_documents_come_back(rows: list[dict[str, Any]], escaped: bool) -> None:
    """Escaped or not, as lines and as a list."""
    lines = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
    document = json.dumps(rows, ensure_ascii=escaped)
    expected = [Row(number, row) for number, row in enumerate(rows, start=1)]
    assert read("jsonl", lines.encode()) == expected
    assert read("json", document.encode()) == expected


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_any_bytes_in_a_line_stay_in_that_line(damage: list[bytes]) -> None:
    """Between good lines, whatever stands there: the good ones are read, each with its number."""
    lines = [part.replace(b"\n", b" ") for part in damage]
    content = b"".join(b'{"good": %d}\n' % place + line + b"\n" for place, line in enumerate(lines))
    found = {row.number: row for row in read("jsonl", b'{"good": -1}\n' + content)}
    for place in range(len(lines)):
        number = 2 * place + 2
        assert found[number] == Row(number, {"good": place})


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([b'1,"a', b'"', b'1,"a"b', b"1,\xff", b"1", b"1,2,3", b'"1,2', b"x,y"]), max_size=8
    )
)
def test_damaged_records_take_no_good_row_along(lines: list[bytes]) -> None:
    """Quotes left open or misplaced, bad bytes, too few or too many fields; no line is counted twice."""
    good = b'7,"good"\n'
    content = b"a,b\n" + b"".join(line + b"\n" + good * 3 for line in lines)
    found = read("csv", content)
    numbers = [row.number for row in found]
    assert numbers == sorted(set(numbers))
    whole = [row for row in found if isinstance(row, Row) and row.values == {"a": "7", "b": "good"}]
    assert len(whole) == 3 * len(lines)
