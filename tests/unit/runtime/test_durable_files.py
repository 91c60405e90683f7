"""What is there under its name is whole, whatever fails while it is written."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from wardround.core.errors import StorageError
from wardround.runtime import _durable
from wardround.runtime.files import (
    append_line,
    atomic_folder,
    json_text,
    private_folder,
    write_atomic,
    write_json,
)

FAULTS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO)
LIMIT = 4096


def failing(number: int, after: int = 0) -> Callable[..., Any]:
    """A system call that fails from its `after`-th call on."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(number, os.strerror(number))

    return call


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `LIMIT` bytes: a real short write, then EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def listing(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.rglob("*"))


def test_writes_and_replaces(tmp_path: Path) -> None:
    """Parents are made, content is exact, nothing else stays in the folder."""
    path = tmp_path / "a" / "b.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"\x00two")
    assert path.read_bytes() == b"\x00two"
    assert listing(tmp_path) == ["a", "b.bin"]


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Whichever step fails: old content, no temporary file, and an error with path, need and remedy."""
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path if call == "open" else os, call, failing(number))
        with pytest.raises(StorageError, match="room for 3 bytes") as caught:
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]
    assert str(path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert caught.value.remedy


def test_a_failed_folder_sync_leaves_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the rename the new content is whole; the error still says that it may not be durable."""
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO, after=1))
        with pytest.raises(StorageError):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert listing(tmp_path) == ["file"]


def test_a_private_file_is_its_owners_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask, and also where the file that it replaces was everybody's."""
    path, seen, replace = tmp_path / "file", [], os.replace

    def look(source: Any, target: Any) -> None:
        seen.append(Path(source).stat().st_mode & 0o777)
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    before = os.umask(0)
    try:
        write_atomic(path, b"one")
        write_atomic(path, b"two", private=True)
    finally:
        os.umask(before)
    assert seen == [0o666, 0o600]
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", 0o600)


def test_a_private_folder_is_durable_with_all_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new one is synced into its parent, which nobody else enters; an old one stays as it is."""
    synced: list[str] = []
    monkeypatch.setattr(_durable, "sync_folder", lambda folder: synced.append(folder.name))
    (tmp_path / "a").mkdir(mode=0o755)
    private_folder(tmp_path / "a" / "b" / "c")
    private_folder(tmp_path / "a" / "b" / "c")
    assert synced == ["a", "b"]
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/c")]
    assert modes == [0o755, 0o700, 0o700]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        private_folder(tmp_path / "file" / "a")


@pytest.mark.usefixtures("small_files_only")
def test_a_file_that_the_kernel_cuts_short(tmp_path: Path) -> None:
    """A real short write: the old file stays and no temporary is left."""
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(StorageError, match="File too large"):
        write_atomic(path, b"x" * (LIMIT * 3))
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]


def test_an_interrupt_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while syncing goes on as itself, after cleaning up."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / "file", b"new")
    assert listing(tmp_path) == []


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    """A path through a file is named, not raised as it is."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/inner"):
        write_atomic(tmp_path / "file" / "inner", b"")


def test_json_is_strict_and_plain(tmp_path: Path) -> None:
    """NaN becomes null; NumPy values, tuples, sets and paths become what JSON has."""
    write_json(
        tmp_path / "x.json",
        {"nan": float("nan"), "inf": np.float32("inf"), "n": np.int64(3), "a": np.array([1.5, np.nan]),
         "t": (1, "ü"), "s": {"b", "a"}, "p": Path("x"), 7: True, "none": None},
    )  # fmt: skip
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "nan": None, "inf": None, "n": 3, "a": [1.5, None], "t": [1, "ü"], "s": ["a", "b"], "p": "x",
        "7": True, "none": None,
    }  # fmt: skip
    assert "NaN" not in text
    with pytest.raises(TypeError):
        json_text({"object": object()})


def test_lines_are_appended(tmp_path: Path) -> None:
    """One JSON line a call, in a file that is made with its folder."""
    path = tmp_path / "log" / "x.jsonl"
    for number in range(3):
        append_line(path, {"n": number, "text": "a\nb"}, durable=number != 1)
    assert [json.loads(line)["n"] for line in path.read_text(encoding="utf-8").splitlines()] == [0, 1, 2]


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    """After a kill in the middle of a line, the next line stands on its own."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": 1')
    append_line(path, {"n": 2})
    assert path.read_bytes() == b'{"n": 0}\n{"n": 1\n{"n": 2}\n'


@pytest.mark.parametrize("number", FAULTS)
def test_a_failed_append_is_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A line that could not be synced is not half there."""
    path = tmp_path / "x.jsonl"
    append_line(path, {"n": 0})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number))
        with pytest.raises(StorageError):
            append_line(path, {"n": 1})
    assert path.read_bytes() == before


