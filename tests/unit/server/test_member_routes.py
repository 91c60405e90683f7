"""The server's routes for members: signed questions, files, and nothing for anybody else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from wardround.core.errors import PeerError, StorageError
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.runtime.server_about import ServerAbout, ours
from wardround.runtime.signed_requests import HEADER, ROUTES, check_request, sign_request
from wardround.server.execution import RECORD, RELEASED, RESULT
from wardround.server.member_routes import member_routes

NOW = 1_795_000_000.0
SIGNER, STRANGER = KeySigner.fresh(), KeySigner.fresh()
SITE = "zürich, ost"
MEMBERS = Roster({SITE: SIGNER.public})
RUN = "20261126-120000-0a1b2c3d"


class Client:
    """Asks an application without a socket."""

    def __init__(self, app: Starlette) -> None:
        self.app = app

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """One answer."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="https://server") as client:
                return await client.get(path, headers=headers)

        return asyncio.run(ask())


@pytest.fixture
def client(tmp_path: Path) -> Client:
    """The routes over a folder with one result, and one that is not whole."""
    (tmp_path / "roster.json").write_bytes(b"the roster")
    (tmp_path / "operator.token").write_bytes(b"secret")
    for run, names in ((RUN, (RECORD, RELEASED)), ("half", (RELEASED,))):
        folder = tmp_path / "runs" / run / RESULT
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(name.encode())
    return Client(
        member_routes(
            lambda: MEMBERS, tmp_path / "roster.json", tmp_path / "runs", lambda: NOW,
            about=lambda site: ServerAbout(spoken=ours(), roster=3, transport=f"of {site}", admitted=True),
        )
    )  # fmt: skip


def get(
    client: Client, path: str, signer: KeySigner = SIGNER, site: str = SITE, at: float = NOW
) -> tuple[int, bytes]:
    """Status and body of a signed question."""
    reply = client.get(ROUTES + path, headers={HEADER: sign_request(signer, site, ROUTES + path, at)})
    return reply.status_code, reply.content


def test_members_get_roster_and_results(client: Client) -> None:
    """Word for word."""
    assert get(client, "/roster") == (200, b"the roster")
    assert get(client, f"/results/{RUN}/{RELEASED}") == (200, RELEASED.encode())
    assert get(client, "/roster", at=NOW - 14 * 60)[0] == 200


def test_the_server_says_what_it_speaks_to_members(client: Client) -> None:
    """And what it knows of the very one who asks; a field that a later version adds is passed over."""
    status, body = get(client, "/about")
    assert status == 200
    said = ServerAbout.model_validate_json(body)
    assert said == ServerAbout(spoken=ours(), roster=3, transport=f"of {SITE}", admitted=True)
    later = ServerAbout.model_validate_json(body[:-1] + b', "news": 1}')
    assert later == said
    assert get(client, "/about", STRANGER)[0] == 401


def test_two_versions_name_the_protocols_in_which_they_differ() -> None:
    """The version of the package alone is no reason."""
    other = ours().model_copy(update={"version": "9", "messages": 99})
    assert ours().differences(ours().model_copy(update={"version": "9"})) == ()
    assert [text.partition(" ")[0] for text in ours().differences(other)] == ["messages"]


@pytest.mark.parametrize(
    ("signer", "site", "at"),
    [
        (STRANGER, SITE, NOW), (SIGNER, "somebody else", NOW), (SIGNER, SITE, NOW - 16 * 60),
        (SIGNER, SITE, NOW + 16 * 60),
    ],
)  # fmt: skip
def test_nobody_else_gets_anything(client: Client, signer: KeySigner, site: str, at: float) -> None:
    """Another key, no member, an old question, one from the future."""
    status, body = get(client, "/roster", signer, site, at)
    assert status == 401
    assert b"the roster" not in body
    assert client.get(f"{ROUTES}/roster").status_code == 401


def test_a_signature_is_for_one_path(client: Client) -> None:
    """That of the roster opens no result."""
    header = {HEADER: sign_request(SIGNER, SITE, f"{ROUTES}/roster", NOW)}
    assert client.get(f"{ROUTES}/results/{RUN}/{RELEASED}", headers=header).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        f"/results/half/{RELEASED}",
        f"/results/{RUN}/last.safetensors",
        f"/results/{RUN}/../../operator.token",
        f"/results/{quote('../..', safe='')}/operator.token",
        f"/results/..%2f..%2f/{RECORD}",
        "/results",
        "/other",
    ],
)
def test_what_is_no_result_is_not_there(client: Client, path: str) -> None:
    """A result without its record, names that lead elsewhere, other routes."""
    reply = client.get(ROUTES + path, headers={HEADER: sign_request(SIGNER, SITE, ROUTES + path, NOW)})
    assert reply.status_code in (401, 404)
    assert b"secret" not in reply.content


def test_a_roster_that_cannot_be_read_shuts_everybody_out(tmp_path: Path) -> None:
    """And says so, without its path."""

    def broken() -> Roster:
        raise StorageError(f"cannot read {tmp_path}")

    reply = Client(member_routes(broken, tmp_path / "roster.json", tmp_path)).get(f"{ROUTES}/roster")
    assert reply.status_code == 503
    assert str(tmp_path) not in reply.text


@given(st.text(max_size=300))
def test_any_other_header_is_refused_by_name(value: str) -> None:
    """A PeerError and nothing else."""
    with pytest.raises(PeerError):
        check_request(value, f"{ROUTES}/roster", MEMBERS, NOW)
