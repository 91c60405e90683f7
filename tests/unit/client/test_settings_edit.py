"""site.yaml is changed where something changes, and nowhere else; what cannot be changed so is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from full_disk import full_disk
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.settings_edit import change_settings, changed_text, written
from wardround.client.site_settings import STARTER, read_site_settings, write_site_starter
from wardround.core.errors import ConfigError, StorageError

SOURCE = {"path": "/data/cardio.csv", "kind": None, "options": {"delimiter": ";"}, "where": {"ward": "3"}}


def lines_of(before: str, after: str) -> tuple[set[str], set[str]]:
    """Lines that went, and lines that came."""
    old, new = before.splitlines(), after.splitlines()
    return {line for line in old if line not in new}, {line for line in new if line not in old}


def test_only_the_values_change_and_every_comment_stays() -> None:
    """Of the starter: the comment beside a changed value as well, at its place."""
    after = changed_text(STARTER, {"source": SOURCE, "columns": {"note": "befund"}})
    gone, come = lines_of(STARTER, after)
    assert gone == {
        "  path: rows.jsonl", "  options: {}", "columns: {}",
        "  where: {}                # only rows that equal it, such as {ward: cardiology}",
    }  # fmt: skip
    assert come == {
        '  path: "/data/cardio.csv"', '  options: {delimiter: ";"}', "columns: {note: befund}",
        '  where: {ward: "3"}                # only rows that equal it, such as {ward: cardiology}',
    }  # fmt: skip


def test_a_model_is_appended_as_the_list_is_written() -> None:
    """After the last one and its comments, before what follows."""
    models = yaml.safe_load(STARTER)["models"]
    after = changed_text(STARTER, {"models": [*models, {"path": "models/zwei", "digest": "ab" * 32}]})
    gone, come = lines_of(STARTER, after)
    assert not gone
    assert come == {"  - path: models/zwei", f"    digest: {'ab' * 32}"}
    assert after.index("attention: sdpa") < after.index("models/zwei") < after.index("# Rows to train on")


AWKWARD: dict[str, tuple[str, dict[str, Any]]] = {
    "flow": ("models: [{path: a}]  # ours\nsource: {path: r}\n", {"models": [{"path": "a"}, {"path": "b"}]}),
    "no last line break": ("a: 1\ncolumns:\n  x: y", {"columns": {"x": "y", "z": "w"}}),
    "a list at the margin": ("models:\n- path: a  # first\n# end\nb: 1\n", {"models": [{"path": "a"}, "x"]}),
    "an item's value": (
        "models:\n  - path: a # first\n    digest: null # end\n", {"models": [{"path": "a", "digest": "e"}]}
    ),
    "a key that goes": ("columns:\n  a: b # one\n  c: d\n# last\nz: 1\n", {"columns": {"c": "e"}}),
    "a block that empties": ("columns:\n  a: b\n  c: d\n# last\nz: 1\n", {"columns": {}}),
    "nothing there": ("columns: # none\nz: 1\n", {"columns": {"a": "b"}}),
    "a section that is not there": ("z: 1 # one\n", {"columns": {"a": "b"}}),
    "a longer text": ("a: >-\n  one\n  two\nz: 1\n", {"a": "three"}),
    "nested": (
        "s:\n  where:\n    a: b\nz: 1\n", {"s": {"where": {"a": "c", "d": "e"}, "options": {"x": [1, None]}}}
    ),
    "windows": ("columns:\r\n  a: b # one\r\nz: 1\r\n", {"columns": {"a": "c"}}),
}  # fmt: skip


@pytest.mark.parametrize("what", AWKWARD)
def test_other_ways_to_write_it(what: str) -> None:
    """The values are those that were meant; comments stay, but for those of a line that goes."""
    text, changes = AWKWARD[what]
    after = changed_text(text, changes)
    assert yaml.safe_load(after) == yaml.safe_load(text) | changes
    kept = {word for word in text.split() if word in {"ours", "none", "first", "end", "last"}}
    assert kept <= set(after.split())


def test_what_an_alias_shares_is_not_changed_behind_its_back() -> None:
    """It says what to write by hand."""
    text = "a: &it {x: 1}\ncolumns: *it\n"
    with pytest.raises(ConfigError, match="cannot change safely") as caught:
        changed_text(text, {"columns": {"x": "2"}})
    assert 'columns: {x: "2"}' in str(caught.value)


@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.none() | st.booleans() | st.text(max_size=20)),
    st.booleans(),
)
def test_any_text_comes_back_as_it_was(values: dict[str, Any], block: bool) -> None:
    """Names and values of columns may be anything that YAML can hold."""
    assert yaml.safe_load(written(values)) == values
    text = "columns:\n  a: b\nz: 1\n" if block else "columns: {}\nz: 1\n"
    assert yaml.safe_load(changed_text(text, {"columns": values})) == {"columns": values, "z": 1}


def test_it_is_shown_asked_checked_and_replaced_as_a_whole(tmp_path: Path) -> None:
    """A no, settings that would be none, another's edit and a full disk leave the file as it was."""
    path = tmp_path / "site.yaml"
    write_site_starter(path)
    shown: list[str] = []

    def refused(error: type[Exception], match: str, changes: dict[str, Any], ask: Any) -> None:
        before = path.read_bytes()
        with pytest.raises(error, match=match):
            change_settings(path, changes, ask=ask, show=shown.append)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["site.yaml"]

    change = {"source": SOURCE}
    refused(ConfigError, "was not changed", change, lambda _: False)
    refused(ConfigError, "source.path", {"source": {"path": ""}}, lambda _: True)
    with full_disk(tmp_path):
        refused(StorageError, "cannot write", change, None)

    def meddle(_: str) -> bool:
        path.write_text(STARTER + "# mine\n")
        return True

    with pytest.raises(ConfigError, match="somebody else"):
        change_settings(path, change, ask=meddle, show=shown.append)
    assert path.read_text() == STARTER + "# mine\n"
    shown.clear()
    assert change_settings(path, change, ask=lambda _: True, show=shown.append)
    assert '+  path: "/data/cardio.csv"' in shown
    assert read_site_settings(path).source.path == "/data/cardio.csv"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().endswith("# mine\n")
    assert not change_settings(path, change, ask=lambda _: False, show=shown.append)
