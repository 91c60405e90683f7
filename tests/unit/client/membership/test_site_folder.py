"""A site's folder: how it is made, whose keys it holds, which members count."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import NOW, KillAt, Killed, Practice, altered, next_roster, roster_document, roster_member

from wardround.client.membership import joining, roster_pin, rotation
from wardround.client.membership.roster_pin import (
    changes_since,
    confirm_roster,
    update_roster,
    update_server,
)
from wardround.client.membership.rotation import rotate, settle_keys
from wardround.client.membership.site_folder import SiteFolder, confirmed_roster, open_site_folder
from wardround.core.errors import ConfigError, PeerError, StorageError, WardroundError
from wardround.privacy.secagg.secret import SECRET_BYTES
from wardround.runtime.membership import fingerprint, read_invitation, read_notice, spoken
from wardround.runtime.roster import ROSTER
from wardround.runtime.signed import sign_document
from wardround.runtime.small_files import read_identity, transport_point
from wardround.server.consortium.admission import revoke, rotate_site
from wardround.server.consortium.operator_folder import open_operator_folder
from wardround.server.consortium.rotation import rotate_server


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    """A consortium of two members that have confirmed each other."""
    made = Practice(tmp_path).make()
    for site in ("aachen", "bonn"):
        made.member(site)
    made.confirm("aachen", "bonn")
    return made


def folder(practice: Practice, site: str = "aachen") -> SiteFolder:
    """A site's folder."""
    return open_site_folder(practice.path / site)


def consortium_signed(practice: Practice, document: Any) -> bytes:
    """A roster that the consortium key signed, whatever it says."""
    return sign_document(ROSTER, document, open_operator_folder(practice.operator).consortium_key(None))


def test_joining_makes_keys_that_stay(tmp_path: Path) -> None:
    """A whole folder, with the request in it; nothing is written beside it."""
    practice = Practice(tmp_path).make()
    practice.invite("aachen")
    site, request = practice.join("aachen")
    assert site.signer().public.hex() == request.identity
    assert len(site.storage_key().reveal()) == SECRET_BYTES
    assert site.roster() == practice.roster()
    assert (site.name, site.consortium, site.server_address) == (
        *("aachen", "northern lights"), "127.0.0.1:9443",
    )  # fmt: skip
    site.certificate().check(NOW)


def test_a_folder_that_is_there_is_never_joined_over(practice: Practice) -> None:
    """The second join is refused, and says where the request is."""
    practice.invite("cologne")
    practice.join("cologne")
    before = practice.request("cologne")
    with pytest.raises(StorageError) as caught:
        practice.join("cologne")
    assert "request.json" in str(caught.value)
    assert practice.request("cologne") == before


def test_an_expired_invitation_or_another_fingerprint_makes_no_folder(tmp_path: Path) -> None:
    """Ten minutes late is in time; the fingerprint counts in whatever way it was written down."""
    practice = Practice(tmp_path).make()
    practice.invite("aachen", days=1)
    end = NOW + timedelta(days=1)
    with pytest.raises(PeerError, match="has expired"):
        practice.join("aachen", now=end + timedelta(minutes=16))
    with pytest.raises(PeerError, match="from the future"):
        practice.join("aachen", now=NOW - timedelta(minutes=16))
    key = fingerprint(open_operator_folder(practice.operator).key)
    with pytest.raises(PeerError, match="another consortium's"):
        practice.join("aachen", pinned=key[:-1] + ("0" if key[-1] != "0" else "1"))
    assert not (tmp_path / "aachen").exists()
    practice.join("aachen", now=end + timedelta(minutes=10), pinned=spoken(key).upper())


@pytest.mark.parametrize(("call", "after"), [(n, a) for n in range(1, 8) for a in (False, True)])
def test_a_killed_join_is_simply_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, *, after: bool
) -> None:
    """A whole folder or none, whichever file it was at."""
    practice = Practice(tmp_path).make()
    practice.invite("aachen")
    with monkeypatch.context() as patch:
        patch.setattr(joining, "write_atomic", KillAt(joining.write_atomic, call, after=after))
        with pytest.raises(Killed):
            practice.join("aachen")
    assert not (tmp_path / "aachen").exists()
    practice.join("aachen")
    assert practice.admit("aachen").roster.version == 2


