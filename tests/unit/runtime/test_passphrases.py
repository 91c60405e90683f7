"""Files of keys that are locked with a passphrase, and where a passphrase comes from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.sealed_files import KEY_FILE, storage_key
from wardround.core.errors import ConfigError, StorageError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime import passphrases
from wardround.runtime.passphrases import (
    CREDENTIAL,
    DIRECTORY,
    VARIABLE,
    Lock,
    given_passphrase,
    is_locked,
    locked,
    new_passphrase,
    opened,
    use_lock,
    without_passphrase,
)
from wardround.runtime.small_files import read_private

WORDS = "correct horse battery"
RIGHT, WRONG = Secret(WORDS.encode()), Secret(b"another one of these")


@pytest.fixture(autouse=True)
def _nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No passphrase from outside, and cheap keys: what they cost is no part of these tests."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(DIRECTORY, raising=False)
    monkeypatch.setattr(passphrases, "_N", 2**4)


@given(st.binary(max_size=300))
def test_what_is_locked_opens_with_its_passphrase_alone(content: bytes) -> None:
    """Whatever it holds; two files that say the same do not look the same."""
    lock = Lock(RIGHT)
    made, again = lock.locked(content), lock.locked(content)
    assert is_locked(made)
    assert made != again
    assert Lock(RIGHT).opens(made) == Secret(content)
    assert Lock(WRONG).opens(made) is None
    assert Lock().opens(made) is None
    assert WORDS.encode() not in made
    if len(content) > 8:
        assert content not in made[made.index(b"\n") :]


@given(st.data())
def test_a_locked_file_that_was_changed_does_not_open(data: st.DataObject) -> None:
    """Any byte after its first line, and any end that was cut off."""
    made = Lock(RIGHT).locked(b"0" * 32)
    at = data.draw(st.integers(made.index(b"\n") + 1, len(made) - 1))
    changed = bytearray(made)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert Lock(RIGHT).opens(bytes(changed)) is None
    assert Lock(RIGHT).opens(made[:at]) is None


def test_a_process_without_a_passphrase_writes_open_keys_and_is_told_what_to_set(tmp_path: Path) -> None:
    """And one that has it writes locked ones, which read as they were."""
    key = storage_key(tmp_path / "open")
    assert not is_locked((tmp_path / "open" / KEY_FILE).read_bytes())
    use_lock(Lock(RIGHT))
    sealed = storage_key(tmp_path / "locked")
    file = tmp_path / "locked" / KEY_FILE
    assert is_locked(file.read_bytes())
    assert storage_key(tmp_path / "open") == key
    assert storage_key(tmp_path / "locked") == read_private(file) == sealed
    use_lock(Lock())
    with pytest.raises(ConfigError, match=f"locked with a passphrase(.|\n)*set {VARIABLE}"):
        storage_key(tmp_path / "locked")


def test_another_passphrase_is_said_and_may_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word of it, or of the key."""
    use_lock(Lock(RIGHT))
    sealed = storage_key(tmp_path)
    use_lock(Lock())
    monkeypatch.setenv(VARIABLE, "never to be shown")
    with pytest.raises(ConfigError, match="another passphrase") as refused:
        storage_key(tmp_path)
    assert "shown" not in str(refused.value)
    monkeypatch.setenv(VARIABLE, WORDS)
    assert storage_key(tmp_path) == sealed
    monkeypatch.delenv(VARIABLE)
    assert storage_key(tmp_path) == sealed, "this process knows it"


def test_a_locked_key_of_another_length_is_refused(tmp_path: Path) -> None:
    """As an open one is."""
    use_lock(Lock(RIGHT))
    storage_key(tmp_path)
    (tmp_path / KEY_FILE).write_bytes(locked(b"k" * 31))
    with pytest.raises(StorageError, match="found: 31 bytes"):
        storage_key(tmp_path)


def test_a_passphrase_comes_from_the_environment_or_from_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment first; without either, and without a terminal, there is none."""
    assert given_passphrase("nobody") is None
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    assert given_passphrase("nobody") is None
    (tmp_path / CREDENTIAL).write_text(f"{WORDS}\nno part of it\n", encoding="utf-8")
    assert given_passphrase("nobody") == RIGHT
    monkeypatch.setenv(VARIABLE, WRONG.reveal().decode())
    assert given_passphrase("nobody") == WRONG
    monkeypatch.delenv(VARIABLE)
    (tmp_path / CREDENTIAL).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"cannot be read(.|\n)*no UTF-8"):
        given_passphrase("nobody")


def test_it_is_typed_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one twice, and not a short one."""
    typed: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(passphrases.getpass, "getpass", lambda prompt: typed.pop(0))
    typed[:] = [WORDS]
    assert given_passphrase("this site's keys") == RIGHT
    typed[:] = [WORDS, WORDS]
    assert new_passphrase("this site's keys") == RIGHT
    typed[:] = [WORDS, WORDS + "!"]
    with pytest.raises(ConfigError, match="the two passphrases differ"):
        new_passphrase("this site's keys")
    typed[:] = ["elevenchars", "elevenchars"]
    with pytest.raises(ConfigError, match=r"too short(.|\n)*12 characters"):
        new_passphrase("this site's keys")


def test_a_new_one_may_come_from_a_file(tmp_path: Path) -> None:
    """Its first line."""
    (tmp_path / "new").write_text(f"{WORDS}\n", encoding="utf-8")
    assert new_passphrase("nobody", tmp_path / "new") == RIGHT
    with pytest.raises(ConfigError, match="cannot be read"):
        new_passphrase("nobody", tmp_path / "nowhere")


def test_children_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the passphrase nor where systemd has it."""
    monkeypatch.setenv(VARIABLE, WORDS)
    monkeypatch.setenv(DIRECTORY, "/run/credentials")
    assert {VARIABLE, DIRECTORY} & without_passphrase(os.environ).keys() == set()
    assert "PATH" in without_passphrase(os.environ)


def test_what_is_not_locked_is_as_it_is(tmp_path: Path) -> None:
    """No passphrase is asked for."""
    assert opened(tmp_path, Secret(b"plain")) == Secret(b"plain")
