"""A passphrase on all of a site's keys: set, changed, taken off, whatever is killed in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from members import NOW, KillAt, Killed, Practice

from wardround.client.history.history import History
from wardround.client.ledger.commands import create_ledger
from wardround.client.ledger.ledger import Ledger
from wardround.client.membership import locking
from wardround.client.membership.commands import lock_keys
from wardround.client.membership.leaving import nobody_runs
from wardround.client.membership.locking import key_files, locked_files, relock
from wardround.client.membership.rotation import rotate
from wardround.client.membership.site_folder import SiteFolder, open_site_folder
from wardround.client.site_settings import write_site_starter
from wardround.core.errors import ConfigError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime import passphrases
from wardround.runtime.passphrases import VARIABLE, Lock, is_locked, use_lock

FIRST, SECOND = "the first passphrase", "and a second one"
NAMES = ["keys/identity.key", "keys/storage.key", "keys/transport.key"]


@pytest.fixture(autouse=True)
def _nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No passphrase from outside, and cheap keys."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(passphrases, "_N", 2**4)


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    """A member with a ledger and a history."""
    practice = Practice(tmp_path).make()
    found = practice.member("aachen")
    practice.update("aachen")
    write_site_starter(found.path / "site.yaml")
    create_ledger(found.path / "ledger", {"epsilon": 4.0, "delta": 1e-3}, 10, None)
    History.open(found.path / "history", "aachen")
    return found


def secret(text: str) -> Secret:
    """A passphrase."""
    return Secret(text.encode())


def files(site: SiteFolder) -> tuple[Path, ...]:
    """Those with keys."""
    return key_files(site, site.path / "ledger")


def told(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """A new process, which is told this passphrase."""
    use_lock(Lock())
    if text is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, text)


def seen(site: SiteFolder) -> tuple[object, ...]:
    """What opens with a site's keys."""
    with Ledger.open(site.path / "ledger"):
        pass
    History.open(site.path / "history", site.name)
    return (
        site.signer().public,
        site.storage_key().reveal(),
        site.transport_key().private_numbers(),
    )


def test_every_key_is_locked_and_opens_again(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of membership, ledger and history; without the passphrase none of them is read."""
    before = seen(site)
    names = [str(path.relative_to(site.path)) for path in files(site)]
    assert names == ["history/history.key", *NAMES, "ledger/ledger.key"]
    assert relock(files(site), None, secret(FIRST)) == 5
    assert locked_files(files(site)) == files(site)
    told(monkeypatch, FIRST)
    assert seen(site) == before
    told(monkeypatch, None)
    for read in (site.signer, site.storage_key, site.transport_key):
        with pytest.raises(ConfigError, match="locked with a passphrase"):
            read()
    with pytest.raises(ConfigError, match="locked with a passphrase"):
        Ledger.open(site.path / "ledger")
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files(site))


def test_it_is_changed_and_taken_off(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one opens nothing then."""
    before = seen(site)
    relock(files(site), None, secret(FIRST))
    assert relock(files(site), secret(FIRST), secret(SECOND)) == 5
    told(monkeypatch, FIRST)
    with pytest.raises(ConfigError, match="does not open"):
        site.signer()
    told(monkeypatch, SECOND)
    assert seen(site) == before
    assert relock(files(site), secret(SECOND), None) == 5
    told(monkeypatch, None)
    assert locked_files(files(site)) == ()
    assert seen(site) == before


def test_with_a_wrong_passphrase_nothing_is_changed(site: SiteFolder) -> None:
    """By name of the file."""
    relock(files(site), None, secret(FIRST))
    bytes_before = [path.read_bytes() for path in files(site)]
    with pytest.raises(ConfigError, match=r"history.key does not open(.|\n)*nothing was changed"):
        relock(files(site), secret("not this one"), secret(SECOND))
    assert [path.read_bytes() for path in files(site)] == bytes_before


@pytest.mark.parametrize("call", range(1, 6))
@pytest.mark.parametrize("new", [SECOND, None])
def test_a_kill_in_between_is_mended_by_the_same_call(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch, call: int, new: str | None
) -> None:
    """Some keys have the new passphrase by then, some the old one."""
    before = seen(site)
    relock(files(site), None, secret(FIRST))
    wanted = None if new is None else secret(new)
    with monkeypatch.context() as patch:
        patch.setattr(locking, "write_atomic", KillAt(locking.write_atomic, call))
        with pytest.raises(Killed):
            relock(files(site), secret(FIRST), wanted)
    assert relock(files(site), secret(FIRST), wanted) == 5 - (call - 1)
    told(monkeypatch, new)
    assert seen(site) == before


def test_new_keys_of_a_locked_site_are_locked(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation opens the old ones first."""
    relock(files(site), None, secret(FIRST))
    told(monkeypatch, FIRST)
    rotate(site, NOW)
    for name in ("identity.key", "transport.key"):
        assert is_locked((site.path / "keys" / "next" / name).read_bytes())
    assert len(files(site)) == 7
    assert locked_files(files(site)) == files(site)


def test_a_key_in_the_clear_is_locked_with_the_others(site: SiteFolder) -> None:
    """Such as that of a ledger that was made later."""
    relock(files(site)[:3], None, secret(FIRST))
    assert relock(files(site), secret(FIRST), secret(FIRST)) == 2
    assert locked_files(files(site)) == files(site)


def test_the_command_asks_says_and_refuses(
    site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Present passphrase from the environment, the new one from a file; not while the site runs."""
    (tmp_path / "new").write_text(FIRST)
    with nobody_runs(site, "wait"), pytest.raises(ConfigError, match="cannot change the passphrase now"):
        lock_keys(site.path, remove=False, file=tmp_path / "new")
    lock_keys(site.path, remove=True, file=None)
    assert "No key of this site is locked" in capsys.readouterr().out
    lock_keys(site.path, remove=False, file=tmp_path / "new")
    said = capsys.readouterr().out
    assert "5 keys locked" in said
    assert FIRST not in said
    told(monkeypatch, None)
    (tmp_path / "new").write_text(SECOND)
    with pytest.raises(ConfigError, match=f"locked with a passphrase(.|\n)*set {VARIABLE}"):
        lock_keys(site.path, remove=False, file=tmp_path / "new")
    told(monkeypatch, FIRST)
    lock_keys(site.path, remove=False, file=tmp_path / "new")
    told(monkeypatch, SECOND)
    assert open_site_folder(site.path).signer().public == site.signer().public
    lock_keys(site.path, remove=True, file=None)
    assert "lie open now" in capsys.readouterr().out
    told(monkeypatch, None)
    seen(site)
