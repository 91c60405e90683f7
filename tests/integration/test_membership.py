"""Keys and members by the real commands: the page's own way, and what must never be in a file that leaves."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from members import private_bytes
from typer.main import get_command

from wardround.cli import app
from wardround.client.membership.site_folder import confirmed_roster, open_site_folder
from wardround.core.errors import ConfigError, PeerError, PolicyError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "consortium.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh run\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
TABLE = get_command(app)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, without anybody's passphrase; none of them waits for the disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.delenv("WARDROUND_PASSPHRASE", raising=False)


def wardround(*arguments: str, answer: str = "y\n", code: int = 0) -> Result:
    """A command in this process, which has to end with this code."""
    result = CliRunner().invoke(TABLE, list(arguments), input=answer, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def members(*sites: str, folder: str = "consortium") -> None:
    """A consortium whose members have joined, and have the present roster; nobody has confirmed it."""
    wardround("consortium", "init", folder, "--name", "north", "--address", "127.0.0.1:9443")
    for site in sites:
        wardround("consortium", "invite", site, "--folder", folder)
        wardround("site", "join", f"{site}.invitation.json", "--folder", site)
        wardround("consortium", "admit", f"{site}/request.json", "--folder", folder)
    for site in sites:
        wardround("site", "roster", "update", f"{folder}/roster.json", "--folder", site)


def test_the_way_of_the_page_leads_to_a_confirmed_roster() -> None:
    """Every command that docs/consortium.md marks runs, in the page's order."""
    assert len(COMMANDS) >= 14
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "wardround"
        if arguments[:2] == ["consortium", "revoke"]:
            site = open_site_folder(Path("aachen"))
            assert confirmed_roster(site).keys == {"aachen": site.signer().public}
            site.certificate()
        wardround(*arguments)
    assert open_site_folder(Path("aachen")).roster().version == 3
    log = [json.loads(line) for line in Path("northern/log.jsonl").read_text("utf-8").splitlines()]
    assert [line["event"] for line in log] == [
        *("made", "invited", "admitted", "rotated site", "rotated server", "revoked"),
    ]


def test_three_sites_read_out_one_digest() -> None:
    """Each confirms by the digest of another one, and counts all three."""
    sites = ("aachen", "bonn", "düren")
    members(*sites)
    confirm = ("site", "roster", "confirm", "--folder")
    shown = [json.loads(wardround(*confirm, site, "--json").output) for site in sites]
    assert len({one["digest"] for one in shown}) == 1
    assert all(one["added"] == sorted(sites) and not one["confirmed"] for one in shown)
    for i, site in enumerate(sites):
        said = shown[i - 1]["digest"]
        wardround(*confirm, site, "--digest", said, answer="")
        assert set(confirmed_roster(open_site_folder(Path(site))).keys) == set(sites)
    listed = json.loads(wardround("consortium", "list", "--json").output)
    assert [member["site"] for member in listed["members"]] == sorted(sites)
    assert (listed["digest"], listed["version"], listed["invitations"]) == (shown[0]["digest"], 4, [])
    seen = json.loads(wardround("site", "roster", "show", "--json", "--folder", "bonn").output)
    assert all(member["counts"] for member in seen["members"])


def test_whoever_says_no_confirms_nothing() -> None:
    """Nor does whoever says nothing, or another digest."""
    members("aachen")
    refused = wardround("site", "roster", "confirm", "--folder", "aachen", answer="n\n", code=1)
    assert isinstance(refused.exception, PolicyError)
    wardround("site", "roster", "confirm", "--folder", "aachen", answer="", code=1)
    wrong = wardround("site", "roster", "confirm", "--folder", "aachen", "--digest", "0" * 64, code=1)
    assert isinstance(wrong.exception, PeerError)
    wardround("site", "roster", "confirm", "--folder", "aachen", "--json")
    assert confirmed_roster(open_site_folder(Path("aachen"))).keys == {}


def encodings(secret: bytes) -> tuple[bytes, ...]:
    """How a secret could stand in a file."""
    return secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="), repr(secret).encode()


def test_no_secret_is_in_a_file_that_leaves_or_in_what_is_printed() -> None:
    """Nor is a site's secret in the operator's folder, or the operator's in the server's."""
    shown = "".join(wardround(*shlex.split(command)[1:]).output for command in COMMANDS[:-1])
    secrets = private_bytes(Path())
    assert len(secrets) == 5 + 5  # consortium, authority; TLS, identity, token; three of the site, two former
    leaving = [
        *("aachen.invitation.json", "aachen/request.json", "northern/roster.json", "northern/log.jsonl"),
        *("northern/server-notice.json", "northern/server/server.json", "northern/server/certificate.json"),
        *("aachen/site.json", "aachen/confirmed.json"),
    ]
    contents = [Path(name).read_bytes() for name in leaving] + [shown.encode()]
    for place, secret in secrets.items():
        for text in encodings(secret):
            assert not any(text in content for content in contents), place
    for owner, other in (("aachen", "northern"), ("northern", "aachen")):
        held = b"".join(file.read_bytes() for file in Path(other).rglob("*") if file.is_file())
        held += b"".join(private_bytes(Path(other)).values())
        for place, secret in secrets.items():
            if place.startswith(owner):
                assert not any(text in held for text in encodings(secret)), place


