"""`wardround site data add`: a plan's columns meet the site's own, and no value of a row is ever shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from federation import Federation

from wardround.client.accepted import RunFolders
from wardround.client.local_data import read_rows
from wardround.client.site_settings import STARTER, read_site_settings
from wardround.runtime.plan_folder import SIGNED, read_plan
from wardround.simulations.practice.rows import practice_rows
from wardround.training.source_spec import SourceSpec

RUN = "20261126-120000-0a1b2c3d"
CANARY = "kanarienvogel"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def federation(made: Federation, tmp_path: Path) -> Federation:
    """A copy whose site `basel` has a commented site.yaml, and was offered the plan."""
    copy = made.copied(tmp_path / "practice")
    own = copy.practice.sites["basel"].path
    (own / "site.yaml").write_text(STARTER.replace("least_units: 20", "least_units: 2"))
    runs = RunFolders(own / "runs")
    runs.offered(RUN, (copy.practice.folder / "plan" / SIGNED).read_bytes())
    return copy


def rows(path: Path, names: dict[str, str], **wrong: Any) -> Path:
    """Rows under the site's own names, a canary in each text and id; `wrong` is what one row has instead."""
    lines = []
    for number in range(14):
        row = {
            "note": f"{CANARY} {number}",
            "grade": ("mild", "severe")[number % 2],
            "patient": f"{CANARY}{number}",
        }
        row |= {"ward": "cardiology" if number < 10 else "lung"} | (wrong if number == 3 else {})
        lines.append({names.get(key, key): value for key, value in row.items()})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(command_line: Any, federation: Federation, *more: str, plan: str = RUN, code: int = 0) -> str:
    """Output and errors of `site data add` at basel; no canary is in them."""
    site = federation.practice.sites["basel"].path
    done = command_line(site, "site", "data", "add", plan, "--folder", str(site), *more, code=code)
    assert CANARY not in done.stdout + done.stderr
    return str(done.stdout + done.stderr)


def test_columns_that_fit_by_name_are_bound_and_written(
    federation: Federation, command_line: Any, tmp_path: Path
) -> None:
    """Shown with what is in them; every comment of site.yaml stays; a second time there is nothing to do."""
    source, site = rows(tmp_path / "rows.jsonl", {}), federation.practice.sites["basel"].path
    said = run(command_line, federation, "--path", str(source), "--where", "ward=cardiology", "--yes")
    for words in ("role text", "unit (whom privacy protects)", "severe", "the rows fill a batch", "+  path:"):
        assert words in said
    found = read_site_settings(site / "site.yaml")
    assert (found.source.path, found.source.where) == (str(source), {"ward": "cardiology"})
    text = (site / "site.yaml").read_text()
    assert [line for line in STARTER.splitlines() if line.startswith("#")] == [
        line for line in text.splitlines() if line.startswith("#")
    ]
    assert "only rows that equal it, such as {ward: cardiology}" in text
    for plan in (
        RUN,
        str(federation.practice.folder / "plan"),
        str(federation.practice.folder / "plan" / SIGNED),
    ):
        assert "says so already" in run(command_line, federation, "--yes", plan=plan)


def test_columns_of_other_names_are_asked_for_by_name(
    federation: Federation, command_line: Any, tmp_path: Path
) -> None:
    """Roles, columns and the missing --column are listed; with them it is bound as the worker reads it."""
    own = {"note": "befund", "grade": "schwere", "patient": "patientin"}
    source, site = rows(tmp_path / "eigen.jsonl", own), federation.practice.sites["basel"].path
    before = (site / "site.yaml").read_text()
    said = run(command_line, federation, "--path", str(source), "--yes", code=2)
    assert "columns befund, schwere, patientin, ward" in said
    assert "role label: grade (missing)" in said
    assert "--column note=LOCAL --column grade=LOCAL --column patient=patientin (a guess)" in said
    assert (site / "site.yaml").read_text() == before
    given = [word for name, local in own.items() for word in ("--column", f"{name}={local}")]
    assert "patientin" in run(command_line, federation, "--path", str(source), *given, "--yes")
    assert read_site_settings(site / "site.yaml").columns == own
    # The names are kept for a source that has them, and dropped for one that has not.
    again = json.loads(run(command_line, federation, "--path", str(source), "--json"))
    assert (again["columns"], again["fit"], again["report"]["rows"]) == (own, True, 14)
    plain = rows(tmp_path / "rows.jsonl", {})
    assert json.loads(run(command_line, federation, "--path", str(plain), "--json"))["columns"] == {}
    assert "did you mean 'note'" in run(command_line, federation, "--column", "notes=befund", "--yes", code=2)