_MADE: dict[str, bytes] = {}


def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An invitation, a notice and a roster, made once, and the consortium's key."""
    if not _MADE:
        practice = Practice(tmp_path_factory.mktemp("made")).make()
        _MADE["invitation"] = practice.invite("aachen")
        rotate_server(practice.operator, NOW)
        _MADE["notice"] = (practice.operator / "server-notice.json").read_bytes()
        _MADE["key"] = open_operator_folder(practice.operator).key
    return _MADE


@settings(max_examples=120, deadline=None)
@given(place=st.integers(0, 20_000), change=st.integers(1, 255))
def test_an_invitation_or_a_notice_that_was_altered_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    """Wherever the byte is; or it is the white space between two fields."""
    files = made(tmp_path_factory)
    for read, data in (
        (lambda data: read_invitation(data, NOW), files["invitation"]),
        (lambda data: read_notice(data, files["key"]), files["notice"]),
    ):
        try:
            found = read(altered(data, place, change))
        except PeerError:
            continue
        assert found == read(data)


def test_every_field_of_an_invitation_is_signed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also under another signature: what is inside has to be the same key's."""
    envelope = json.loads(made(tmp_path_factory)["invitation"])
    document = json.loads(envelope["document"])
    assert set(document) == {
        *("consortium", "key", "address", "ca", "certificate", "roster", "site", "nonce"),
        *("issued", "expires"),
    }
    for name, value in document.items():
        changed = json.dumps(document | {name: value[:-1] + ("1" if value[-1] != "1" else "2")})
        with pytest.raises(PeerError):
            read_invitation(json.dumps(envelope | {"document": changed}).encode(), NOW)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_an_invitation_or_refused(data: bytes) -> None:
    """So with a notice."""
    for read in (lambda data: read_invitation(data, NOW), lambda data: read_notice(data, bytes(32))):
        with pytest.raises(WardroundError):
            read(data)


def test_only_confirmed_members_count(practice: Practice) -> None:
    """A new one, and one with other keys, count once the site's people have confirmed them."""
    site = folder(practice)
    assert set(confirmed_roster(site).keys) == {"aachen", "bonn"}
    practice.member("cologne")
    practice.update("aachen")
    assert site.roster().member("cologne") is not None
    assert set(confirmed_roster(site).keys) == {"aachen", "bonn"}
    changes = changes_since(site.confirmed(), site.roster())
    assert (changes.added, changes.removed, changes.other_keys) == (("cologne",), (), ())
    practice.confirm("aachen")
    assert set(confirmed_roster(site).keys) == {"aachen", "bonn", "cologne"}
    assert not changes_since(site.confirmed(), site.roster())
    assert confirmed_roster(site).digest == practice.roster().roster().digest


def test_before_anything_is_confirmed_nobody_counts(tmp_path: Path) -> None:
    """Not even the site itself."""
    practice = Practice(tmp_path).make()
    practice.member("aachen")
    practice.update("aachen")
    assert confirmed_roster(folder(practice)).keys == {}


@pytest.mark.parametrize("field", ["identity", "transport"])
def test_a_member_whose_key_was_swapped_does_not_count(practice: Practice, field: str) -> None:
    """The consortium key signed it, and still the site's people have to look."""
    site, former = folder(practice), practice.roster()
    swapped = former.members[1].model_copy(update={field: getattr(roster_member("x"), field)})
    forged = next_roster(former, members=(former.members[0], swapped))
    assert update_roster(site, consortium_signed(practice, forged), NOW)
    assert set(confirmed_roster(site).keys) == {"aachen"}
    assert changes_since(site.confirmed(), site.roster()).other_keys == ("bonn",)