def test_what_is_wrong_is_refused_in_words() -> None:
    """With the class of the error, so with its exit code, and nothing changed."""
    members("aachen")
    before = Path("consortium/roster.json").read_bytes()
    for arguments, kind, words in (
        (("consortium", "invite", "aachen"), ConfigError, "there already"),
        (("consortium", "invite", "aachen", "--output", "new.json"), ConfigError, "a member already"),
        (("consortium", "revoke", "aaachen"), ConfigError, "did you mean 'aachen'"),
        (("consortium", "rotate", "site", "aachen/request.json"), PeerError, "another kind"),
        (("site", "join", "consortium/roster.json", "--folder", "new"), PeerError, "another kind"),
        (("site", "server", "update", "consortium/roster.json", "--folder", "aachen"), PeerError, "kind"),
    ):
        result = wardround(*arguments, code=1)
        assert isinstance(result.exception, kind)
        assert words in str(result.exception)
    assert Path("consortium/roster.json").read_bytes() == before
    assert not Path("new").exists()
    assert not Path("new.json").exists()


def test_what_expires_soon_is_said_by_every_command_that_reads_it() -> None:
    """On the error stream: what a script reads stays as it is."""
    wardround("consortium", "init", "c", "--name", "north", "--address", "127.0.0.1:9443", "--days", "20")
    for arguments in (
        ("consortium", "invite", "aachen", "--folder", "c"),
        ("site", "join", "aachen.invitation.json"),
        ("consortium", "admit", "site/request.json", "--folder", "c", "--days", "9"),
        ("site", "roster", "update", "c/roster.json"),
        ("site", "roster", "confirm"),
        ("site", "roster", "show"),
        ("site", "rotate"),
        ("consortium", "rotate", "token", "--folder", "c"),
        ("consortium", "revoke", "aachen", "--folder", "c"),
    ):
        assert "soon: the server's" in wardround(*arguments).stderr, arguments
    assert "membership expires" in wardround("site", "roster", "show").stderr
    assert "certificate expires on" in wardround("consortium", "list", "--folder", "c").output
    assert "expires" not in wardround("consortium", "rotate", "server", "--folder", "c").stderr


def test_keys_are_encrypted_under_a_passphrase_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one makes nothing. A process without it, and without a terminal, says what to set."""
    made = ("consortium", "init", "c", "--name", "north", "--address", "127.0.0.1:1")
    invite = ("consortium", "invite", "aachen", "--folder", "c")
    monkeypatch.setenv("WARDROUND_PASSPHRASE", "short")
    assert "too short" in str(wardround(*made, code=1).exception)
    monkeypatch.setenv("WARDROUND_PASSPHRASE", "a long passphrase")
    wardround(*made)
    for name in ("c/consortium.key", "c/ca.key"):
        assert b"ENCRYPTED" in Path(name).read_bytes()
    wardround(*invite)
    wardround("consortium", "rotate", "ca", "--folder", "c")
    assert b"ENCRYPTED" in Path("c/ca.key").read_bytes()
    monkeypatch.delenv("WARDROUND_PASSPHRASE")
    refused = subprocess.run(
        [sys.executable, "-c", "from wardround.cli import main; main()", *invite, "--output", "again.json"],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "set WARDROUND_PASSPHRASE" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_operators_folder_that_went_back_is_mended_by_a_sites_roster() -> None:
    """As the page says: the newest roster from a site; until then sites notice the contradiction."""
    members("aachen")
    shutil.copytree("consortium", "copy")
    wardround("consortium", "invite", "bonn")
    wardround("site", "join", "bonn.invitation.json", "--folder", "bonn")
    wardround("consortium", "admit", "bonn/request.json")
    wardround("site", "roster", "update", "consortium/roster.json", "--folder", "aachen")
    wardround("consortium", "revoke", "aachen", "--folder", "copy")
    split = wardround("site", "roster", "update", "copy/roster.json", "--folder", "aachen", code=1)
    assert "contradict each other" in str(split.exception)
    for place in ("copy/roster.json", "copy/server/roster.json"):
        shutil.copy("aachen/roster.json", place)
    wardround("consortium", "revoke", "aachen", "--folder", "copy")
    wardround("site", "roster", "update", "copy/roster.json", "--folder", "aachen")
    assert [member.site for member in open_site_folder(Path("aachen")).roster().members] == ["bonn"]