def test_no_value_is_shown_whatever_is_wrong_with_the_rows(
    federation: Federation, command_line: Any, tmp_path: Path
) -> None:
    """Labels that the plan does not list, a table without names, broken lines, another consortium's plan."""
    site = federation.practice.sites["basel"].path
    before = (site / "site.yaml").read_text()
    foreign = rows(tmp_path / "foreign.jsonl", {}, grade=CANARY)
    said = run(command_line, federation, "--path", str(foreign), "--yes", code=1)
    assert "labels that are not in the plan's list" in said
    assert f"a text of {len(CANARY)} characters in 1 rows, first in row 4" in said
    found = json.loads(run(command_line, federation, "--path", str(foreign), "--json"))
    assert (found["report"]["labels_outside"], set(found["report"]["labels"])) == (1, {"mild", "severe"})
    bare = tmp_path / "bare.csv"
    bare.write_text(f"{CANARY} 61 years: chest pain!,1978-03-01,4711\n" + "a,b,c\n" * 5)
    said = run(command_line, federation, "--path", str(bare), "--yes", code=2)
    assert "[column 1: its name looks like a value]" in said
    assert "4711" not in said
    broken = tmp_path / "broken.jsonl"
    broken.write_text(f"{{{CANARY}\n" * 4)
    run(command_line, federation, "--path", str(broken), "--yes", code=2)
    other = federation.practice.folder / "other.json"
    signed = (federation.practice.folder / "plan" / SIGNED).read_bytes()
    other.write_bytes(signed.replace(b"tiny", b"tiNy", 1))
    run(command_line, federation, "--path", str(foreign), "--yes", plan=str(other), code=1)
    assert "a run that was offered" in run(command_line, federation, "--yes", plan="nowhere", code=2)
    assert (site / "site.yaml").read_text() == before


def test_real_rows_meet_a_real_template(
    federation: Federation, command_line: Any, tmp_path: Path, tiny_bert: Path
) -> None:
    """One hospital of the demo under other names: every field of the template is bound or asked for."""
    text = practice_rows()["cleveland-east"].decode()
    header, _, body = text.partition("\n")
    own = {"age": "alter", "label": "krank", "id": "fall"}
    renamed = ";".join(own.get(name, name) for name in header.split(","))
    source = tmp_path / "herz.csv"
    source.write_text(renamed + "\n" + body.replace(",", ";"))
    data = yaml.safe_load((ROOT / "conf/data/heart.yaml").read_text())["data"]
    plan = federation.plan("heart", data=data | {"sites": {}, "site_tests": {}})
    said = run(command_line, federation, "--path", str(source), plan=str(plan), code=2)
    for words in ("template field age: age (missing)", "row id: id (missing)", "template field thal: thal"):
        assert words in said
    given = [word for name, local in own.items() for word in ("--column", f"{name}={local}")]
    found = json.loads(run(command_line, federation, "--path", str(source), *given, "--json", plan=str(plan)))
    report = found["report"]
    assert report["rows"] == report["labelled"] == body.count("\n") > 80
    assert (set(report["labels"]), report["units"]["units"]) == ({"0", "1"}, report["rows"])
    assert (found["fit"], found["columns"]) == (True, own)
    # Bound so, the rows are those that the same file gives under the plan's own names.
    settings = read_site_settings(federation.practice.sites["basel"].path / "site.yaml")
    signed, plain = read_plan(plan).plan, tmp_path / "plain.csv"
    plain.write_text(text)
    ours, theirs = (
        read_rows(
            settings.model_copy(update={"source": SourceSpec(path=str(path)), "columns": columns}),
            signed,
            "basel",
        )
        for path, columns in ((source, own), (plain, {}))
    )
    assert ours.examples == theirs.examples


def test_lengths_are_in_tokens_once_the_plans_model_is_there(
    federation: Federation, command_line: Any, tmp_path: Path, tiny_bert: Path
) -> None:
    """By the tokenizer of the models' entry that has the plan's digest; what would be cut is counted."""
    source, site = rows(tmp_path / "rows.jsonl", {}), federation.practice.sites["basel"].path
    assert "need the plan's base model" in run(command_line, federation, "--path", str(source), "--yes")
    plan = json.loads((federation.practice.folder / "plan" / "plan.json").read_text())["plan"]
    text = (site / "site.yaml").read_text().replace("digest: null ", f"digest: {plan['base']['digest']} ")
    (site / "site.yaml").write_text(text.replace("path: models/base", f"path: {tiny_bert}"))
    found = json.loads(run(command_line, federation, "--json"))["report"]["tokens"]
    assert found["max_length"] == 16
    assert 0 < found["lengths"]["least"] <= found["lengths"]["most"]
