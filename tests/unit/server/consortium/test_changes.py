"""A kill at any step of a change: it has happened, or it has not, and the same command completes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from members import NOW, KillAt, Killed, Practice

from wardround.client.membership.rotation import rotate
from wardround.core.errors import ConfigError, PeerError, StorageError
from wardround.server.consortium import changes, creation, invitations
from wardround.server.consortium.admission import admit, revoke, rotate_site
from wardround.server.consortium.operator_folder import OperatorFolder, open_operator_folder
from wardround.server.consortium.overview import overview
from wardround.server.consortium.rotation import rotate_ca, rotate_server, rotate_token
from wardround.server.consortium.server_folder import open_server_folder

STEPS = [(call, after) for call in range(1, 20) for after in (False, True)]


def killed(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int, *, after: bool, act: Callable[[], Any]
) -> bool:
    """Act with a kill at one call; False where there were fewer calls."""
    with monkeypatch.context() as patch:
        patch.setattr(module, name, KillAt(getattr(module, name), call, after=after))
        try:
            act()
        except Killed:
            return True
    return False


def consistent(practice: Practice) -> None:
    """What holds once a change is carried out."""
    roster = practice.roster()
    assert (practice.operator / "server" / "roster.json").read_bytes() == practice.signed_roster()
    assert not (practice.operator / "pending.json").exists()
    versions = [line["version"] for line in practice.log() if "version" in line]
    assert versions == list(range(2, roster.version + 1))
    open_server_folder(practice.operator / "server").check(NOW)


def every_kill(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Practice], Any],
    act: Callable[[Practice], Any],
) -> int:
    """Kill a command at each write, line and sync in turn, and run it again; how often it was killed."""
    prepared = Practice(tmp_path / "prepared")
    prepared.path.mkdir(parents=True)
    prepare(prepared.make())
    kills = 0
    for name in ("write_atomic", "append_line", "sync_folder"):
        for call, after in STEPS:
            practice = replace(prepared, path=tmp_path / f"{name}{call}{after}")
            shutil.copytree(prepared.path, practice.path)
            if not killed(monkeypatch, changes, name, call, after=after, act=lambda: act(practice)):  # noqa: B023 - called at once
                break
            kills += 1
            overview(practice.operator, NOW)  # can be looked at in between
            act(practice)
            consistent(practice)
    return kills


def test_a_kill_never_lets_an_invitation_be_used_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write it comes at: the rerun completes the admission, and another request is refused."""

    def prepare(practice: Practice) -> None:
        practice.invitations["thief"] = practice.invite("aachen")
        practice.join("aachen")
        practice.join("thief")

    def act(practice: Practice) -> None:
        assert practice.admit("aachen").roster.version == 2
        with pytest.raises(PeerError, match="was used"):
            admit(practice.operator, practice.request("thief"), NOW)

    assert every_kill(tmp_path, monkeypatch, prepare, act) >= 10


def test_a_kill_leaves_a_revocation_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rerun finds the site revoked, or revokes it."""

    def act(practice: Practice) -> None:
        with contextlib.suppress(ConfigError):
            revoke(practice.operator, "aachen", NOW)
        assert practice.roster().members == ()

    assert every_kill(tmp_path, monkeypatch, lambda practice: practice.member("aachen"), act) >= 10


def test_a_kill_leaves_a_members_new_keys_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rerun of the same request completes it."""

    def prepare(practice: Practice) -> None:
        site = practice.member("aachen")
        practice.update("aachen")
        rotate(site, NOW)

    def act(practice: Practice) -> None:
        rotate_site(practice.operator, (practice.path / "aachen" / "rotation.json").read_bytes(), NOW)

    assert every_kill(tmp_path, monkeypatch, prepare, act) >= 10


@pytest.mark.parametrize("what", [rotate_server, rotate_ca, rotate_token])
def test_a_kill_never_divides_a_key_from_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Callable[..., Any]
) -> None:
    """After the rerun the server's folder is one from which a server can start."""
    kills = every_kill(
        tmp_path, monkeypatch, lambda practice: None, lambda practice: what(practice.operator, NOW)
    )
    assert kills >= 8


@pytest.mark.parametrize(("call", "after"), STEPS[:30:3])
def test_a_consortium_is_made_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, *, after: bool
) -> None:
    """A killed init leaves nothing that a second one stumbles over."""
    practice = Practice(tmp_path)
    assert killed(monkeypatch, creation, "write_atomic", call, after=after, act=practice.make)
    assert not practice.operator.exists()
    practice.make()
    consistent(practice)


def test_an_invitation_whose_file_was_never_written_is_withdrawn_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between record and file leaves an open invitation that nobody has."""
    practice = Practice(tmp_path).make()
    assert killed(
        monkeypatch, invitations, "write_atomic", 1, after=False, act=lambda: practice.invite("aachen")
    )
    assert len(overview(practice.operator, NOW).invitations) == 1
    practice.invite("aachen")
    assert len(overview(practice.operator, NOW).invitations) == 1
    practice.join("aachen")
    assert practice.admit("aachen").roster.version == 2


def test_two_commands_do_not_change_a_folder_at_once(tmp_path: Path) -> None:
    """The second one is refused, and looking is not."""
    practice = Practice(tmp_path).make()
    lock = os.open(practice.operator, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(StorageError, match="another command"):
        practice.invite("aachen")
    overview(practice.operator, NOW)
    os.close(lock)
    practice.invite("aachen")


def test_what_a_killed_write_left_does_not_stay(tmp_path: Path) -> None:
    """A temporary file may hold a key; the next command removes it, and none that a server may be writing."""
    practice = Practice(tmp_path).make()
    left = [".pending.json.0123.part", "invitations/.a.json.01.part", "server/.server.key.01.part"]
    kept = ["server/.state.db.01.part", "server/runs.part"]
    for name in (*left, *kept):
        (practice.operator / name).write_bytes(b"a key")
    (practice.operator / ".plan.01.part").mkdir()
    practice.invite("aachen")
    assert not any((practice.operator / name).exists() for name in left)
    assert all((practice.operator / name).exists() for name in kept)


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the disk's, and the next try works."""
    practice = Practice(tmp_path).make()
    practice.invite("aachen")
    practice.join("aachen")

    def full(path: Path, *_: Any, **__: Any) -> None:
        raise StorageError(f"cannot write {path}", found="No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(changes, "write_atomic", full)
        with pytest.raises(StorageError, match="cannot write"):
            practice.admit("aachen")
    assert practice.roster().version == 1
    assert practice.admit("aachen").roster.version == 2


@pytest.mark.parametrize("text", ["", "{}", '{"files":{"../up":"AA=="},"line":{}}', '{"files":{"a":1}}'])
def test_a_change_that_is_none_is_not_carried_out(tmp_path: Path, text: str) -> None:
    """Nothing is ever written beyond the folder."""
    practice = Practice(tmp_path).make()
    (practice.operator / "pending.json").write_text(text, encoding="utf-8")
    (practice.operator / "pending.json").chmod(0o600)
    with pytest.raises(Exception, match=r"does not hold a change|beyond its folder"):
        changes.finish(practice.operator)
    assert not (tmp_path / "up").exists()
    assert isinstance(open_operator_folder(practice.operator), OperatorFolder)
