"""What may be in the folder of a base model that a site takes in: weights as safetensors, and plain text.

A model is a file from outside. Nothing that Python could run or unpickle comes in, nothing that sends a
loader elsewhere (code of its own, another repository, a link out of the folder), and nothing that is not
known. The folder is judged before a byte is copied, and the copy once more: it is the copy that is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from wardround.core.errors import ModelError, StorageError
from wardround.runtime.files import storing

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a model in the site's folder."""
WEIGHTS: Final = ".safetensors"
CONFIG: Final = "config.json"
JSON_FILES: Final = frozenset(
    {
        CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
        "special_tokens_map.json", "vocab.json", "chat_template.json", "preprocessor_config.json",
        "processor_config.json",
    }
)  # fmt: skip
TEXT_FILES: Final = frozenset({"vocab.txt", "merges.txt", "chat_template.jinja", "README.md"})
TEXT_NAMES: Final = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)(\.(md|txt))?")
MODELS: Final = frozenset({"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"})
"""SentencePiece's own: a protocol buffer, read by its library."""
IGNORED: Final = frozenset({".gitattributes", ".gitignore", ".DS_Store"})
LARGEST_SMALL: Final = 128 * 2**20
"""Bytes of a file that holds no weights; the largest vocabularies have a quarter of it."""
MOST_FILES: Final = 2000
MOST_FAULTS: Final = 20
BLOCK: Final = 2**20
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npz", ".msgpack", ".h5")
_CODE: Final = (".py", ".pyc", ".so", ".sh", ".dll", ".ipynb")
_RUNS_CODE: Final = frozenset({"auto_map", "custom_pipelines", "custom_generate", "trust_remote_code"})
"""Keys of the JSON files by which transformers would run code of the model's own."""
_INDEX: Final = ".safetensors.index.json"


@dataclass(frozen=True)
class ModelFile:
    """One file that is taken in.

    Attributes:
        name: In the folder.
        path: Where its bytes are, a link in the folder followed.
        size: Bytes.
    """

    name: str
    path: Path
    size: int


def model_files(folder: Path) -> tuple[ModelFile, ...]:
    """The files of a model's folder that would be copied, sorted.

    Raises:
        ModelError: Not a folder, or what is wrong with it, all of it at once.
        StorageError: It cannot be read.
    """
    if not folder.is_dir():
        raise ModelError(
            "there is no such folder", found=folder,
            expected="a folder with config.json, *.safetensors and a tokenizer",
        )  # fmt: skip
    with _reading(folder):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    files: list[ModelFile] = []
    faults: list[str] = []
    if len(entries) > MOST_FILES:
        faults.append(f"{len(entries)} files, at most {MOST_FILES} are taken")
    for entry in entries[:MOST_FILES]:
        if entry.name in IGNORED:
            continue
        fault = _fault_of(entry, folder)
        if fault is None:
            path = folder / entry.name
            files.append(ModelFile(entry.name, path.resolve(), path.stat().st_size))
        else:
            faults.append(f"{entry.name}: {fault}")
    faults += _faults_in(folder, [file.name for file in files])
    _refuse(folder, faults)
    return tuple(files)


def copy_files(files: tuple[ModelFile, ...], target: Path) -> None:
    """Copy into a folder that nobody else writes to, readable for its owner alone, and judge the copy.

    Raises:
        ModelError: The copy is not what was judged: the folder changed meanwhile.
        StorageError: A file cannot be read or written.
    """
    for file in files:
        with _reading(file.path):
            # Not through a link that took the file's place since it was judged.
            descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as source, storing(target / file.name, file.size):
            (target / file.name).touch(mode=0o600, exist_ok=False)
            with (target / file.name).open("r+b") as copy:
                shutil.copyfileobj(source, copy, BLOCK)
    found = {file.name: file.size for file in model_files(target)}
    expected = {file.name: file.size for file in files}
    if found != expected:
        raise ModelError(
            "the folder changed while it was copied", found=", ".join(sorted(_different(found, expected))),
            remedy="import it again when nobody writes to it",
        )  # fmt: skip


