"""Broken rows of JSONL, JSON and CSV: each has its code and its true line, and takes no other row along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import ConfigError, DataError
from wardround.training.sources import SOURCES
from wardround.training.sources.contract import BrokenRow, Row


def read(tmp_path: Path, kind: str, content: bytes, **options: Any) -> list[Row | BrokenRow]:
    """Rows of a file with that content."""
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(content)
    return list(SOURCES.get(kind).read(path, options))


class TestJsonLines:
    """Line by line."""

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"a": 1', "not_json"),
            (b"patient", "not_json"),
            (b'{"a": 1} {"a": 2}', "not_json"),
            (b"[" * 100_000, "not_json"),
            (b'{"a": ' + b"9" * 5000 + b"}", "not_json"),
            (b"[1, 2]", "not_an_object"),
            (b"null", "not_an_object"),
            (b'{"a": "\xff\xfe"}', "not_utf8"),
            (b'{"a": "\\ud83d"}', "not_utf8"),
            (b"   ", "empty_line"),
        ],
    )
    def test_a_broken_line_is_broken_alone(self, tmp_path: Path, line: bytes, reason: str) -> None:
        """With its number; the reason holds nothing of the line."""
        rows = read(tmp_path, "jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
        assert rows == [Row(1, {"a": 1}), BrokenRow(2, reason), Row(3, {"a": 3})]

    def test_empty_lines_at_the_end_are_no_rows(self, tmp_path: Path) -> None:
        """Editors leave them there; in between each one is reported."""
        rows = read(tmp_path, "jsonl", b'\n\n{"a": 1}\n\n{"a": 2}\n\n\n')
        assert [row.number for row in rows if isinstance(row, BrokenRow)] == [1, 2, 4]
        assert [row.number for row in rows if isinstance(row, Row)] == [3, 5]

    def test_windows_and_signed_text_reads_alike(self, tmp_path: Path) -> None:
        """A byte order mark, CRLF, no final line end, whole surrogate pairs."""
        rows = read(tmp_path, "jsonl", b'\xef\xbb\xbf{"a": "x"}\r\n{"a": "\\ud83d\\ude00"}')
        assert rows == [Row(1, {"a": "x"}), Row(2, {"a": "\U0001f600"})]

    def test_nan_is_missing(self, tmp_path: Path) -> None:
        """Python and pandas write a missing number so."""
        assert read(tmp_path, "jsonl", b'{"a": NaN, "b": 1.5}\n') == [Row(1, {"a": None, "b": 1.5})]

    def test_another_encoding_is_an_option(self, tmp_path: Path) -> None:
        """By its name."""
        content = '{"a": "Übelkeit"}\n'.encode("cp1252")
        assert read(tmp_path, "jsonl", content) == [BrokenRow(1, "not_utf8")]
        assert read(tmp_path, "jsonl", content, encoding="cp1252") == [Row(1, {"a": "Übelkeit"})]
        with pytest.raises(DataError, match="utf-9"):
            read(tmp_path, "jsonl", content, encoding="utf-9")

    @pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ("id,a\n1,2\n".encode("utf-16"), "UTF-16"),
            (b"PK\x03\x04rest of a workbook", "Excel"),
            (b"PAR1....PAR1", "Parquet"),
        ],
    )
    def test_other_kinds_of_file_are_recognised(
        self, tmp_path: Path, kind: str, content: bytes, what: str
    ) -> None:
        """What a hospital's office software leaves is named instead of a thousand broken rows."""
        with pytest.raises(DataError, match=what):
            read(tmp_path, kind, content)


class TestJsonDocument:
    """One document."""

    def test_a_list_may_stand_under_a_key(self, tmp_path: Path) -> None:
        """`data`, or the one that is named."""
        assert read(tmp_path, "json", b'{"data": [{"a": 1}]}') == [Row(1, {"a": 1})]
        assert read(tmp_path, "json", b'{"v": 2, "rows": [{"a": 1}]}', key="rows") == [Row(1, {"a": 1})]

    def test_what_is_no_object_is_broken_alone(self, tmp_path: Path) -> None:
        """So is half a surrogate pair."""
        rows = read(tmp_path, "json", b'[{"a": 1}, 7, {"a": "\\ud800"}, {"a": "\xff"}, {"a": null}]')
        assert rows == [
            Row(1, {"a": 1}),
            BrokenRow(2, "not_an_object"),
            BrokenRow(3, "not_utf8"),
            BrokenRow(4, "not_utf8"),
            Row(5, {"a": None}),
        ]

    @pytest.mark.parametrize(
        "content", [b"7", b'"secret"', b"{}", b'{"data": {"secret": 1}}', b"null", b"true"]
    )
    def test_no_list_of_rows_is_an_error(self, tmp_path: Path, content: bytes) -> None:
        """That says what was expected and holds no value."""
        with pytest.raises(DataError, match="no list of rows") as caught:
            read(tmp_path, "json", content)
        assert "secret" not in str(caught.value)

    def test_a_syntax_fault_names_its_line(self, tmp_path: Path) -> None:
        """And lines of objects are told from a broken document."""
        with pytest.raises(DataError, match="line 2"):
            read(tmp_path, "json", b'[{"a": 1},\n {"a": 2]')
        with pytest.raises(DataError, match="kind: jsonl"):
            read(tmp_path, "json", b'{"a": 1}\n{"a": 2}\n')
        with pytest.raises(DataError, match="brackets too deep"):
            read(tmp_path, "json", b"[" * 100_000)


