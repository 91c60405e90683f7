"""What partitions refuse, natural and listed sites, and the published splits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, DataError
from wardround.core.plan import DataContract
from wardround.simulations.partitions import PARTITIONS
from wardround.training.examples import Example, read_examples
from wardround.training.source_spec import SourceSpec


def split(name: str, examples: list[Example], **options: Any) -> dict[str, list[int]]:
    """Sites of a partition, its options checked as a configuration's are."""
    partition = PARTITIONS.get(name)
    return partition.split(examples, parse_options(partition.Options, options, "options"), seed=0)


def rows(*sites: str, label: int | None = 0) -> list[Example]:
    """One example a site given."""
    return [Example(i, {}, label=label, id=f"r{i}", unit=f"p{i}", site=site) for i, site in enumerate(sites)]


def test_every_partition_is_found_by_its_name() -> None:
    """The shared module is none."""
    assert PARTITIONS.names() == ["dirichlet", "iid", "listed", "natural", "quantity"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iid", {"site": 3}),
        ("iid", {"sites": 0}),
        ("iid", {"alpha": 1.0}),
        ("dirichlet", {"alpha": 0}),
        ("dirichlet", {"alpha": float("inf")}),
        ("quantity", {"by": "patient"}),
        ("natural", {"sites": 3}),
        ("listed", {}),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any]) -> None:
    """Unknown keys and impossible values, before any row is moved."""
    with pytest.raises(ConfigError, match="faults in the"):
        split(name, rows("a"), **options)


def test_natural_sites_are_those_of_the_rows() -> None:
    """Sorted by name."""
    assert split("natural", rows("b", "a", "b")) == {"a": [1], "b": [0, 2]}


def test_natural_refuses_rows_without_site_and_small_sites() -> None:
    """A small site is never dropped in silence."""
    with pytest.raises(DataError, match=r"set data\.site_column"):
        split("natural", rows("a", ""))
    with pytest.raises(DataError, match=r"(?s)1 of 2 sites have too few rows.*found: b 1.*at least 2 each"):
        split("natural", rows("a", "a", "b"), least_rows=2)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "quantity"])
def test_too_few_units_are_refused(name: str) -> None:
    """Whole units cannot fill more sites than there are units; rows could."""
    examples = [Example(i, {}, label=0, unit="one" if i < 9 else "two") for i in range(10)]
    with pytest.raises(DataError, match=r"(?s)10 rows of 2 units.*at least 3 units.*by: row"):
        split(name, examples, sites=3)
    assert len(split(name, examples, sites=3, by="row")) == 3
    with pytest.raises(DataError, match="at least 3 units and 12 rows"):
        split(name, examples, sites=3, by="row", least_rows=4)


def test_iid_refuses_what_large_units_do_not_fill() -> None:
    """Ten rows suffice for two sites of five, but not if nine of them are one patient's."""
    examples = [Example(i, {}, label=0, unit="one" if i < 9 else "two") for i in range(10)]
    with pytest.raises(DataError, match=r"(?s)whole units do not give every site 5 rows.*found: 1"):
        split("iid", examples, sites=2, least_rows=5)


@pytest.mark.parametrize("name", ["dirichlet", "quantity"])
def test_a_hopeless_draw_ends_with_an_error(name: str) -> None:
    """Equal sizes to the row never come out at a small alpha."""
    with pytest.raises(DataError, match=r"(?s)no draw of .* gave every site 10 rows.*raise alpha"):
        split(name, rows(*"a" * 100), sites=10, alpha=0.01, least_rows=10)


def test_label_skew_needs_labels() -> None:
    """A causal LM has none."""
    with pytest.raises(DataError, match="needs every row's label"):
        split("dirichlet", rows("a", "a", label=None), sites=2)


def test_rows_without_a_unit_are_units_of_their_own() -> None:
    """Examples made by hand need not name one."""
    examples = [Example(i, {}, label=0) for i in range(6)]
    assert {len(found) for found in split("iid", examples, sites=3).values()} == {2}


