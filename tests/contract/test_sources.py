"""What every data source owes its reader, held against each of them, zipped and plain."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sqlite3
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import ConfigError, DataError
from wardround.core.plan import DataContract
from wardround.training.data_check import check_source
from wardround.training.examples import read_examples
from wardround.training.source_spec import SourceSpec, code, open_source
from wardround.training.sources import SOURCES
from wardround.training.sources.contract import BrokenRow, Row

ROWS: list[dict[str, Any]] = [
    {"id": "a1", "age": 61, "note": "chest pain; no fever", "weight": 71.5},
    {"id": "a2", "age": None, "note": 'said "it\'s worse",\nthen slept', "weight": None},
    {"id": "a3", "age": 40, "note": "Übelkeit, 体温 38.5 °C\u2028next", "weight": 80.0},
    {"id": "a4", "age": 7, "note": None, "weight": 20.25},
]


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(ROWS).schema), buffer)
    return buffer.getvalue()


FILES: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "csv": _csv,
    "json": lambda rows: json.dumps(rows).encode(),
    "jsonl": _jsonl,
    "parquet": _parquet,
}
KINDS = [*(f"{kind}{zipped}" for kind in FILES for zipped in ("", ".gz")), "datasets"]


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file (or folder) of a kind."""
    if kind == "datasets":
        import datasets
        import pyarrow as pa

        table = pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(ROWS).schema)
        datasets.Dataset(table).save_to_disk(folder / "saved", num_proc=None)
        return folder / "saved"
    name, _, zipped = kind.partition(".")
    content = FILES[name](rows)
    path = folder / f"rows.{kind}"
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


@pytest.fixture(autouse=True)
def no_bars() -> None:
    """`datasets` draws a bar while it saves."""
    import datasets

    datasets.disable_progress_bars()


def test_the_list_below_is_every_source() -> None:
    """A new source joins this contract."""
    assert sorted({kind.partition(".")[0] for kind in KINDS}) == SOURCES.names()


@pytest.mark.parametrize("kind", KINDS)
class TestEverySource:
    """The contract."""

    def test_equal_tables_read_alike(self, kind: str, tmp_path: Path) -> None:
        """The ending chooses the source; values agree as text; an empty one is None or absent."""
        rows = list(open_source(SourceSpec(path=str(write(tmp_path, kind, ROWS)))))
        assert all(isinstance(row, Row) for row in rows)
        read = [
            {name: code(value) for name, value in row.values.items() if value is not None}
            for row in rows
            if isinstance(row, Row)
        ]
        assert read == [
            {name: code(value) for name, value in row.items() if value is not None} for row in ROWS
        ]

    def test_numbers_rise_from_the_first_row(self, kind: str, tmp_path: Path) -> None:
        """Lines in text (a header and a line break in quotes count), rows elsewhere."""
        rows = list(open_source(SourceSpec(path=str(write(tmp_path, kind, ROWS)))))
        assert [row.number for row in rows] == ([2, 3, 5, 6] if kind.startswith("csv") else [1, 2, 3, 4])

    def test_many_rows_keep_their_order(self, kind: str, tmp_path: Path) -> None:
        """Also across the batches that a source reads at a time."""
        many = [{**ROWS[0], "id": f"r{index}"} for index in range(1000)]
        rows = list(open_source(SourceSpec(path=str(write(tmp_path, kind, many)))))
        assert [row.values["id"] for row in rows if isinstance(row, Row)] == [row["id"] for row in many]

    def test_no_rows_is_no_error(self, kind: str, tmp_path: Path) -> None:
        """A site without a row is for the caller to judge."""
        assert list(open_source(SourceSpec(path=str(write(tmp_path, kind, []))))) == []

    def test_a_missing_path_is_named(self, kind: str, tmp_path: Path) -> None:
        """Asked directly, a source says what is not there and what to do."""
        source = SOURCES.get(kind.partition(".")[0])
        with pytest.raises(DataError, match="nowhere") as caught:
            list(source.read(tmp_path / f"nowhere.{kind}", {}))
        assert caught.value.remedy

    def test_the_other_shape_is_refused(self, kind: str, tmp_path: Path) -> None:
        """A folder where a file belongs, a file where a folder belongs."""
        path = tmp_path / "other"
        path.write_bytes(b"{}") if kind == "datasets" else path.mkdir()
        with pytest.raises(DataError) as caught:
            list(SOURCES.get(kind.partition(".")[0]).read(path, {}))
        assert caught.value.remedy

    def test_noise_is_no_rows(self, kind: str, tmp_path: Path) -> None:
        """Bytes of no format end in an error or in broken rows, never in a row or another exception."""
        noise = bytes(range(256)) * 8
        path = write(tmp_path, kind, ROWS)
        for file in path.iterdir() if path.is_dir() else [path]:
            file.write_bytes(noise)
        try:
            rows = list(open_source(SourceSpec(path=str(path))))
        except DataError as error:
            assert error.remedy or error.found  # noqa: PT017 - either way out is right
        else:
            assert rows
            assert all(isinstance(row, BrokenRow) for row in rows)

    def test_an_unknown_option_is_refused(self, kind: str, tmp_path: Path) -> None:
        """By name, before anything is read."""
        with pytest.raises(ConfigError, match="delimeter"):
            list(SOURCES.get(kind.partition(".")[0]).read(tmp_path / "nowhere", {"delimeter": ";"}))

    def test_where_filters_by_text(self, kind: str, tmp_path: Path) -> None:
        """61 and "61" are one, whatever the format made of it."""
        path = str(write(tmp_path, kind, ROWS))
        rows = list(open_source(SourceSpec(path=path, where={"age": ["61", "7"], "weight": "71.5"})))
        assert [row.values["id"] for row in rows if isinstance(row, Row)] == ["a1"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith(".gz")])
