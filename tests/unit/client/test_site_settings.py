"""site.yaml: strict, commented, and found beside what it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.client.site_settings import (
    LARGEST,
    ModelPlace,
    SiteSettings,
    read_site_settings,
    write_site_starter,
)
from wardround.core.errors import ConfigError, StorageError
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.training.settings import Machine
from wardround.training.source_spec import SourceSpec


def written(folder: Path, text: str) -> Path:
    """A file of settings."""
    path = folder / "site.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_starter_is_the_default_and_its_owners_alone(tmp_path: Path) -> None:
    """What it says of machine and policy is what holds without it; it says every setting that there is."""
    path = tmp_path / "site.yaml"
    write_site_starter(path)
    assert path.stat().st_mode & 0o777 == 0o600
    found = read_site_settings(path)
    assert (found.policy, found.machine, found.columns) == (SecurePolicy(), Machine(), {})
    text = path.read_text(encoding="utf-8")
    for model in (SiteSettings, ModelPlace, SourceSpec, Machine, SecurePolicy):
        for name in model.model_fields:
            assert f"{name}:" in text, name
    with pytest.raises(ConfigError, match="is there already"):
        write_site_starter(path)


def test_paths_are_those_of_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever a process starts; locations and hub names stay as they are."""
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "rows.jsonl").touch()
    places = "models: [{path: models/base}, {path: data://models/x}, {path: org/model}]\n"
    path = written(tmp_path, places + "source: {path: rows.jsonl}\n")
    monkeypatch.chdir("/")
    found = read_site_settings(path)
    assert [place.path for place in found.models] == [
        str(tmp_path.resolve() / "models" / "base"), "data://models/x", "org/model",
    ]  # fmt: skip
    assert found.source.path == str(tmp_path.resolve() / "rows.jsonl")


SOUND = "models: [{path: m}]\nsource: {path: r.jsonl}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "faults in the settings"),
        ("models: []\nsource: {path: x}", "models"),
        (SOUND + "polcy: {}", "did you mean 'policy'"),
        (SOUND + "policy: {least_cohrt: 3}", "did you mean 'least_cohort'"),
        (SOUND + "policy: {least_cohort: 1}", "least_cohort"),
        (SOUND + "columns: {}\ncolumns: {a: b}", "'columns' twice"),
        (SOUND + "machine: {device: tpu}", "device"),
        ("models: [{path: m, digest: abc}]\nsource: {path: x}", "digest"),
        ("models: [\n", "is not YAML"),
        ("!!python/object/apply:os.system [true]", "is not YAML"),
        ("- a", "faults in the settings"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    """Every key, with the nearest that there is; no code is built from it."""
    with pytest.raises(ConfigError, match=message):
        read_site_settings(written(tmp_path, text))


def test_one_that_is_absent_or_huge_is_refused(tmp_path: Path) -> None:
    """Before it is parsed."""
    with pytest.raises(StorageError, match="cannot read"):
        read_site_settings(tmp_path / "site.yaml")
    with pytest.raises(StorageError, match="too large"):
        read_site_settings(written(tmp_path, "#" * (LARGEST + 1)))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=120) | st.text(alphabet="{}[]:-&*!|>\n ab'\"%", max_size=80).map(str.encode))
def test_noise_is_refused(tmp_path_factory: Any, data: bytes) -> None:
    """As a ConfigError, whatever it is."""
    path = tmp_path_factory.getbasetemp() / "noise.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        read_site_settings(path)
