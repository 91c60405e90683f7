"""A site that leaves: what is destroyed, what stays, what it can do no more, and a kill in the middle."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from members import NOW, KillAt, Killed, Practice, altered, private_bytes

from wardround.client.accepted import RunFolders
from wardround.client.history.history import History
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.membership import leaving
from wardround.client.membership.commands import leave_consortium, rotate_keys
from wardround.client.membership.leaving import leave, unfinished
from wardround.client.membership.site_folder import KEEPER, LEAVING_FILE, LEFT, SiteFolder, open_site_folder
from wardround.client.sealed_files import Label, Owner, SealedFile
from wardround.client.site_commands import approve_run, fetch_run, show_site
from wardround.client.supervisor import require_ready
from wardround.core.errors import ConfigError, PeerError, PolicyError, StorageError
from wardround.runtime.control.sockets import UnixSocket, claim
from wardround.runtime.files import write_atomic
from wardround.runtime.membership import read_leaving
from wardround.server.consortium.admission import revoke

RUN = "20261101-120000-0a0b0c0d"
SECRET = b"what was sealed must not be read again"


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    """A consortium of two members; the first has accepted a run, and kept things of it."""
    made = Practice(tmp_path).make()
    for site in ("aachen", "bonn"):
        made.member(site)
    made.confirm("aachen", "bonn")
    site = open_site_folder(tmp_path / "aachen")
    runs = RunFolders(site.path / "runs")
    runs.offered(RUN, b"the plan")
    runs.accept(RUN, plan="a" * 64, roster=bytes(32), server=bytes(32))
    for name in ("runs/" + RUN + "/kept/training", "records/" + RUN + "/training"):
        sealed(site, name).write(SECRET)
    write_atomic(runs.of(RUN) / "memory" / "round-00001.safetensors", SECRET)
    write_atomic(runs.of(RUN) / "checkpoints" / "step.safetensors", SECRET)
    Ledger.create(site.path / "ledger", BudgetPolicy(epsilon=8.0, delta=1e-6), units=10).close()
    return made


def sealed(site: SiteFolder, name: str) -> SealedFile:
    """A file that the storage key seals."""
    owner = Owner(run_id=RUN, plan=bytes(32), site=site.name)
    return SealedFile(site.path / name, Label(owner=owner, kind="test"), site.storage_key(), "nothing")


def folder(practice: Practice) -> SiteFolder:
    """Of the site that leaves."""
    return open_site_folder(practice.path / "aachen")


def everything(path: Path) -> bytes:
    """All bytes of a folder."""
    return b"".join(file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file())


def files_of(path: Path) -> dict[str, bytes]:
    """Name and content of every file."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def test_keys_and_what_runs_kept_are_gone_and_the_ledger_is_not(practice: Practice) -> None:
    """No private key lies anywhere; plan and acceptance stay, and every byte of ledger and history."""
    site = folder(practice)
    History.open(site.path / "history", site.name)
    secrets = {
        name: value
        for name, value in private_bytes(site.path).items()
        if Path(name).parent.name not in {"ledger", "history"}
    }
    ledger, history = files_of(site.path / "ledger"), files_of(site.path / "history")
    assert len(secrets) == 3
    came = leave(site, NOW)
    left = everything(site.path)
    assert came.request is not None
    assert not [name for name, value in secrets.items() if value in left]
    assert not (site.path / "keys").exists()
    assert not (site.path / "records").exists()
    assert SECRET not in left
    assert sorted(path.name for path in (site.path / "runs" / RUN).iterdir()) == [
        *("accepted.json", "plan.signed.json"),
    ]
    assert files_of(site.path / "ledger") == ledger
    assert files_of(site.path / "history") == history
    assert history
    Ledger.open(site.path / "ledger").close()