class TestEveryZippedFile:
    """gz, on top."""

    def test_a_cut_file_is_an_error(self, kind: str, tmp_path: Path) -> None:
        """Half a download never passes for the whole."""
        path = write(tmp_path, kind, [{**ROWS[0], "id": f"{index:x}" * 9} for index in range(3000)])
        path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
        with pytest.raises(DataError, match="unzipped"):
            list(open_source(SourceSpec(path=str(path))))

    def test_a_damaged_file_is_an_error(self, kind: str, tmp_path: Path) -> None:
        """Bytes turned over in the middle, wherever the unzipping notices."""
        path = write(tmp_path, kind, [{**ROWS[0], "id": f"{index:x}" * 9} for index in range(3000)])
        whole = path.read_bytes()
        # Behind the gzip header no block begins with set bits; in the middle only the checksum may tell.
        for place in (10, len(whole) // 2):
            content = bytearray(whole)
            content[place : place + 64] = bytes(byte ^ 0xFF for byte in whole[place : place + 64])
            content[10] = 0xFF if place == 10 else content[10]
            path.write_bytes(content)
            with pytest.raises(DataError, match="unzipped"):
                list(open_source(SourceSpec(path=str(path))))

    def test_an_unzipped_file_of_that_name_is_refused(self, kind: str, tmp_path: Path) -> None:
        """The remedy says to drop the ending."""
        path = write(tmp_path, kind, ROWS)
        path.write_bytes(gzip.decompress(path.read_bytes()))
        with pytest.raises(DataError, match=r"drop the ending \.gz"):
            list(open_source(SourceSpec(path=str(path))))

    def test_a_zipped_file_without_the_ending_is_read(self, kind: str, tmp_path: Path) -> None:
        """What the first bytes say counts."""
        path = write(tmp_path, kind, ROWS)
        bare = path.rename(tmp_path / path.name.removesuffix(".gz"))
        assert len(list(open_source(SourceSpec(path=str(bare))))) == len(ROWS)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "jsonl.gz"])
def test_text_is_streamed(kind: str, tmp_path: Path) -> None:
    """The first row is there before the rest is looked at: memory does not grow with the file."""
    import tracemalloc

    path = write(tmp_path, kind, [{**ROWS[0], "note": "x" * 1000}] * 20_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_source(SourceSpec(path=str(path)))) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000  # the file holds 20 MB