def test_a_revoked_member_counts_no_longer(practice: Practice) -> None:
    """Without anybody's confirmation; and one whose time is over, where the time is asked about."""
    site = folder(practice)
    revoke(practice.operator, "bonn", NOW)
    practice.update("aachen")
    assert set(confirmed_roster(site).keys) == {"aachen"}
    assert changes_since(site.confirmed(), site.roster()).removed == ("bonn",)
    former = practice.roster()
    ending = former.members[0].model_copy(update={"expires": NOW})
    update_roster(site, consortium_signed(practice, next_roster(former, members=(ending,))), NOW)
    assert set(confirmed_roster(site, NOW + timedelta(minutes=10)).keys) == {"aachen"}
    assert confirmed_roster(site, NOW + timedelta(minutes=16)).keys == {}


def test_an_older_contradicting_or_foreign_roster_is_not_pinned(practice: Practice, tmp_path: Path) -> None:
    """The pinned one stays, byte for byte."""
    site, first = folder(practice), practice.signed_roster()
    revoke(practice.operator, "bonn", NOW)
    practice.update("aachen")
    pinned = site.signed_roster()
    (tmp_path / "other").mkdir()
    other = Practice(tmp_path / "other").make()
    split = next_roster(practice.roster().model_copy(update={"version": 3}), issued=NOW)
    foreign = roster_document(version=99, previous="0" * 64, consortium="x")
    future = next_roster(practice.roster(), issued=NOW + timedelta(hours=1))
    for data, fault in (
        (first, "older"),
        (consortium_signed(practice, split), "contradict each other"),
        (other.signed_roster(), "another signer"),
        (consortium_signed(practice, foreign), "another consortium"),
        (consortium_signed(practice, future), "from the future"),
        (altered(first, 200, 1), "signature|not as it should be"),
    ):
        with pytest.raises(PeerError, match=fault):
            update_roster(site, data, NOW)
    assert site.signed_roster() == pinned
    assert not update_roster(site, pinned, NOW)


def test_a_roster_that_gives_the_sites_name_away_is_refused(practice: Practice) -> None:
    """Somebody else's keys under this site's name are not pinned."""
    former = practice.roster()
    stolen = next_roster(former, members=(roster_member("aachen"), former.members[1]))
    with pytest.raises(PeerError, match="not its own"):
        update_roster(folder(practice), consortium_signed(practice, stolen), NOW)


def test_another_digest_confirms_nothing(practice: Practice) -> None:
    """Not even one that lacks a digit."""
    site = folder(practice)
    practice.member("cologne")
    practice.update("aachen")
    for said in ("", site.roster().digest[:-1], "0" * 64):
        with pytest.raises(PeerError, match="not that of the roster"):
            confirm_roster(site, said, NOW)
    assert set(confirmed_roster(site).keys) == {"aachen", "bonn"}
    confirm_roster(site, spoken(site.roster().digest).upper(), NOW)
    assert set(confirmed_roster(site).keys) == {"aachen", "bonn", "cologne"}


def test_a_confirmation_that_is_damaged_or_anothers_counts_for_nobody(practice: Practice) -> None:
    """It is refused, and never read as an empty one."""
    site = folder(practice)
    whole = (site.path / "confirmed.json").read_text(encoding="utf-8")
    for text in (whole[:-20], whole.replace(site.consortium_key.hex(), "0" * 64), "{}"):
        (site.path / "confirmed.json").write_text(text, encoding="utf-8")
        with pytest.raises(StorageError):
            confirmed_roster(site)


def test_new_keys_count_once_the_roster_names_them(practice: Practice) -> None:
    """Until then the old ones do; afterwards the former ones can still be asked for by name."""
    site = folder(practice)
    old, old_transport = site.signer().public, transport_point(site.transport_key().public_key())
    request = rotate(site, NOW)
    assert rotate(site, NOW) == request
    assert site.signer().public == old
    rotate_site(practice.operator, (site.path / "rotation.json").read_bytes(), NOW)
    practice.update("aachen")
    assert site.signer().public.hex() == request.identity
    assert site.signer(old.hex()).public == old
    assert transport_point(site.transport_key().public_key()) != old_transport
    assert not (site.path / "keys" / "next").exists()
    assert not (site.path / "rotation.json").exists()
    assert set(confirmed_roster(folder(practice, "bonn")).keys) == {"aachen", "bonn"}
    practice.update("bonn")
    assert set(confirmed_roster(folder(practice, "bonn")).keys) == {"bonn"}
    practice.confirm("bonn")
    assert confirmed_roster(folder(practice, "bonn")).keys["aachen"].hex() == request.identity


