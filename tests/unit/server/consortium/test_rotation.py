"""New certificates, authorities and tokens; and what the server's folder must and must not hold."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from members import NOW, Practice, private_bytes

from wardround.client.membership.roster_pin import update_server
from wardround.client.membership.site_folder import open_site_folder
from wardround.core.errors import PeerError, StorageError
from wardround.runtime.certificates import issued_by, read_authorities, read_server_certificate
from wardround.server.consortium.overview import overview
from wardround.server.consortium.rotation import rotate_ca, rotate_server, rotate_token
from wardround.server.consortium.server_folder import ServerFolder, open_server_folder

LATER = NOW + timedelta(days=300)


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    """A consortium with one member."""
    made = Practice(tmp_path).make()
    made.member("aachen")
    return made


def server(practice: Practice) -> ServerFolder:
    """The server's folder, as it lies in the operator's."""
    return open_server_folder(practice.operator / "server")


def notice(practice: Practice) -> bytes:
    """What the operator sends to the sites."""
    return (practice.operator / "server-notice.json").read_bytes()


def test_the_servers_folder_is_whole(practice: Practice) -> None:
    """Its identity is the certificate's, its TLS key the certificate's, its roster the operator's."""
    folder = server(practice)
    ends = folder.check(NOW)
    assert len(ends) == 3
    assert folder.signer().public.hex() == folder.certificate().identity
    assert folder.roster() == practice.roster()
    assert (folder.consortium, folder.address) == ("northern lights", "127.0.0.1:9443")
    assert len(folder.token().reveal()) >= 43
    assert folder.token().reveal().decode() not in repr(folder) + repr(folder.token())
    assert issued_by(
        read_server_certificate(folder.tls_certificate.read_bytes()), read_authorities(folder.ca.read_bytes())
    )


def test_neither_the_consortiums_nor_the_authoritys_key_reaches_the_server(practice: Practice) -> None:
    """Their bytes are in no file of its folder, and a folder in which one lies is refused."""
    secrets = private_bytes(practice.operator)
    kept = [secrets[str(practice.operator / name)] for name in ("consortium.key", "ca.key")]
    held = b"".join(file.read_bytes() for file in server(practice).path.rglob("*") if file.is_file())
    held += b"".join(private_bytes(server(practice).path).values())
    assert not any(secret in held for secret in kept)
    for name in ("consortium.key", "ca.key"):
        (server(practice).path / name).write_bytes((practice.operator / name).read_bytes())
        with pytest.raises(StorageError, match="must not lie on a server"):
            server(practice).check(NOW)
        (server(practice).path / name).unlink()


def test_all_of_a_folder_is_its_owners_alone(practice: Practice) -> None:
    """Every folder 0700, every file but the log 0600."""
    for root in (practice.operator, practice.path / "aachen"):
        for path in (root, *root.rglob("*")):
            wanted = 0o700 if path.is_dir() else 0o600
            assert path.name == "log.jsonl" or path.stat().st_mode & 0o777 == wanted, path
    (practice.operator / "server").chmod(0o750)
    with pytest.raises(StorageError, match="open to others"):
        server(practice)


@pytest.mark.parametrize("name", ["identity.key", "server.key", "operator.token"])
def test_a_secret_of_the_server_that_others_can_read_is_refused(practice: Practice, name: str) -> None:
    """Each of them by itself."""
    (server(practice).path / name).chmod(0o644)
    with pytest.raises(StorageError, match="can be used by others"):
        server(practice).check(NOW)


@pytest.mark.parametrize("name", ["identity.key", "server.key", "server.pem", "ca.pem"])
def test_files_of_two_servers_do_not_run_together(practice: Practice, tmp_path: Path, name: str) -> None:
    """A key without its certificate, a certificate without its authority."""
    (tmp_path / "other").mkdir()
    other = Practice(tmp_path / "other").make()
    (server(practice).path / name).write_bytes((other.operator / "server" / name).read_bytes())
    with pytest.raises(StorageError, match=r"do not belong together|is not the identity"):
        server(practice).check(NOW)


def test_a_signed_file_of_another_consortium_is_refused(practice: Practice, tmp_path: Path) -> None:
    """The server believes the key in its own folder."""
    (tmp_path / "other").mkdir()
    other = Practice(tmp_path / "other").make()
    for name in ("roster.json", "certificate.json"):
        before = (server(practice).path / name).read_bytes()
        (server(practice).path / name).write_bytes((other.operator / name).read_bytes())
        with pytest.raises(PeerError, match="another signer"):
            server(practice).check(NOW)
        (server(practice).path / name).write_bytes(before)
    server(practice).check(NOW)