class TestTable:
    """CSV."""

    def test_faults_are_found_where_they_stand(self, tmp_path: Path) -> None:
        """Rows with line breaks in quotes count all their lines; every fault takes its own row only."""
        content = (
            b"id,text,label\n"  # 1
            b'1,"two\r\nlines, ""quoted""",0\n'  # 2 and 3
            b"\n"  # 4
            b'2,"never closed,1\n'  # 5
            b"3,\xff,1\n"  # 6
            b"4,,1\n"  # 7
            b"5,x\n"  # 8
            b"6,x,1,more\n"  # 9
            b'7,"a"b,1\n'  # 10
            b'8,"fine, really",0\n'  # 11
            b"\n\n"
        )
        assert read(tmp_path, "csv", content) == [
            Row(2, {"id": "1", "text": 'two\r\nlines, "quoted"', "label": "0"}),
            BrokenRow(4, "empty_line"),
            BrokenRow(5, "bad_quotes"),
            BrokenRow(6, "not_utf8"),
            Row(7, {"id": "4", "text": None, "label": "1"}),
            BrokenRow(8, "wrong_number_of_fields"),
            BrokenRow(9, "wrong_number_of_fields"),
            BrokenRow(10, "bad_quotes"),
            Row(11, {"id": "8", "text": "fine, really", "label": "0"}),
        ]

    def test_a_quote_that_is_never_closed_loses_one_line(self, tmp_path: Path) -> None:
        """Although a CSV reader would swallow the file behind it."""
        lines = [f"{number},x\n".encode() for number in range(2, 1001)]
        lines[500] = b'502,"x\n'
        rows = read(tmp_path, "csv", b"id,text\n" + b"".join(lines))
        assert [row.number for row in rows if isinstance(row, BrokenRow)] == [502]
        assert [row.number for row in rows] == list(range(2, 1001))

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_the_header_tells_the_delimiter(self, tmp_path: Path, delimiter: str) -> None:
        """Other signs in a quoted name or in the rows do not count."""
        content = f'id{delimiter}"a name, of ; all | signs"{delimiter}label\n1{delimiter}x,;|y{delimiter}0\n'
        if delimiter != "\t":
            content = content.replace("x,;|y", '"x,;|y"')
        (row,) = read(tmp_path, "csv", content.encode())
        assert isinstance(row, Row)
        assert list(row.values.values()) == ["1", "x,;|y", "0"]

    def test_options_overrule(self, tmp_path: Path) -> None:
        """Delimiter, names for a table without a header, quotes that quote nothing."""
        assert read(tmp_path, "csv", b"a;b,c\n1;2,3\n", delimiter=",") == [Row(2, {"a;b": "1;2", "c": "3"})]
        assert read(tmp_path, "csv", b"1,2\n", columns=["a", "b"]) == [Row(1, {"a": "1", "b": "2"})]
        assert read(tmp_path, "csv", b'a,b\n"x,2\n', quote=None) == [Row(2, {"a": '"x', "b": "2"})]
        with pytest.raises(ConfigError, match="delimiter"):
            read(tmp_path, "csv", b"a,b\n", delimiter="::")

    def test_long_fields_are_read_up_to_a_bound(self, tmp_path: Path) -> None:
        """A long note is a row; a field beyond all bounds is a broken one."""
        content = b"id,text\n1," + b"x" * 500_000 + b"\n2," + b"x" * 1_100_000 + b"\n3,y\n"
        rows = read(tmp_path, "csv", content)
        assert [type(row) for row in rows] == [Row, BrokenRow, Row]
        assert rows[1] == BrokenRow(3, "field_too_long")

    def test_a_header_is_cleaned_and_checked(self, tmp_path: Path) -> None:
        """Blanks around names go, a nameless index column gets a name, a double name is refused."""
        assert read(tmp_path, "csv", b"\xef\xbb\xbf, a ,b\n0,1,2\n") == [
            Row(2, {"column_1": "0", "a": "1", "b": "2"})
        ]
        with pytest.raises(DataError, match="twice"):
            read(tmp_path, "csv", b"a,b,a\n1,2,3\n")
        for content in (b"", b"\n1,2\n", b",,\n"):
            with pytest.raises(DataError, match="no header"):
                read(tmp_path, "csv", content)
        with pytest.raises(DataError, match="encoding"):
            read(tmp_path, "csv", "Größe,b\n1,2\n".encode("cp1252"))

    def test_old_line_ends_and_other_encodings(self, tmp_path: Path) -> None:
        """CR alone, CRLF, UTF-16 by name."""
        assert read(tmp_path, "csv", b"a,b\r1,2\r") == [Row(2, {"a": "1", "b": "2"})]
        assert read(tmp_path, "csv", "a,b\r\nä,2\r\n".encode("utf-16"), encoding="utf-16") == [
            Row(2, {"a": "ä", "b": "2"})
        ]


def test_no_message_holds_a_row(tmp_path: Path) -> None:
    """Neither the codes of broken rows nor the errors of broken files."""
    row = "Jane Doe 1950-02-03"
    for kind, content in (
        ("jsonl", f'{{"a": "{row}"\n{row}\n'),
        ("csv", f'a,b\n{row}\n"{row}"x,1\n'),
        ("json", f'[{{"a": "{row}"}}, "{row}"]'),
    ):
        assert row not in json.dumps(
            [row.reason for row in read(tmp_path, kind, content.encode()) if isinstance(row, BrokenRow)]
        )
    with pytest.raises(DataError) as caught:
        read(tmp_path, "json", f'[{{"a": "{row}"'.encode())
    assert row not in str(caught.value)
