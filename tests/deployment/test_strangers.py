"""Who may not: strangers with only the CA, keys not admitted or revoked, sites that speak for others."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployed import Pair, make_pair
from fastapi.routing import iter_route_contexts
from fleet_client import OPEN, SiteClient
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.main import create_app

from wardround.core.errors import ConfigError
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.runtime.signed_requests import HEADER, PROBE, ROUTES, sign_request
from wardround.server import superlink
from wardround.server.fleet import FLEET
from wardround.server.probe_route import probe_route
from wardround.server.superlink import SuperLink

PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, SuperLink]]:
    """A server that admits north and south."""
    pair = make_pair(tmp_path_factory.mktemp("served"))

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    probe = probe_route(lambda: Roster({"north": KeySigner.fresh().public}))
    with pair.server(routes={ROUTES: asked, ROUTES + PROBE: probe}) as link:
        for site in ("north", "south"):
            link.admit(site, pair.key(site))
        yield pair, link
        while OPEN:
            OPEN.pop().close()


def stranger(pair: Pair, link: SuperLink) -> httpx.Client:
    """Somebody who has the CA's certificate and nothing else."""
    context = ssl.create_default_context(cafile=str(pair.folder / "ca.pem"))
    return httpx.Client(verify=context, base_url=f"https://{link.address}")


def flowers_routes() -> list[tuple[str, str]]:
    """Method and path of everything that Flower's own server would serve."""
    found = set()
    for context in iter_route_contexts(create_app().routes):
        for method in getattr(context.route, "methods", None) or {"GET"}:
            found.add((method, str(getattr(context.route, "path", ""))))
    return sorted(found)


def test_a_stranger_with_only_the_ca_gets_nothing(served: tuple[Pair, SuperLink]) -> None:
    """Every route of Flower's server: 404, or 401 on the fleet's; only health answers."""
    pair, link = served
    routes = flowers_routes()
    paths = {path for _, path in routes}
    assert {"/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/fleet/register-node"} <= paths
    assert len(routes) > 60  # what this test stands on: the routes are really found
    answers: dict[int, set[str]] = {}
    with stranger(pair, link) as client:
        for method, path in routes:
            status = client.request(method, path, headers=PROTOBUF).status_code
            answers.setdefault(status, set()).add(path)
    assert answers[200] == {"/health"}
    assert answers[401] == set(FLEET)
    assert set(answers) <= {200, 401, 404, 405}
    assert answers.get(405, set()) <= {"/health"}
    assert {"/v1/fleet/register-node", "/v1/fleet/unregister-node"} <= answers[404]
    beyond = {path for path in paths if path.startswith(("/v1/control", "/v1/runtime"))}
    assert beyond <= answers[404]


def test_every_fleet_route_that_is_served_is_one_of_flowers() -> None:
    """A name that Flower changes would be a 404 for every site."""
    assert set(FLEET) <= {path for _, path in flowers_routes()}


def test_a_route_of_ours_is_served_for_reading_only(served: tuple[Pair, SuperLink]) -> None:
    """And what lies beneath it."""
    pair, link = served
    with stranger(pair, link) as client:
        assert client.get("/v1/wardround/roster").text == "/v1/wardround/roster"
        assert client.post("/v1/wardround/roster").status_code == 405
        assert client.get("/v1/wardroundroster").status_code == 404


def test_a_stranger_sends_no_body_to_the_one_route_that_takes_one(served: tuple[Pair, SuperLink]) -> None:
    """401, signed by nobody or by somebody who is no member; a megabyte is not waited for."""
    pair, link = served
    path = ROUTES + PROBE
    with stranger(pair, link) as client:
        for headers in ({}, {HEADER: sign_request(KeySigner.fresh(), "north", path, time.time(), "POST")}):
            assert client.post(path, headers=headers, content=bytes(2**20)).status_code == 401
        assert client.get(f"{path}/1000").status_code == 401
        assert client.put(path).status_code == 405


def test_a_key_that_is_not_admitted_is_refused(served: tuple[Pair, SuperLink]) -> None:
    """Before Flower looks at its request."""
    pair, link = served
    with pytest.raises(httpx.HTTPStatusError) as caught:
        SiteClient(pair, link, "stranger").activate()
    assert caught.value.response.status_code == 401


