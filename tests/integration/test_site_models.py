"""`wardround site model import`: what is taken in, what never is, and that a failure leaves nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from federation import Federation
from full_disk import full_disk
from safetensors.torch import load_file, save_file

from wardround.client.local_data import open_bench
from wardround.client.model_files import copy_files, model_files
from wardround.client.site_settings import STARTER, read_site_settings
from wardround.core.errors import ModelError, StorageError
from wardround.runtime.plan_folder import read_plan


@pytest.fixture
def federation(made: Federation, tmp_path: Path) -> Federation:
    """A copy whose site `basel` has a commented site.yaml."""
    copy = made.copied(tmp_path / "practice")
    (copy.practice.sites["basel"].path / "site.yaml").write_text(STARTER)
    return copy


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection, or asks for a name, fails."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def run(command_line: Any, federation: Federation, source: Path, *more: str, code: int = 0) -> str:
    """Output and errors of the import at basel."""
    site = federation.practice.sites["basel"].path
    done = command_line(site, "site", "model", "import", str(source), "--folder", str(site), *more, code=code)
    return str(done.stdout + done.stderr)


@pytest.mark.usefixtures("no_network")
def test_a_model_is_copied_verified_named_and_then_the_plans(
    federation: Federation, command_line: Any, tiny_bert: Path
) -> None:
    """Offline; the entry has the digest, the comments stay, and the plan opens it from the site's folder."""
    site, plan = federation.practice.sites["basel"].path, federation.practice.folder / "plan"
    said = run(command_line, federation, tiny_bert, "--plan", str(plan), "--name", "bert", "--yes")
    digest = read_plan(plan).plan.base.digest
    assert f'+    digest: "{digest}"' in said
    assert "+  - path: models/bert" in said
    settings = read_site_settings(site / "site.yaml")
    assert [place.digest for place in settings.models] == [None, digest]
    assert open_bench(settings, read_plan(plan).plan).base.config.path == str(site.resolve() / "models/bert")
    assert "# Base models: folders with" in (site / "site.yaml").read_text()
    assert {file.stat().st_mode & 0o777 for file in (site / "models/bert").iterdir()} == {0o600}
    # Once more from its own place: nothing is copied, and nothing changes.
    again = run(command_line, federation, site / "models/bert", "--plan", str(plan), "--yes", "--json")
    assert json.loads(again)["changed"] is False
    # The same weights for another task or precision are another digest, and an entry beside the first.
    other = run(command_line, federation, site / "models/bert", "--dtype", "bfloat16", "--yes", "--json")
    assert json.loads(other)["digest"] != digest
    assert len(read_site_settings(site / "site.yaml").models) == 3


def spoilt(tiny: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    """A copy of the model with something done to it."""
    shutil.copytree(tiny, folder)
    change(folder)
    return folder


def edited(name: str, **fields: Any) -> Callable[[Path], object]:
    """Sets fields of a JSON file."""

    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def too_large(folder: Path) -> None:
    """A vocabulary of more bytes than any has; without as many on the disk."""
    os.truncate(folder / "tokenizer.json", 129 * 2**20)


def index(folder: Path) -> None:
    """An index that names weights outside the folder."""
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../other.safetensors"}}')


NEVER: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle": (lambda f: (f / "model.bin").write_bytes(pickle.dumps(1)), "model.bin: weights"),
    "a torch file": (lambda f: (f / "x.pt").write_bytes(b"1"), "x.pt: weights"),
    "code": (lambda f: (f / "modeling_bert.py").write_text("print(1)"), "modeling_bert.py: code"),
    "auto_map": (edited("config.json", auto_map={"AutoModel": "m.M"}), "config.json: auto_map"),
    "auto_map inside": (edited("config.json", a=[{"b": {"auto_map": {}}}]), "config.json: auto_map"),
    "a tokenizer's code": (edited("tokenizer_config.json", auto_map={}), "tokenizer_config.json: auto_map"),
    "trust": (edited("config.json", trust_remote_code=True), "config.json: trust_remote_code"),
    "a link out": (lambda f: (f / "vocab.txt").symlink_to("/etc/passwd"), "vocab.txt: a link that leads out"),
    "a link that leads nowhere": (lambda f: (f / "vocab.txt").symlink_to("nothing"), "vocab.txt: it cannot"),
    "a folder": (lambda f: (f / "1_Pooling").mkdir(), "1_Pooling: a folder"),
    "a pipe": (lambda f: os.mkfifo(f / "vocab.txt"), "vocab.txt: no plain file"),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json: not a file"),
    "unknown": (lambda f: (f / "data.csv").write_text("a"), "data.csv: not a file"),
    "too large": (too_large, "tokenizer.json: 135266304 bytes"),
    "torn weights": (lambda f: os.truncate(f / "model.safetensors", 5000), "model.safetensors: not a whole"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no *.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "bad JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: no JSON"),
    "weights elsewhere": (index, "it names weights that are not in the folder"),
}  # fmt: skip