@pytest.mark.parametrize("name", ["heart", "medquad", "pqa_sections"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_real_sets_read_whole(name: str, part: str, shared_data: Path) -> None:
    """No row of the real sets is broken."""
    path = shared_data / "data" / name / f"{part}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        expected = [json.loads(line) for line in lines]
    rows = list(open_source(SourceSpec(path=str(path))))
    assert [row.values for row in rows if isinstance(row, Row)] == expected


class WardDatabase:
    """A source that reads no files: its place is a connection, `sqlite://PATH`, and only it knows that."""

    suffixes: tuple[str, ...] = ()

    def read(self, path: str, options: dict[str, Any]) -> Iterator[Row | BrokenRow]:
        """Rows of the query in the options."""
        scheme, _, file = path.partition("://")
        if scheme != "sqlite" or not Path(file).is_file():
            raise DataError("there is no such database", remedy="name it as sqlite://PATH")
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.row_factory = sqlite3.Row
            for number, row in enumerate(database.execute(options["query"]), start=1):
                yield Row(number, dict(row))


class TestASourceThatIsNoFile:
    """SQL and FHIR come later, each as one new file: here one that is registered from outside."""

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """The source under the name `ward_database`, and a database that it reads."""
        info = tmp_path / "ward_database-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ward-database\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[wardround.sources]\nward_database = ward_database_source:SOURCE\n"
        )
        module: Any = types.ModuleType("ward_database_source")
        module.SOURCE = WardDatabase()
        monkeypatch.setitem(sys.modules, "ward_database_source", module)
        monkeypatch.syspath_prepend(tmp_path)
        with contextlib.closing(sqlite3.connect(tmp_path / "ward.db")) as database, database:
            database.execute("create table notes (note text, grade text)")
            database.executemany("insert into notes values (?, ?)", [("cough", "mild"), ("sepsis", "severe")])
        return f"sqlite://{tmp_path / 'ward.db'}"

    def test_its_kind_hands_it_the_place_as_it_stands(self, place: str) -> None:
        """No path is made of it, and rows come out as from any source, the filter included."""
        spec = SourceSpec(path=place, kind="ward_database", options={"query": "select * from notes"})
        assert [row.values for row in open_source(spec) if isinstance(row, Row)] == [
            {"note": "cough", "grade": "mild"},
            {"note": "sepsis", "grade": "severe"},
        ]
        filtered = spec.model_copy(update={"where": {"grade": "severe"}})
        assert [row.number for row in open_source(filtered)] == [2]

    def test_it_becomes_examples_and_a_report(self, place: str) -> None:
        """What reads examples and what checks a source know nothing of where rows come from."""
        spec = SourceSpec(path=place, kind="ward_database", options={"query": "select * from notes"})
        data = DataContract(columns={"text": "note", "label": "grade"}, labels=("mild", "severe"))
        examples = read_examples(spec, data, {"text": True, "label": True}).examples
        found = [(example.roles["text"], example.label) for example in examples]
        assert found == [("cough", 0), ("sepsis", 1)]
        assert check_source(spec, data).labels == {"mild": 1, "severe": 1}

    def test_its_own_errors_arrive(self, place: str) -> None:
        """It says itself what is wrong with a place."""
        spec = SourceSpec(path=f"{place}.gone", kind="ward_database", options={"query": ""})
        with pytest.raises(DataError, match="no such database"):
            list(open_source(spec))

    def test_without_its_kind_the_place_is_refused(self, place: str) -> None:
        """Nothing else can tell whose place it is, and the message says what would."""
        with pytest.raises(ConfigError, match="scheme 'sqlite'") as caught:
            open_source(SourceSpec(path=place))
        assert "kind" in str(caught.value.remedy)

    def test_a_source_of_files_takes_no_such_place(self, place: str) -> None:
        """`kind` alone turns no address into a file."""
        with pytest.raises(ConfigError, match="scheme 'sqlite'"):
            open_source(SourceSpec(path=place, kind="csv"))