def test_a_named_key_without_its_signature_is_refused(served: tuple[Pair, SuperLink]) -> None:
    """Public keys are no secret."""
    pair, link = served
    with pytest.raises(httpx.HTTPStatusError) as caught:
        SiteClient(pair, link, "stranger", names="north").activate()
    assert caught.value.response.status_code == 401


def test_a_revoked_key_is_refused_and_cannot_come_back(served: tuple[Pair, SuperLink]) -> None:
    """Though its node was online; the site may come with a new key."""
    pair, link = served
    link.admit("west", pair.key("west"))
    west = SiteClient(pair, link, "west")
    node = west.activate()
    west.fleet.PullMessages(PullMessagesRequest(node=node))
    link.revoke("west")
    with pytest.raises(httpx.HTTPStatusError) as caught:
        west.fleet.PullMessages(PullMessagesRequest(node=node))
    assert caught.value.response.status_code == 401
    with pytest.raises(ConfigError, match="was revoked"):
        link.admit("west", pair.key("west"))
    assert "west" not in link.online()
    link.admit("west", pair.key("west-again"))
    assert SiteClient(pair, link, "west-again").activate().node_id != node.node_id


def test_two_sites_cannot_share_a_key(served: tuple[Pair, SuperLink]) -> None:
    """Nor is a point of another curve a key."""
    pair, link = served
    with pytest.raises(ConfigError, match="north already"):
        link.admit("impostor", pair.key("north"))
    with pytest.raises(ConfigError, match="cannot be used"):
        link.admit("impostor", b"\x02" + bytes(32))


def test_no_site_answers_for_another(served: tuple[Pair, SuperLink]) -> None:
    """Flower itself would take it; and a reply that comes twice counts once."""
    pair, link = served
    run = link.open_run("names")
    north, south = SiteClient(pair, link, "north"), SiteClient(pair, link, "south")
    north_node, south_node = north.activate(), south.activate()
    sent = Message(RecordDict({"c": ConfigRecord({"x": 1})}), run.node_of("north"), "train", ttl=60)
    (message_id,) = run.grid.push_messages([sent])
    message = north.pull(north_node, run.run_id)
    assert message.metadata.message_id == message_id
    reply = Message(RecordDict({"c": ConfigRecord({"x": 2})}), reply_to=message)
    with pytest.raises(httpx.HTTPStatusError) as caught:
        south.push(south_node, reply)
    assert caught.value.response.status_code == 401
    assert list(run.grid.pull_messages([message_id])) == []
    assert len(north.push(north_node, reply)) == 3
    (first,) = run.grid.pull_messages([message_id])
    assert first.content.config_records["c"]["x"] == 2
    again = Message(RecordDict({"c": ConfigRecord({"x": 3})}), reply_to=message)
    for repeated in (reply, again):
        assert north.push(north_node, repeated) == []
    assert list(run.grid.pull_messages([message_id])) == []
    run.close()