@pytest.mark.parametrize("zipped", [False, True])
def test_listed_rows_go_where_the_file_says(tmp_path: Path, zipped: bool) -> None:
    """Plain or gzipped, by its content; ids of rows that are not there are passed over."""
    path = tmp_path / "split"
    raw = json.dumps({"north": ["r1", "gone"], "south": ["r2", "r0"], "empty": ["lost"]}).encode()
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    assert split("listed", rows("", "", ""), path=str(path)) == {"empty": [], "north": [1], "south": [0, 2]}


def test_listed_ids_may_be_numbers(tmp_path: Path) -> None:
    """As ids in rows may."""
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"a": [0, 1], "b": ["2"]}), encoding="utf-8")
    examples = [Example(i, {}, id=str(i)) for i in range(3)]
    assert split("listed", examples, path=str(path)) == {"a": [0, 1], "b": [2]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": ["r0"]}', r"(?s)does not list every row.*1 of 2.*`where`"),
        (b'{"a": ["x", "y"]}', r"(?s)does not list every row.*2 of 2.*data\.id_column"),
        (b'{"a": ["r0", "r1"], "b": ["r1"]}', r"(?s)a row at two sites.*a and b"),
        (b'["r0", "r1"]', "is not a split"),
        (b'{"a": "r0"}', "is not a split"),
        (b'{"a": [["r0"]]}', "is not a split"),
        (b"a: r0", "cannot be read"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
        (gzip.compress(b'{"a": ["r0", "r1"]}', mtime=0)[:-12], "cannot be read"),
        (b"\xff\xfe{", "cannot be read"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """Missing rows, double rows, and files that are no split."""
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        split("listed", rows("", ""), path=str(path))


def test_a_missing_split_is_refused(tmp_path: Path) -> None:
    """With the key to correct."""
    with pytest.raises(DataError, match=r"(?s)does not exist.*partition\.options\.path"):
        split("listed", rows(""), path=str(tmp_path / "none.json"))


def test_the_published_splits_fit_the_real_rows(shared_data: Path) -> None:
    """Ten sites hold every row; that by unit keeps each abstract at one site, that by row does not."""
    data = DataContract(
        columns={"text": "text", "label": "label"},
        labels=("background", "objective", "methods", "results", "conclusions"),
        id_column="id",
        unit_column="pmid",
    )
    source = SourceSpec(path=str(shared_data / "data/pqa_sections/train.jsonl.gz"))
    examples = list(read_examples(source, data, {"text": True, "label": True}).examples)
    assert len(examples) == 6768
    homes = {}
    for kind in ("unit", "dir0.5"):
        path = shared_data / f"data/splits/pqa_sections.{kind}.n10.seed0.json.gz"
        found = split("listed", examples, path=str(path))
        assert sorted(index for indices in found.values() for index in indices) == list(range(6768))
        homes[kind] = len({(examples[i].unit, site) for site, indices in found.items() for i in indices})
    assert homes["unit"] == len({example.unit for example in examples}) == 617
    assert homes["dir0.5"] > 2 * 617


def test_the_natural_sites_of_the_real_rows(shared_data: Path) -> None:
    """Nine institutes; drawn by disease, none lies at two sites; six rows that name none are left out."""
    data = DataContract(columns={"text": "answer"}, id_column="id", unit_column="focus")
    source = SourceSpec(path=str(shared_data / "data/medquad/train.jsonl.gz"))
    found = read_examples(source, data, {"text": True}, site_column="site")
    assert found.rows_read == 5258
    assert found.quarantine_counts() == {"empty:unit": 6}
    examples = list(found.examples)
    natural = split("natural", examples)
    assert len(natural) == 9
    assert (min(map(len, natural.values())), max(map(len, natural.values()))) == (186, 790)
    drawn = split("iid", examples, sites=9)
    assert len({(examples[i].unit, site) for site, rows in drawn.items() for i in rows}) == len(
        {example.unit for example in examples}
    )