def require_room(files: tuple[ModelFile, ...], where: Path) -> int:
    """Bytes of all files; refuses what the disk has no room for, before anything is copied.

    Raises:
        StorageError: Names both sizes.
    """
    needed = sum(file.size for file in files)
    with storing(where):
        free = shutil.disk_usage(where).free
    if free < needed:
        raise StorageError(
            "the disk has no room for this model", found=f"{free} bytes free in {where}",
            expected=f"{needed} bytes", remedy="free space; nothing was copied",
        )  # fmt: skip
    return needed


def _different(one: Mapping[str, int], other: Mapping[str, int]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _fault_of(entry: os.DirEntry[str], folder: Path) -> str | None:
    """Why an entry is not taken in, or None."""
    name, lower = entry.name, entry.name.lower()
    if entry.is_symlink():
        real = Path(os.path.realpath(entry.path))
        if not real.is_relative_to(folder.resolve()):
            return "a link that leads out of the folder (cp -rL makes a copy without links)"
    try:
        about = entry.stat()
    except OSError:
        return "it cannot be looked at"
    if stat.S_ISDIR(about.st_mode):
        return "a folder; a model's files lie side by side"
    if not stat.S_ISREG(about.st_mode):
        return "no plain file"
    if lower.endswith(_CODE):
        return "code is never taken in"
    if lower.endswith(_PICKLES):
        return "weights that are no safetensors are never taken in"
    if name.endswith(WEIGHTS):
        return None
    known = name in JSON_FILES | TEXT_FILES | MODELS or TEXT_NAMES.fullmatch(name) or name.endswith(_INDEX)
    if not known:
        return "not a file that a model is known to need"
    if about.st_size > LARGEST_SMALL:
        return f"{about.st_size} bytes, at most {LARGEST_SMALL} without weights"
    return None


def _faults_in(folder: Path, names: list[str]) -> Iterator[str]:
    """What is wrong inside files, and what is missing."""
    weights = [name for name in names if name.endswith(WEIGHTS)]
    if not weights:
        yield "no *.safetensors: convert the weights first"
    if CONFIG not in names:
        yield f"no {CONFIG}"
    for name in weights:
        try:
            with safe_open(folder / name, framework="np") as tensors:
                list(tensors.keys())
        except (SafetensorError, OSError):
            yield f"{name}: not a whole safetensors file"
    for name in names:
        if name.endswith(".json"):
            yield from (f"{name}: {fault}" for fault in _json_faults(folder / name, weights))


def _json_faults(path: Path, weights: list[str]) -> Iterator[str]:
    with _reading(path):
        data = path.read_bytes()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        yield "no JSON"
        return
    if not isinstance(value, dict):
        yield "no JSON object"
        return
    if path.name.endswith(_INDEX):
        named = value.get("weight_map")
        if not isinstance(named, dict) or not set(map(str, named.values())) <= set(weights):
            yield "it names weights that are not in the folder"
        return
    if path.name in {"tokenizer.json", "vocab.json", "added_tokens.json"}:
        return  # a vocabulary may hold any word
    runs = sorted(_keys(value) & _RUNS_CODE)
    if runs:
        yield f"{', '.join(runs)}: a model that brings its own code is never taken in"


def _keys(value: Any) -> set[str]:
    """Every key at any depth."""
    found: set[str] = set()
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found |= set(map(str, part))
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def _refuse(folder: Path, faults: list[str]) -> None:
    if not faults:
        return
    more = len(faults) - MOST_FAULTS
    raise ModelError(
        f"{folder} is not taken in as a base model",
        found="; ".join(faults[:MOST_FAULTS]) + (f"; and {more} more" if more > 0 else ""),
        expected="config.json, *.safetensors, a tokenizer, a licence, side by side, and nothing else",
        remedy="copy what is needed into a folder of its own, and import that",
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot read {path}", found=error.strerror) from error
