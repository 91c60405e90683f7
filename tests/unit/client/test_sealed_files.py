"""A sealed file is whole, or refused by name; and what is destroyed cannot be read any more."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wardround.client.sealed_files import (
    KEY_FILE,
    ForeignFileError,
    Label,
    Owner,
    SealedFile,
    storage_key,
)
from wardround.core.errors import StorageError
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.secret import SECRET_BYTES, Secret
from wardround.runtime import _durable

OWNER = Owner(run_id="run", plan=digest("plan"), site="ward")
LABEL = Label(owner=OWNER, kind="state", sum="training")
KEY = Secret(bytes(range(32)))
OLD, NEW = b"the old content of this file", b"the new one, which is another"


class KilledError(BaseException):
    """The process ends here."""


def file_in(folder: Path, label: Label = LABEL, key: Secret = KEY) -> SealedFile:
    """One sealed file in this folder."""
    return SealedFile(folder / "file.sealed", label, key, "put a copy back")


def content(file: SealedFile) -> bytes | None:
    """What it holds."""
    found = file.read()
    return None if found is None else found[1]


def names(folder: Path) -> list[str]:
    """Of all files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def failing(error: BaseException, *, after: int = 0) -> Callable[..., Any]:
    """Raises at the call after so many that do what they should."""
    left, real = [after], os.fsync

    def call(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(*arguments)

    return call


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    """By another object, with its place; a missing file is none; only the owner may read it."""
    folder = tmp_path / "a" / "b"
    assert file_in(folder).read() is None
    file_in(folder).write(OLD, round=3, stage=1, broadcast=b"\n\x00")
    label, found = file_in(folder).read() or (LABEL, b"")
    assert found == OLD
    assert label == LABEL.model_copy(update={"round": 3, "stage": 1, "broadcast": b"\n\x00"})
    assert file_in(folder).label_found() == label
    assert file_in(folder).path.stat().st_mode & 0o777 == 0o600
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")} == {0o700}


def test_nobody_else_reads_the_file_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode is right before it has its name, whatever the umask."""
    seen, replace = [], os.replace

    def look(source: Any, target: Any) -> None:
        seen.append(Path(source).stat().st_mode & 0o777)
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    before = os.umask(0)
    try:
        file_in(tmp_path).write(OLD)
    finally:
        os.umask(before)
    assert seen == [0o600]


@pytest.mark.parametrize("remade", [False, True])
def test_a_bit_turned_anywhere_is_noticed(tmp_path: Path, remade: bool) -> None:
    """In every byte; also where somebody made the digest fit again: then the seal does not."""
    file = file_in(tmp_path)
    file.write(OLD, round=2, broadcast=b"b")
    whole = file.path.read_bytes()
    assert len(whole) > 300
    for place in range(len(whole) - (32 if remade else 0)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        if remade:
            damaged[-32:] = hashlib.sha256(damaged[:-32]).digest()
        file.path.write_bytes(damaged)
        with pytest.raises(StorageError) as refusal:
            file.read()
        assert str(file.path) in str(refusal.value)
        assert refusal.value.found
        assert refusal.value.expected
        assert refusal.value.remedy
        assert file.path.read_bytes() == damaged
    file.path.write_bytes(whole)
    assert content(file) == OLD


def test_a_file_cut_or_lengthened_anywhere_is_noticed(tmp_path: Path) -> None:
    """An empty one as well: it is not a missing one. So is one full of zeros, as a crash may leave it."""
    file = file_in(tmp_path)
    file.write(OLD)
    whole = file.path.read_bytes()
    for damaged in [*(whole[:size] for size in range(len(whole))), whole + b"\0", bytes(len(whole))]:
        file.path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"file.sealed is (damaged|not of the format)"):
            file.read()


def test_what_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    """A folder, another format, another version."""
    file = file_in(tmp_path)
    file.path.write_bytes(b'{"place": [0, 0, 0]}\n')
    with pytest.raises(StorageError, match="is damaged"):
        file.read()
    file.path.write_bytes(b"wardround sealed file 2\n" + bytes(400))
    with pytest.raises(StorageError, match=r"(?s)not of the format.*expected: version 1"):
        file.read()
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(StorageError, match="cannot read"):
        file.read()


@pytest.mark.parametrize(
    ("what", "label"),
    [
        ("run", LABEL.model_copy(update={"owner": OWNER.model_copy(update={"run_id": "other"})})),
        ("plan", LABEL.model_copy(update={"owner": OWNER.model_copy(update={"plan": digest("other")})})),
        ("site", LABEL.model_copy(update={"owner": OWNER.model_copy(update={"site": "other"})})),
        ("kind", LABEL.model_copy(update={"kind": "other"})),
        ("sum", LABEL.model_copy(update={"sum": "other"})),
    ],
)
def test_a_file_of_somebody_else_is_refused_by_name(tmp_path: Path, what: str, label: Label) -> None:
    """Though it is whole, and the same key sealed it."""
    file_in(tmp_path, label).write(OLD)
    with pytest.raises(ForeignFileError, match=rf"(?s)is of another {what}\n  found: .*expected: .*remedy"):
        file_in(tmp_path).read()
    assert content(file_in(tmp_path, label)) == OLD


def test_another_storage_key_does_not_open_it(tmp_path: Path) -> None:
    """That is said as what it is, and neither key is in the message."""
    file_in(tmp_path).write(OLD)
    other = Secret.fresh()
    with pytest.raises(StorageError, match=r"(?s)another storage key.*storage\.key back") as refusal:
        file_in(tmp_path, key=other).read()
    for secret in (KEY, other):
        assert secret.reveal().hex() not in repr(refusal.value)
        assert repr(secret.reveal()) not in repr(file_in(tmp_path, key=secret))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_kill_leaves_the_old_file_and_its_remains_go_with_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whether it comes while the new one is written, before it is synced or before it gets its name."""
    file = file_in(tmp_path)
    file.write(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(_durable, "_remove", lambda path: None)  # who is killed does not tidy up
        if call == "write":
            patch.setattr(Path, "open", failing(KilledError()))
        else:
            patch.setattr(os, call, failing(KilledError()))
        with pytest.raises(KilledError):
            file.write(NEW, erase=True)
    assert content(file_in(tmp_path)) == OLD
    assert len(names(tmp_path)) == 2, "nothing was left over: this test tests nothing"
    file_in(tmp_path).write(NEW)
    assert (content(file), names(tmp_path)) == (NEW, ["file.sealed"])


def test_a_kill_after_the_rename_leaves_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the folder is synced, and before the old key is overwritten."""
    for synced in (1, 2):
        file = file_in(tmp_path)
        file.write(OLD)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(KilledError(), after=synced))
            with pytest.raises(KilledError):
                file.write(NEW, erase=True)
        assert (content(file), names(tmp_path)) == (NEW, ["file.sealed"])


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A StorageError with the remedy, the old file, no temporary one."""
    file = file_in(tmp_path)
    file.write(OLD)
    with monkeypatch.context() as patch:
        target = Path if call == "open" else os
        patch.setattr(target, call, failing(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(StorageError, match="free space"):
            file.write(NEW)
    assert (content(file), names(tmp_path)) == (OLD, ["file.sealed"])


def test_the_same_content_is_never_sealed_alike(tmp_path: Path) -> None:
    """Each write has a salt and a key of its own; nothing of the content is in the clear."""
    file, seen = file_in(tmp_path), set()
    for _ in range(5):
        file.write(OLD)
        data = file.path.read_bytes()
        assert OLD not in data
        seen.add(data[-32 - 16 - len(OLD) : -32])
    assert len(seen) == 5


@pytest.mark.parametrize("how", ["destroyed", "replaced", "killed before the unlink"])
def test_what_is_destroyed_cannot_be_read_from_where_it_lay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Who still holds the file open, with the storage key, finds no key of its own in it."""
    file = file_in(tmp_path / "a")
    file.write(OLD)
    copy = file_in(tmp_path / "b")
    copy.path.parent.mkdir()
    with file.path.open("rb") as held:
        copy.path.write_bytes(held.read())
        assert content(copy) == OLD, "the twin of the refusal below"
        if how == "replaced":
            file.write(NEW, erase=True)
        elif how == "destroyed":
            file.destroy()
            assert names(tmp_path / "a") == []
        else:
            with monkeypatch.context() as patch:
                patch.setattr(Path, "unlink", failing(KilledError()))
                with pytest.raises(KilledError):
                    file.destroy()
        held.seek(0)
        rest = held.read()
    rest = rest[:-32] + hashlib.sha256(rest[:-32]).digest()
    copy.path.write_bytes(rest)
    with pytest.raises(StorageError, match="does not open"):
        copy.read()
    file.destroy()
    file.destroy()
    assert file.read() is None


def test_a_storage_key_is_made_once(tmp_path: Path) -> None:
    """Random, of 32 bytes, its owner's alone; each folder has its own."""
    first = storage_key(tmp_path / "a")
    path = tmp_path / "a" / KEY_FILE
    assert storage_key(tmp_path / "a") == first
    assert storage_key(tmp_path / "b") != first
    assert (len(first.reveal()), path.stat().st_mode & 0o777) == (SECRET_BYTES, 0o600)
    assert names(tmp_path / "a") == [KEY_FILE]


def test_of_two_processes_that_make_the_key_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one takes what is there and replaces nothing."""
    first = storage_key(tmp_path)
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # it looked before the other one was done
    assert storage_key(tmp_path) == first
    assert names(tmp_path) == [KEY_FILE]


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_key_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A full disk or a kill while it is made; the next start makes one, and its remains go."""
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(OSError(errno.ENOSPC, "full")))
        with pytest.raises(StorageError, match="free space"):
            storage_key(tmp_path)
    assert names(tmp_path) == []
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(KilledError()))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KilledError):
            storage_key(tmp_path)
    assert KEY_FILE not in names(tmp_path)
    assert len(names(tmp_path)) == 1
    assert storage_key(tmp_path) == storage_key(tmp_path)
    assert names(tmp_path) == [KEY_FILE]


def test_a_kill_between_link_and_unlink_leaves_the_key_and_no_second_name_for_long(tmp_path: Path) -> None:
    """The second name goes; the key stays as it is."""
    first = storage_key(tmp_path)
    os.link(tmp_path / KEY_FILE, tmp_path / f".{KEY_FILE}.0123456789ab.part")
    assert storage_key(tmp_path) == first
    assert names(tmp_path) == [KEY_FILE]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o700, 0o400])
def test_a_key_that_others_could_have_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Any mode but its own."""
    storage_key(tmp_path)
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(StorageError, match=rf"(?s)found: mode {mode:04o}.*expected: mode 0600.*remedy"):
        storage_key(tmp_path)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_length_is_refused_and_stays(tmp_path: Path, size: int) -> None:
    """It is never replaced: what it sealed would be lost. Nothing of it is in the message."""
    storage_key(tmp_path)
    path = tmp_path / KEY_FILE
    path.write_bytes(b"k" * size)
    with pytest.raises(StorageError, match=f"found: {size} bytes") as refusal:
        storage_key(tmp_path)
    assert "kkk" not in str(refusal.value)
    assert path.read_bytes() == b"k" * size


def test_a_key_that_is_a_link_or_anothers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a link that leads nowhere: nothing is made through it."""
    storage_key(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for target in (tmp_path / "real" / KEY_FILE, tmp_path / "nothing"):
        link = tmp_path / "linked" / KEY_FILE
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(StorageError, match="is no plain file"):
            storage_key(tmp_path / "linked")
    assert not (tmp_path / "nothing").exists()
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(StorageError, match=r"(?s)is another user's.*expected: user 4321"):
        storage_key(tmp_path / "real")
