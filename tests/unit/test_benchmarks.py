"""The figures that the quality benchmark reports, on made-up answers."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from wardround.core.plan import DataContract
from wardround.simulations.rows import Rows
from wardround.training.examples import Example

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "quality.py"


@pytest.fixture(scope="module")
def monkeypatched() -> Iterator[pytest.MonkeyPatch]:
    """For all tests of the module."""
    with pytest.MonkeyPatch.context() as patched:
        yield patched


@pytest.fixture(scope="module")
def quality(monkeypatched: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it runs nothing by being imported."""
    spec = importlib.util.spec_from_file_location("quality_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatched.syspath_prepend(SCRIPT.parent)  # as for a script that is run
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_classes_with_few_test_rows_do_not_count(quality: ModuleType) -> None:
    """Thirty rows of a class count, twenty-nine do not: a wrong rare class costs nothing."""
    truth = np.array([0] * 40 + [1] * 30 + [2] * 29)
    right_but_rare = {"guesses": [0] * 40 + [1] * 30 + [2] * 20 + [3] * 9}
    assert quality.figure_of(right_but_rare, truth) == 1.0


def test_the_figure_is_that_of_scikit_learn(quality: ModuleType) -> None:
    """Macro-F1 of random guesses over four classes, one of which is never guessed."""
    rng = np.random.default_rng(0)
    truth, guesses = rng.integers(0, 4, 400), rng.integers(0, 3, 400)
    expected = f1_score(truth, guesses, average="macro", zero_division=0)
    assert quality.figure_of({"guesses": guesses.tolist()}, truth) == pytest.approx(expected, abs=1e-12)


def test_equal_answers_have_the_ratio_one_and_no_spread(quality: ModuleType) -> None:
    """A paired bootstrap of a record against itself."""
    truth = np.array([0, 1] * 50)
    record = {"guesses": [0, 1, 1, 0] * 25}
    assert quality.ratio(record, record, truth) == [1.0, 1.0, 1.0]


def test_methods_are_compared_over_the_seeds_that_both_have(quality: ModuleType) -> None:
    """Equal answers: the ratio one; a worse second seed lowers the mean alone; a third seed has no pair."""
    table = importlib.import_module("_aggregation_table")
    truth = np.array([0, 1] * 50)
    right, worse = [0, 1] * 50, [0, 1] * 40 + [1, 0] * 10

    def line(arm: str, seed: int, guesses: list[int]) -> dict[str, Any]:
        own = {"kind": "full", "set": "case", "arm": arm, "rate": 0.1, "seed": seed}
        return {**own, "values": {}, "guesses": guesses}

    records = [line("a", 0, right), line("a", 1, worse), line("b", 0, right), line("b", 1, right)]
    records.append(line("a", 2, right))
    (found,) = table.compared(records, "case", "b", truth)
    assert "| 0.900 [0.8" in found
    assert found.endswith("| 1.000, 0.800 |")
    (same,) = table.compared([line("a", 0, worse), line("b", 0, worse)], "case", "b", truth)
    assert same.endswith("| 1.000 [1.000, 1.000] | 1.000 |")


def test_a_better_federation_is_above_one_in_both_kinds_of_figure(quality: ModuleType) -> None:
    """Higher F1, or fewer bits a byte; the interval holds the ratio."""
    truth = np.array([0, 1] * 50)
    better, worse = {"guesses": [0, 1] * 50}, {"guesses": [0, 1] * 30 + [1, 0] * 20}
    value, low, high = quality.ratio(better, worse, truth)
    assert 1.0 < low < value < high
    few, many = ({"nats": [nats] * 10, "bytes": [8] * 10} for nats in (math.log(2) * 4, math.log(2) * 8))
    assert quality.figure_of(few, truth) == pytest.approx(0.5)
    assert quality.ratio(few, many, truth)[0] == pytest.approx(2.0)


def test_tuning_holds_out_whole_units_of_every_site_and_no_test_row(quality: ModuleType) -> None:
    """A tenth of the units leave the sites and take the place of the test rows."""
    sites = {
        site: [Example(n, {}, id=f"{site}{n}", unit=f"u{n % 40}") for n in range(80)] for site in ("a", "b")
    }
    rows = Rows(DataContract(columns={}), sites, [Example(0, {}, id="test", unit="t")], {"a": []})
    tuned = quality.without_a_tenth(rows)
    held = {example.unit for example in tuned.test}
    assert len(held) == 4
    assert not held & {example.unit for site in tuned.sites.values() for example in site}
    assert sum(map(len, tuned.sites.values())) + len(tuned.test) == 160
    assert "test" not in {example.id for example in tuned.test}
    assert tuned.site_tests == {}


def test_a_set_is_run_once_and_its_table_is_printed(
    quality: ModuleType,
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every arm of one seed on a tiny model: a line each, none twice; another setting is another line."""
    settings = [
        "experiment=demo", f"model.path={tiny_bert}", "model.digest=null", "rounds.rounds=1",
        "local.epochs=null", "local.steps=1", "data.limit=60", "machine.threads=1",
    ]  # fmt: skip
    monkeypatch.setattr(quality, "FOLDER", tmp_path)
    monkeypatch.setattr(quality, "SETS", {"tiny": settings})
    monkeypatch.setattr(quality, "PLAIN", {"tiny": []})
    words = ["federated", "centralised", "local", "base"]
    quality.run("tiny", [0], words)
    first = quality.read("quality")
    assert [record["arm"] for record in first][:3] == ["base", "federated", "centralised"]
    assert len(first) == 7
    quality.run("tiny", [0], words)
    assert quality.read("quality") == first
    settings.append("local.batch_size=4")
    quality.run("tiny", [0], ["federated"])
    assert [record["arm"] for record in quality.read("quality")[7:]] == ["federated"]
    capsys.readouterr()
    quality.table()
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("| tiny | 0 |")).split("|")
    federated, centralised, local, base, ratio = (cell.strip() for cell in row[3:8])
    assert re.fullmatch(r"\d\.\d{3}", federated)  # trained again under the present settings
    assert all(cell.endswith("†") for cell in (centralised, local, base))
    assert ratio == ""  # two settings are not compared
    assert "† of another plan" in shown


def test_a_line_without_a_plan_is_an_older_one(quality: ModuleType) -> None:
    """The last line of the present plan counts, wherever it stands; an empty digest is no plan of anybody."""

    def line(plan: str, n: int) -> dict[str, Any]:
        return {"set": "s", "seed": 0, "arm": "federated", "plan": plan, "n": n}

    found = quality.lines_of([line("", 0), line("now", 1), line("then", 2)], "s", 0, {"federated": "now"})
    assert (found["federated"].record["n"], found["federated"].mark) == (1, "")
    found = quality.lines_of([line("", 0)], "s", 0, {"federated": "now", "other": ""})
    assert found["federated"].mark == "†"
    assert quality.lines_of([line("now", 0)], "s", 1, {"federated": "now"}) == {}


def test_a_borrowed_centralised_is_marked(
    quality: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was trained on the rows of the other split: an asterisk at figure and ratio, and a foot line."""
    truth = np.array([0, 1] * 50)
    monkeypatch.setattr(quality, "FOLDER", tmp_path)
    monkeypatch.setattr(quality, "SETS", {"x_0.5": [], "x_0.1": []})
    plans = {"federated": "f", "centralised": "c"}
    monkeypatch.setattr(quality.Present, "of", staticmethod(lambda *_: quality.Present(plans, truth)))
    answer = {"guesses": [0, 1] * 50}
    quality.append("quality", "x_0.5", 0, "federated", {"plan": "f", **answer})
    quality.append("quality", "x_0.5", 0, "centralised", {"plan": "c", **answer})
    quality.append("quality", "x_0.1", 0, "federated", {"plan": "f", **answer})
    quality.table()
    shown = capsys.readouterr().out
    assert "| x_0.5 | 0 | 1.000 | 1.000 |  |  | 1.000 [1.000, 1.000] |" in shown
    assert "| x_0.1 | 0 | 1.000 | 1.000* |  |  | 1.000 [1.000, 1.000]* |" in shown
    assert "* centralised on the same rows" in shown
    assert "†" not in shown