def test_a_site_that_has_left_says_so(practice: Practice, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever only a member can do is refused by name; twice to leave does no harm."""
    site = folder(practice)
    leave_consortium(site.path, NOW, ask=lambda _: True)
    said = capsys.readouterr().out
    assert f"run {RUN}: accepted" in said
    assert "ledger" in said
    assert "consortium revoke aachen" in said
    for refused in (
        lambda: require_ready(site),
        lambda: rotate_keys(site.path, NOW),
        lambda: approve_run(site.path, RUN, "somebody", said=None, ask=lambda _: True),
        lambda: fetch_run(site.path, RUN, merge=None),
    ):
        with pytest.raises(ConfigError, match="has left 'northern lights'") as caught:
            refused()
        assert "2026-11-01 12:00 UTC" in str(caught.value)
        assert "new invitation" in str(caught.value)
    leave_consortium(site.path, NOW + timedelta(days=1), ask=None)
    assert "has left 'northern lights' before" in capsys.readouterr().out
    assert site.left() is not None
    assert str(site.left().at) == str(NOW)  # type: ignore[union-attr]  # asserted just above


def test_status_shows_that_it_has_left(practice: Practice, capsys: pytest.CaptureFixture[str]) -> None:
    """And does not advise to start it."""
    site = folder(practice)
    (site.path / "runs" / RUN / "plan.signed.json").unlink()  # no consortium signed this one
    leave(site, NOW)
    show_site(site.path, as_json=False)
    assert "left on 2026-11-01 12:00 UTC" in capsys.readouterr().out


def test_nothing_changes_unless_people_say_yes(practice: Practice) -> None:
    """The question names the consortium; a no leaves every byte as it was."""
    site, asked = folder(practice), []
    before = files_of(site.path)

    def no(question: str) -> bool:
        asked.append(question)
        return False

    with pytest.raises(PolicyError, match="has not left"):
        leave_consortium(site.path, NOW, ask=no)
    assert "northern lights" in asked[0]
    assert files_of(site.path) == before


def test_a_site_that_runs_cannot_leave(practice: Practice) -> None:
    """Whoever runs it holds the keeper's place; nothing has changed."""
    site = folder(practice)
    held = claim(UnixSocket(site.path / KEEPER))
    before = files_of(site.path)
    try:
        with pytest.raises(ConfigError, match="cannot leave now"):
            leave(site, NOW)
    finally:
        os.close(held)
    assert files_of(site.path) == before
    leave(site, NOW)


@pytest.mark.parametrize("what", ["write_atomic", "erase_file", "_erase_all"])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_leaves_a_member_or_one_that_has_left(
    practice: Practice, monkeypatch: pytest.MonkeyPatch, what: str, call: int, after: bool
) -> None:
    """Before the mark every key is there; after it the site has left, and the next call destroys the rest."""
    site = folder(practice)
    with monkeypatch.context() as patch:
        patch.setattr(leaving, what, KillAt(getattr(leaving, what), call, after=after))
        try:
            leave(site, NOW)
        except Killed:
            pass
        else:
            assert (what, call) == ("write_atomic", 3)  # it writes two files
    if site.left() is None:
        assert site.signer()
        assert site.transport_key()
        assert sealed(site, "records/" + RUN + "/training").read() is not None
    leave(site, NOW)
    assert SECRET not in everything(site.path)
    assert not (site.path / "keys").exists()
    assert read_leaving((site.path / LEAVING_FILE).read_bytes()).site == "aachen"


def test_a_link_is_removed_and_not_followed(practice: Practice, tmp_path: Path) -> None:
    """What lies elsewhere is not the site's to destroy."""
    site, other = folder(practice), tmp_path / "other.txt"
    other.write_bytes(b"of somebody else")
    (site.path / "runs" / RUN / "link").symlink_to(other)
    (site.path / "keys" / "copy").symlink_to(other)
    leave(site, NOW)
    assert other.read_bytes() == b"of somebody else"
    assert not (site.path / "runs" / RUN / "link").is_symlink()


def test_a_site_without_its_keys_leaves_without_a_request(practice: Practice) -> None:
    """To have lost them is a reason to leave; the operator is told by people."""
    site = folder(practice)
    (site.path / "keys" / "identity.key").unlink()
    assert leave(site, NOW).request is None
    assert not (site.path / LEAVING_FILE).exists()
    assert site.left() is not None


def test_a_torn_mark_starts_nothing(practice: Practice) -> None:
    """A mark that cannot be read counts as one."""
    site = folder(practice)
    (site.path / LEFT).write_bytes(b"{")
    with pytest.raises(StorageError):
        site.require_present()


def test_unfinished_runs_are_those_without_a_result(practice: Practice) -> None:
    """A fetched result ends a run for the site."""
    site = folder(practice)
    assert unfinished(site) == [RUN]
    write_atomic(site.path / "runs" / RUN / "result" / "result.signed.json", b"{}")
    assert unfinished(site) == []
    leave(site, NOW)
    assert (site.path / "runs" / RUN / "result" / "result.signed.json").exists()


def test_the_operator_takes_the_members_own_word(practice: Practice) -> None:
    """Refused where it is altered, another member's, or of another consortium; then the roster lacks it."""
    site, other = folder(practice), open_site_folder(practice.path / "bonn")
    leave(site, NOW)
    word = (site.path / LEAVING_FILE).read_bytes()
    with pytest.raises(PeerError, match="not that of 'bonn'"):
        revoke(practice.operator, "bonn", NOW, request=word)
    for place in range(0, len(word), 7):
        with pytest.raises(PeerError):
            revoke(practice.operator, "aachen", NOW, request=altered(word, place, 1))
    assert {member.site for member in practice.roster().members} == {"aachen", "bonn"}
    revoke(practice.operator, "aachen", NOW, request=word)
    assert {member.site for member in practice.roster().members} == {"bonn"}
    assert other.left() is None