def test_an_expired_certificate_starts_no_server(practice: Practice) -> None:
    """It is warned of before, and rotation mends it."""
    end = NOW + timedelta(days=365)
    assert overview(practice.operator, LATER).ends[0].when == end
    server(practice).check(end + timedelta(minutes=10))
    with pytest.raises(PeerError, match="has expired"):
        server(practice).check(end + timedelta(minutes=16))
    rotate_server(practice.operator, LATER)
    server(practice).check(end + timedelta(minutes=16))


def test_rotating_the_server_keeps_its_identity_unless_told(practice: Practice) -> None:
    """TLS key and dates are new; sites that take no notice go on as long as the identity stays."""
    before, key = server(practice).certificate(), server(practice).tls_key.read_bytes()
    rotate_server(practice.operator, LATER)
    after = server(practice).certificate()
    assert (after.identity, after.address) == (before.identity, before.address)
    assert after.expires > before.expires
    assert server(practice).tls_key.read_bytes() != key
    rotate_server(practice.operator, LATER, new_identity=True, address="other.example:1")
    last = server(practice).certificate()
    assert last.identity != before.identity
    assert last.address == server(practice).address == "other.example:1"
    server(practice).check(LATER)
    site = open_site_folder(practice.path / "aachen")
    assert site.certificate() == before
    assert update_server(site, notice(practice), LATER) == last
    assert open_site_folder(site.path).server_address == "other.example:1"


def test_a_notice_that_is_older_altered_or_anothers_is_refused(practice: Practice, tmp_path: Path) -> None:
    """A stolen identity does not come back by an old notice."""
    site = open_site_folder(practice.path / "aachen")
    rotate_server(practice.operator, LATER)
    old = notice(practice)
    rotate_server(practice.operator, LATER, new_identity=True)
    update_server(site, notice(practice), LATER)
    update_server(site, notice(practice), LATER)
    with pytest.raises(PeerError, match="not newer"):
        update_server(site, old, LATER)
    (tmp_path / "other").mkdir()
    other = Practice(tmp_path / "other").make()
    rotate_server(other.operator, LATER)
    with pytest.raises(PeerError, match="another signer"):
        update_server(site, notice(other), LATER)
    with pytest.raises(PeerError, match="another kind"):
        update_server(site, practice.signed_roster(), LATER)
    assert site.certificate() == server(practice).certificate()


def test_a_lost_authority_is_replaced_without_a_gap(practice: Practice) -> None:
    """Sites trust both until the server has a certificate of the new one."""
    (practice.operator / "ca.key").unlink()
    with pytest.raises(StorageError) as caught:
        rotate_server(practice.operator, LATER)
    assert "rotate ca" in str(caught.value)
    tls = server(practice).tls_certificate.read_bytes()
    rotate_ca(practice.operator, LATER)
    assert server(practice).tls_certificate.read_bytes() == tls
    site = open_site_folder(practice.path / "aachen")
    update_server(site, notice(practice), LATER)
    assert issued_by(read_server_certificate(tls), site.authorities())
    rotate_server(practice.operator, LATER)
    fresh = read_server_certificate(server(practice).tls_certificate.read_bytes())
    assert issued_by(fresh, site.authorities()[:1])
    server(practice).check(LATER)


def test_a_stolen_authority_is_trusted_no_longer(practice: Practice) -> None:
    """The server gets a certificate of the new one at once."""
    stolen = read_authorities((practice.operator / "ca.pem").read_bytes())
    rotate_ca(practice.operator, LATER, compromised=True)
    site = open_site_folder(practice.path / "aachen")
    update_server(site, notice(practice), LATER)
    (trusted,) = site.authorities()
    assert trusted not in stolen
    assert issued_by(read_server_certificate(server(practice).tls_certificate.read_bytes()), [trusted])
    server(practice).check(LATER)


def test_authorities_do_not_pile_up(practice: Practice) -> None:
    """Four at the most, and always the one that the server's certificate comes from."""
    for _ in range(6):
        rotate_ca(practice.operator, LATER)
        server(practice).check(LATER)
    assert len(read_authorities((practice.operator / "ca.pem").read_bytes())) == 4


def test_what_was_carried_away_is_made_anew_for_carrying(practice: Practice) -> None:
    """Where the server's folder is gone, a rotation writes what the server needs of it."""
    (practice.operator / "server").rename(practice.path / "carried")
    practice.member("bonn")
    assert not (practice.operator / "server").exists()
    rotate_server(practice.operator, LATER)
    rotate_token(practice.operator, LATER)
    for file in (practice.operator / "server").iterdir():
        (practice.path / "carried" / file.name).write_bytes(file.read_bytes())
    carried = open_server_folder(practice.path / "carried")
    carried.check(LATER)
    assert carried.roster().member("bonn") is not None


def test_a_new_token_is_another_one(practice: Practice) -> None:
    """And the log does not hold it."""
    before = server(practice).token()
    rotate_token(practice.operator, LATER)
    assert server(practice).token() != before
    assert server(practice).token().reveal().decode() not in (practice.operator / "log.jsonl").read_text()