@pytest.mark.usefixtures("small_files_only")
def test_a_line_that_the_kernel_cuts_short_is_cut_back(tmp_path: Path) -> None:
    """A real short write of a line leaves the lines before it."""
    path = tmp_path / "x.jsonl"
    append_line(path, {"n": 0})
    before = path.read_bytes()
    with pytest.raises(StorageError, match="File too large"):
        append_line(path, {"n": "x" * LIMIT})
    assert path.read_bytes() == before


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    """Until the block ends nothing is there under the name; afterwards everything is."""
    with atomic_folder(tmp_path / "runs" / "model") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        assert not (tmp_path / "runs" / "model").exists()
    assert listing(tmp_path) == ["file", "inner", "model", "runs"]


def half_a_folder(path: Path, error: Exception) -> None:
    """Fail in the middle of building a folder."""
    with atomic_folder(path) as folder:
        (folder / "half").write_text("x")
        raise error


@pytest.mark.parametrize("error", [ValueError("ours"), FileNotFoundError(errno.ENOENT, "not the disk's")])
def test_a_failed_folder_vanishes(tmp_path: Path, error: Exception) -> None:
    """An error that is not the disk's goes on as itself, and nothing is left."""
    with pytest.raises(type(error)) as caught:
        half_a_folder(tmp_path / "model", error)
    assert caught.value is error
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_while_a_library_saves(tmp_path: Path, error: Exception) -> None:
    """What transformers or safetensors raise for a full disk becomes a StorageError with the remedy."""
    with pytest.raises(StorageError, match="free space"):
        half_a_folder(tmp_path / "model", error)
    assert listing(tmp_path) == []


@pytest.mark.usefixtures("small_files_only")
def test_safetensors_itself_on_a_full_disk(tmp_path: Path) -> None:
    """The words that safetensors finds for a real failed write are understood."""
    from safetensors.numpy import save_file

    with pytest.raises(StorageError), atomic_folder(tmp_path / "model") as folder:
        save_file({"a": np.zeros(LIMIT)}, folder / "x.safetensors")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_failed_rename_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """While a folder is replaced the old one is complete or the new one is."""
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "old").write_text("x")
    real, calls = os.replace, 0

    def replace(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == step + 1 and step < 2:
            raise OSError(errno.ENOSPC, "full")
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        if step < 2:
            with pytest.raises(StorageError), atomic_folder(tmp_path / "model", replace=True) as folder:
                (folder / "new").write_text("x")
        else:
            with atomic_folder(tmp_path / "model", replace=True) as folder:
                (folder / "new").write_text("x")
    assert listing(tmp_path) == ["model", "new" if step == 2 else "old"]


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    """A folder with content, a file and a link are refused before anything is written; empty is fine."""
    (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "one").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    before = listing(tmp_path)
    for name, replace in (("model", False), ("file", False), ("file", True), ("link", True)):
        with (
            pytest.raises(StorageError, match="is there already"),
            atomic_folder(tmp_path / name, replace=replace),
        ):
            pytest.fail("the block must not run")
    assert listing(tmp_path) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from wardround.runtime import _durable
from wardround.runtime.files import atomic_folder

place, when = Path(sys.argv[1]), sys.argv[2]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if when == "between the renames":
    replace = Path.replace
    def once(path, target):
        return replace(path, target) if ".old" in str(target) else die()
    Path.replace = once
with atomic_folder(place, replace=True) as folder:
    (folder / "weights").write_bytes(b"new" * 1000)
    if when == "while writing":
        die()
"""


@pytest.mark.parametrize("when", ["while writing", "between the renames"])
def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path: Path, when: str) -> None:
    """A real SIGKILL: the half folder goes with the next attempt, the old one is never lost."""
    place = tmp_path / "model"
    with atomic_folder(place) as folder:
        (folder / "weights").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(place), when], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert len([path for path in tmp_path.iterdir() if path.name.endswith(".part")]) >= 1
    with pytest.raises(StorageError, match="is there already"), atomic_folder(place):
        pytest.fail("the old folder was lost")
    assert listing(tmp_path) == ["model", "weights"]
    assert (place / "weights").read_bytes() == b"old"


def test_a_folder_that_somebody_works_in_is_not_swept(tmp_path: Path) -> None:
    """Two at once: the second finds the first one's temporary folder locked and leaves it."""
    with atomic_folder(tmp_path / "model") as first:
        (first / "a").write_text("x")
        with atomic_folder(tmp_path / "model") as second:
            assert first.exists()
            (second / "b").write_text("x")
        with pytest.raises(StorageError, match="is there already"), atomic_folder(tmp_path / "model"):
            pytest.fail("taken")
        assert (first / "a").read_text() == "x"
        (tmp_path / "model" / "b").unlink()
    assert listing(tmp_path) == ["a", "model"]


def test_another_folder_s_leftovers_are_not_touched(tmp_path: Path) -> None:
    """Only temporary names of the same folder go."""
    other = tmp_path / ".model2.0123456789ab.part"
    other.mkdir()
    with atomic_folder(tmp_path / "model"):
        pass
    assert other.is_dir()
