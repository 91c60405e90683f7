"""The shipped table is the public one, with its licence, and its configuration reads every row."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from wardround.runtime.locations import locate
from wardround.simulations.config import RunConfig
from wardround.simulations.partitions import PARTITIONS
from wardround.simulations.rows import contract_of
from wardround.training.examples import Example, read_examples
from wardround.training.plan_config import DataConfig

DEMO = resources.files("wardround.simulations.demo")
FEATURES = [
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca",
    "thal",
]  # fmt: skip
ROLES = {"text": True, "text_pair": False, "label": True}


def table() -> list[dict[str, str]]:
    """The shipped rows."""
    return list(csv.DictReader(DEMO.joinpath("heart.csv").read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def config() -> DataConfig:
    """`data: heart` as it composes."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("config", overrides=["data=heart"]), resolve=True)
    assert composed["partition"]["kind"] == "natural"
    return RunConfig.parse(composed).data


@pytest.fixture(scope="module")
def examples(config: DataConfig) -> dict[str, list[Example]]:
    """Training and test rows through that configuration."""
    contract = contract_of(config, ROLES)
    assert config.source is not None
    assert config.test is not None
    found = {}
    for name, source in (("train", config.source), ("test", config.test)):
        rows = read_examples(source, contract, ROLES, site_column=config.site_column)
        assert not rows.quarantined
        found[name] = list(rows.examples)
    return found


def test_the_table_is_of_numbers_in_order() -> None:
    """735 rows by site and number; whole numbers without a point, what is missing is empty."""
    rows = table()
    assert list(rows[0]) == ["id", "site", "split", "label", *FEATURES]
    assert len(rows) == 735
    places = [(row["site"], int(row["id"].rpartition("-")[2])) for row in rows]
    assert places == sorted(set(places))
    for row in rows:
        assert row["id"].startswith(row["site"] + "-")
        assert row["label"] in {"0", "1"}
        for name in FEATURES:
            assert row[name] == "" or format(float(row[name]), "g") == row[name], name


def test_the_table_equals_the_public_set(shared_data: Path) -> None:
    """Row by row, value by value."""
    expected = {}
    for split in ("train", "test"):
        with gzip.open(shared_data / f"data/heart/{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                expected[row["id"]] = (row["site"], split, row["label"], row["features"])
    found = {
        row["id"]: (
            row["site"],
            row["split"],
            int(row["label"]),
            {name: float(row[name]) if row[name] else None for name in FEATURES},
        )
        for row in table()
    }
    assert found == expected


def test_the_licence_names_those_who_gave_the_data() -> None:
    """CC BY 4.0 asks for it, and for what was changed."""
    text = DEMO.joinpath("LICENSE.heart.md").read_text(encoding="utf-8")
    for words in ("CC BY 4.0", "Andras Janosi, M.D.", "William Steinbrunn, M.D.", "Matthias Pfisterer, M.D.",
                  "Robert Detrano, M.D., Ph.D.", "Heart Disease", "Changes"):  # fmt: skip
        assert words in text


def test_every_row_becomes_an_example_of_four_hospitals(examples: dict[str, list[Example]]) -> None:
    """552 to train on and 183 to test on; nothing is quarantined, no patient is in both."""
    assert Counter(example.site for example in examples["train"]) == {
        "cleveland": 181, "hungarian": 177, "switzerland": 74, "va": 120,
    }  # fmt: skip
    assert len(examples["test"]) == 183
    assert not {row.unit for row in examples["train"]} & {row.unit for row in examples["test"]}
    natural = PARTITIONS.get("natural")
    assert len(natural.split(examples["train"], natural.Options(), seed=0)) == 4


def test_the_sentence_says_what_is_recorded_and_no_more(examples: dict[str, list[Example]]) -> None:
    """Segments stand for the filled columns; no code, brace or number with an idle point is left."""
    rows = {row["id"]: row for row in table()}
    for example in [*examples["train"], *examples["test"]]:
        text, row = example.roles["text"], rows[example.id]
        assert row["age"] in text
        assert not set(text) & set("{}")
        assert ".0" not in text
        for column, word in (("chol", "cholesterol"), ("trestbps", "blood pressure"), ("ca", "vessels")):
            assert (word in text) == bool(row[column]), (column, text)
        assert len(set(row.values()) - {""}) > 3


def test_the_sentence_tells_patients_apart(config: DataConfig, examples: dict[str, list[Example]]) -> None:
    """Each mapped code has its own word, so that equal sentences mean equal records."""
    assert config.template is not None
    for words in config.template.values.values():
        assert len(set(words.values())) == len(words)
    rows = {row["id"]: tuple(row[name] for name in FEATURES) for row in table()}
    records: dict[str, set[tuple[str, ...]]] = {}
    for example in examples["train"]:
        record = tuple("" if name == "thal" and value == "0" else value for name, value in
                       zip(FEATURES, rows[example.id], strict=True))  # fmt: skip
        records.setdefault(example.roles["text"], set()).add(record)
    assert all(len(found) == 1 for found in records.values())


def test_the_location_is_inside_the_package(config: DataConfig) -> None:
    """So that the demo runs from a wheel in an empty folder."""
    assert config.source is not None
    assert config.source.path.startswith("package://wardround/")
    assert locate(config.source.path).is_file()