@pytest.mark.parametrize(("call", "after"), [(n, a) for n in range(1, 5) for a in (False, True)])
def test_a_kill_while_keys_step_back_loses_none(
    practice: Practice, monkeypatch: pytest.MonkeyPatch, call: int, *, after: bool
) -> None:
    """Every key is found in between, and the next command goes on."""
    site = folder(practice)
    old = site.signer().public.hex()
    request = rotate(site, NOW)
    rotate_site(practice.operator, (site.path / "rotation.json").read_bytes(), NOW)
    with monkeypatch.context() as patch:
        patch.setattr(rotation, "sync_folder", KillAt(rotation.sync_folder, call, after=after))
        with pytest.raises(Killed):
            practice.update("aachen")
    for _ in range(2):
        assert site.signer().public.hex() == request.identity
        assert site.signer(old).public.hex() == old
        assert transport_point(site.transport_key(request.transport).public_key()) == request.transport
        practice.update("aachen")
    assert not (site.path / "keys" / "next").exists()
    assert not settle_keys(site)


def test_whoever_is_no_member_rotates_nothing(tmp_path: Path) -> None:
    """A site that waits to be admitted has nothing to rotate."""
    practice = Practice(tmp_path).make()
    practice.invite("aachen")
    practice.join("aachen")
    with pytest.raises(ConfigError, match="no member"):
        rotate(folder(practice), NOW)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_killed_server_update_is_completed_by_the_same_notice(
    practice: Practice, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Authorities first, the certificate last."""
    site = folder(practice)
    rotate_server(practice.operator, NOW, address="other.example:1", new_identity=True)
    notice = (practice.operator / "server-notice.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(roster_pin, "write_atomic", KillAt(roster_pin.write_atomic, call))
        with pytest.raises(Killed):
            update_server(site, notice, NOW)
    later = update_server(folder(practice), notice, NOW)
    assert folder(practice).certificate() == later
    assert folder(practice).server_address == later.address == "other.example:1"


@pytest.mark.parametrize("name", ["identity.key", "transport.key", "storage.key"])
def test_a_key_that_others_can_read_is_refused(practice: Practice, name: str) -> None:
    """Each of a site's keys, before it is used."""
    site = folder(practice)
    (site.path / "keys" / name).chmod(0o640)
    read = {
        "identity.key": site.signer, "transport.key": site.transport_key, "storage.key": site.storage_key,
    }  # fmt: skip
    with pytest.raises(StorageError, match="can be used by others"):
        read[name]()


def test_a_key_that_is_not_the_rosters_is_refused(practice: Practice) -> None:
    """A key file from another site does not speak for this one; nor does a folder that is open, or none."""
    site, other = folder(practice), folder(practice, "bonn")
    (site.path / "keys" / "identity.key").write_bytes((other.path / "keys" / "identity.key").read_bytes())
    assert read_identity(site.path / "keys" / "identity.key").public_key().public_bytes_raw() == (
        other.signer().public
    )
    with pytest.raises(StorageError, match="does not hold"):
        site.signer()
    site.path.chmod(0o750)
    with pytest.raises(StorageError, match="open to others"):
        folder(practice)
    with pytest.raises(StorageError, match="no site's folder"):
        open_site_folder(practice.path)


def test_what_ends_soon_is_known(practice: Practice) -> None:
    """Certificate, authority, and this site's own membership."""
    assert [end.what for end in folder(practice).ends()] == [
        "the server's certificate from the consortium key", "the consortium's authority",
    ]  # fmt: skip