@pytest.mark.parametrize("what", NEVER)
def test_what_is_never_taken_in(what: str, tiny_bert: Path, tmp_path: Path) -> None:
    """Each is named; without it the same folder is taken."""
    change, words = NEVER[what]
    with pytest.raises(ModelError, match="not taken in") as caught:
        model_files(spoilt(tiny_bert, tmp_path / "model", change))
    assert words in str(caught.value)
    assert model_files(tiny_bert)


def test_all_faults_are_told_at_once_and_a_link_inside_is_a_file(tiny_bert: Path, tmp_path: Path) -> None:
    """Two of them here; a link to a file beside it is copied as that file's bytes."""
    folder = spoilt(tiny_bert, tmp_path / "two", lambda f: (f / "a.py").write_text(""))
    (folder / "b.bin").write_text("")
    with pytest.raises(ModelError, match=r"a\.py: code.*; b\.bin: weights"):
        model_files(folder)
    linked = spoilt(tiny_bert, tmp_path / "linked", lambda f: (f / "config.json").rename(f / "NOTICE"))
    (linked / "config.json").symlink_to("NOTICE")
    (tmp_path / "copy").mkdir()
    copy_files(model_files(linked), tmp_path / "copy")
    assert (tmp_path / "copy/config.json").read_bytes() == (tiny_bert / "config.json").read_bytes()
    assert not (tmp_path / "copy/config.json").is_symlink()


def test_a_folder_that_changes_while_it_is_copied_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    """The copy is judged, not what was looked at before."""
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    files = model_files(folder)
    edited("config.json", auto_map={"AutoModel": "m.M"})(folder)
    (tmp_path / "copy").mkdir()
    with pytest.raises(ModelError, match="auto_map"):
        copy_files(files, tmp_path / "copy")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/passwd")
    (tmp_path / "again").mkdir()
    with pytest.raises(StorageError, match="cannot read"):
        copy_files(files, tmp_path / "again")


def test_whatever_fails_leaves_nothing(
    federation: Federation, command_line: Any, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Other weights, another digest, another tokenizer, a full disk: by name; no file, the same site.yaml."""
    site, plan = federation.practice.sites["basel"].path, str(federation.practice.folder / "plan")

    def move_one(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        first = min(tensors)
        tensors[first] = tensors[first] + torch.ones(1)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    other = spoilt(tiny_bert, tmp_path / "other", move_one)
    words = spoilt(tiny_bert, tmp_path / "words", lambda _: None)
    tokens = json.loads((words / "tokenizer.json").read_text())
    tokens["pre_tokenizer"]["add_prefix_space"] = not tokens["pre_tokenizer"]["add_prefix_space"]
    (words / "tokenizer.json").write_text(json.dumps(tokens))

    def refused(*arguments: Any, match: str) -> None:
        assert match in run(command_line, federation, *arguments, "--yes", code=2)
        assert (site / "site.yaml").read_text() == STARTER
        assert not list((site / "models").glob("*")) + list((site / "models").glob(".*"))

    refused(other, "--plan", plan, match="are not those of the plan's base")
    refused(tiny_bert, "--digest", "0" * 64, match="are not those of --digest")
    refused(words, "--plan", plan, match="the tokenizer of 'words' is not the one of the plan")
    refused(tiny_llama, "--task", "nonsense", match="nonsense")
    refused(tiny_bert, "--name", "../keys", match="cannot have this name")
    with full_disk(site / "models"):
        said = run(command_line, federation, tiny_bert, "--yes", code=1)
    assert "cannot write" in said
    assert not list((site / "models").iterdir())
    assert (site / "site.yaml").read_text() == STARTER


@pytest.mark.usefixtures("no_network")
def test_a_language_model_is_taken_for_what_it_is(
    federation: Federation, command_line: Any, shared_data: Path
) -> None:
    """A real one from a folder of real files, loaded as what its config says that it is."""
    found = json.loads(
        run(command_line, federation, shared_data / "models/stories260k-llama", "--yes", "--json")
    )
    assert (found["task"], found["path"]) == ("causal_lm", "models/stories260k-llama")