def test_a_reply_counts_when_all_of_it_is_there(served: tuple[Pair, SuperLink]) -> None:
    """Not when it is announced; and a node that starts anew has lost what it had fetched."""
    pair, link = served
    run = link.open_run("parts")
    link.admit("east", pair.key("east"))
    east = SiteClient(pair, link, "east")
    node = east.activate()
    east_id = run.node_of("east")
    first, second = (
        Message(RecordDict({"c": ConfigRecord({"x": i})}), east_id, "train", ttl=60) for i in (1, 2)
    )
    ids = list(run.grid.push_messages([first, second]))
    message = east.pull(node, run.run_id)
    reply = Message(RecordDict({"c": ConfigRecord({"x": 9})}), reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    bare = make_message(metadata=reply.metadata, content=RecordDict())
    east.fleet.PushMessages(
        PushMessagesRequest(
            node=node, messages_list=[message_to_proto(bare)], message_object_trees=[get_object_tree(reply)]
        )
    )
    assert list(run.grid.pull_messages(ids)) == []
    link._state.deactivate_node(node.node_id)
    east.activate()
    (lost,) = run.grid.pull_messages(ids)
    assert lost.metadata.reply_to_message_id == message.metadata.message_id
    assert "anew" in str(lost.error.reason)
    other = east.pull(node, run.run_id)  # the one that it had not fetched still waits for it
    assert other.metadata.message_id in set(ids) - {message.metadata.message_id}
    run.close()


def test_a_reply_of_unreadable_bytes_is_that_sites_failure(served: tuple[Pair, SuperLink]) -> None:
    """Nothing is raised at the server, whatever a site uploads."""
    pair, link = served
    run = link.open_run("bytes")
    link.admit("odd", pair.key("odd"))
    odd = SiteClient(pair, link, "odd")
    node = odd.activate()
    sent = Message(RecordDict({"c": ConfigRecord({"x": 1})}), run.node_of("odd"), "train", ttl=60)
    ids = list(run.grid.push_messages([sent]))
    message = odd.pull(node, run.run_id)
    inner = RecordDict({"c": ConfigRecord({"x": 9})})
    tree = get_object_tree(inner)  # whole, and no message
    metadata = Metadata(
        run_id=run.run_id, message_id=inner.object_id, src_node_id=node.node_id, dst_node_id=1,
        reply_to_message_id=message.metadata.message_id, group_id="", created_at=message.metadata.created_at,
        ttl=50.0, message_type="train",
    )  # fmt: skip
    bare = make_message(metadata=metadata, content=RecordDict())
    response = odd.fleet.PushMessages(
        PushMessagesRequest(node=node, messages_list=[message_to_proto(bare)], message_object_trees=[tree])
    )
    for object_id in response.objects_to_push:
        content = get_all_nested_objects(inner)[object_id].deflate()
        odd.fleet.PushObject(
            PushObjectRequest(
                node=node,
                run_id=run.run_id,
                object_id=object_id,
                object_content=content,
                session_id=response.session_id,
            )
        )
    (failed,) = run.grid.pull_messages(ids)
    assert failed.error.reason == "the reply cannot be read"
    run.close()


def test_the_listener_speaks_tls_only(served: tuple[Pair, SuperLink]) -> None:
    """And none older than 1.2."""
    pair, link = served
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{link.address}/health")
    context = ssl.create_default_context(cafile=str(pair.folder / "ca.pem"))
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://{link.address}/health", verify=context)


def test_the_database_is_its_owners(served: tuple[Pair, SuperLink]) -> None:
    """With what SQLite puts beside it."""
    folder: Path = served[0].folder
    assert {path.stat().st_mode & 0o777 for path in folder.glob("state.db*")} == {0o600}


def test_a_message_waits_for_a_site_that_has_yet_to_connect(served: tuple[Pair, SuperLink]) -> None:
    """It is admitted, and was never heard of."""
    pair, link = served
    run = link.open_run("early")
    link.admit("late", pair.key("late"))
    assert link.online()["late"] is None
    sent = Message(RecordDict({"c": ConfigRecord({"x": 1})}), run.node_of("late"), "train", ttl=60)
    ids = list(run.grid.push_messages([sent]))
    assert list(run.grid.pull_messages(ids)) == []
    late = SiteClient(pair, link, "late")
    assert late.pull(late.activate(), run.run_id).metadata.message_id == ids[0]
    heard = link.online()["late"]
    assert heard is not None
    assert heard < 60
    run.close()


def test_a_line_that_says_nothing_does_not_outlive_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its handshake, or after: it takes no leave, and its connection is closed all the same."""
    pair, left, listen = make_pair(tmp_path), list[str](), SuperLink._listen

    async def noting(link: SuperLink) -> None:
        await listen(link)
        transports = list(asyncio.get_running_loop()._transports.values())  # type: ignore[attr-defined]  # asyncio's own
        left.extend(repr(each) for each in transports if not each.is_closing())

    monkeypatch.setattr(SuperLink, "_listen", noting)
    monkeypatch.setattr(superlink, "STOP_S", 1.0)
    context = ssl.create_default_context(cafile=str(pair.folder / "ca.pem"))
    with ExitStack() as lines:
        with pair.server() as link:
            host, _, port = link.address.rpartition(":")
            raw = lines.enter_context(socket.create_connection((host, int(port))))
            other = socket.create_connection((host, int(port)))
            lines.enter_context(context.wrap_socket(other, server_hostname=host))
            time.sleep(0.3)  # until the server has taken both
        raw.settimeout(10)
        with suppress(ConnectionResetError):
            assert raw.recv(1) == b""
    assert left == []
