"""Flower's internals that the consortium's server stands on: this fails loudly when one of them moves."""

from __future__ import annotations

import asyncio
import inspect
from asyncio import sslproto
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.config import get_fab_config
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.serverapp import Grid
from flwr.supercore.inflatable import inflatable_object, inflatable_utils
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore, ObjectEntry
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.run import Run
from flwr.supercore.sql_mixin import SqlMixin
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.superlink.routers.fleet import node_auth
from flwr.superlink.routers.fleet.router import router
from uvicorn.server import ServerState

from wardround.core.errors import ConfigError, StorageError
from wardround.server import superlink
from wardround.server.connection import WRITE_BUFFER, Connection
from wardround.server.fleet import CLOCK_S, FLEET, FleetApp, empty_bundle
from wardround.server.link_grid import LinkGrid
from wardround.server.link_state import LinkState
from wardround.server.superlink import SuperLink, TlsFiles


def names(function: Any) -> list[str]:
    """Its parameters."""
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_was_read() -> None:
    """1.41."""
    assert metadata.version("flwr").startswith("1.41.")


def test_the_link_state_has_the_methods_that_are_called_and_replaced() -> None:
    """With these parameters."""
    state = SqlLinkState
    assert names(state.__init__) == ["self", "database_path", "federation_manager", "object_store"]
    assert names(state.activate_node) == ["self", "node_id", "heartbeat_interval"]
    assert names(state._cleanup_expired_task_tokens) == ["self"]
    assert names(state.store_traffic) == ["self", "run_id", "bytes_sent", "bytes_recv"]
    assert names(state.add_clientapp_runtime) == ["self", "run_id", "runtime"]
    assert names(state.create_node)[:5] == [
        "self", "owner_aid", "owner_name", "public_key", "heartbeat_interval",
    ]  # fmt: skip
    assert "name" in names(state.create_node)
    assert names(state.delete_node) == ["self", "owner_aid", "node_id"]
    assert names(state.create_run)[:9] == [
        "self", "fab_id", "fab_version", "fab_hash", "override_config", "federation_id", "federation_config",
        "flwr_aid", "primary_task_type",
    ]  # fmt: skip
    for method, parameters in {
        "store_fab": ["fab"],
        "claim_task": ["task_id"],
        "activate_task": ["task_id"],
        "stop_run": ["run_id"],
        "cleanup_run": ["run_id"],
        "delete_messages": ["message_ins_ids"],
        "get_node_id_by_public_key": ["public_key"],
        "store_message_ins": ["message"],
        "get_message_ins": ["node_id", "limit", "run_id"],
        "get_run_status": ["run_ids"],
        "finish_task": ["task_id", "sub_status", "details"],
        "store_message_and_object_tree": ["message", "object_tree", "session_id"],
        "store_object": ["run_id", "session_id", "object_id", "object_content"],
        "_claim_pending_object": ["run_id", "session_id", "object_id"],
        "session": [],
    }.items():
        assert names(getattr(state, method)) == ["self", *parameters], method
    assert {"message_id", "dst_node_id", "delivered_at"} <= set(MessageIns.__table__.columns.keys())
    for method, parameters in {
        "preregister": ["run_id", "object_tree"],
        "put": ["object_id", "object_content"],
        "get": ["object_id"],
        "delete": ["object_id"],
        "clear": [],
    }.items():
        assert names(getattr(InMemoryObjectStore, method)) == ["self", *parameters], method
    assert names(ObjectEntry) == ["content", "is_available", "child_object_ids", "ref_count", "runs"]
    assert issubclass(SqlLinkState, SqlMixin)
    assert {"name", "public_key", "status", "online_until", "heartbeat_interval"} <= set(
        NodeInfo.DESCRIPTOR.fields_by_name
    )
    assert {"primary_task_id", "run_id", "status"} <= set(vars(Run.create_empty(run_id=7)))
    assert {"object_id", "children"} <= set(ObjectTree.DESCRIPTOR.fields_by_name)
    assert "state_instance" in vars(LinkStateFactory("x", None, None))  # type: ignore[arg-type]  # not looked at


def test_messages_are_taken_apart_and_put_together_as_before() -> None:
    """Flower's helpers for objects."""
    assert names(inflatable_object.get_object_tree) == ["obj"]
    assert names(inflatable_object.get_all_nested_objects) == ["obj"]
    assert names(inflatable_utils.inflate_object_from_contents)[:2] == ["object_id", "object_contents"]
    assert set(inflatable_utils.inflatable_class_registry) == {
        "ArrayChunk", "Array", "ArrayRecord", "ConfigRecord", "Message", "MetricRecord", "RecordDict",
    }  # fmt: skip
    assert set(Grid.__abstractmethods__) <= set(dir(LinkGrid))
    assert not inspect.isabstract(LinkGrid)


def test_the_fleet_routes_are_there_and_node_authentication_guards_their_prefix() -> None:
    """A route that Flower adds is not served; one that it renames would be missed here."""
    paths = {getattr(route, "path", "") for route in router.routes}
    assert set(FLEET) < paths
    assert paths - set(FLEET) == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    app = FleetApp(_any_state(), threads=1)
    assert set(app.handlers) == set(FLEET)
    for path, handler in app.handlers.items():
        assert names(handler) == ["request", "state"], path
        assert ("POST", path) in PROTOBUF_REQUEST_TYPES
    assert not any(map(inspect.iscoroutinefunction, app.handlers.values()))
    assert names(node_auth.authenticate_node) == ["request"]
    assert "authenticate_node, request" in inspect.getsource(node_auth.NodeAuthMiddleware)
    judged = inspect.getsource(node_auth.authenticate_node)
    assert "not -SYSTEM_TIME_TOLERANCE" in judged
    assert "< TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE" in judged
    used = vars(node_auth)
    assert (used["TIMESTAMP_TOLERANCE"], used["SYSTEM_TIME_TOLERANCE"]) == (0, CLOCK_S)


def _any_state() -> Any:
    class State:
        database_url, federation_manager = "x", None

    return State()


def test_the_bundle_is_one_that_flower_takes_and_holds_no_code() -> None:
    """And is the same each time."""
    bundle = empty_bundle()
    assert bundle == empty_bundle()
    config = get_fab_config(bundle)
    assert config["tool"]["flwr"]["app"]["components"] == {"serverapp": "none:none", "clientapp": "none:none"}


@pytest.fixture
def state(tmp_path: Path) -> Any:
    """A link state of ours."""
    opened = superlink._opened(tmp_path / "state.db")
    yield opened
    opened.close()


def test_a_message_is_stored_whole_and_freed(state: LinkState) -> None:
    """Contents of several messages once; nothing when they are settled."""
    from flwr.supercore.fab import Fab
    from flwr.supercore.task_identity import TaskIdentity

    digest = state.store_fab(Fab("", empty_bundle(), {}))
    run_id = state.create_run(
        "a/b", "1.0.0", digest, {}, superlink.NOOP_FEDERATION_ID, None, "", "flwr-serverapp"
    )
    (run,) = state.get_run_info(run_ids=[run_id])
    assert run.primary_task_id
    assert state.claim_task(run.primary_task_id)
    assert state.activate_task(run.primary_task_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
    nodes = [state.create_node("", "", bytes([i]), 0) for i in range(3)]
    for node in nodes:
        assert state.activate_node(node, 30)
    grid = LinkGrid(state, run, largest_reply=10**6)
    content = RecordDict({"c": ConfigRecord({"x": b"1" * 1000})})
    ids = list(grid.push_messages([Message(content, node, "train") for node in nodes]))
    assert len(set(ids)) == 3
    assert len(state.object_store) == 2 + 3  # the record and its dict once, three messages
    assert list(grid.pull_messages(ids)) == []
    unknown = list(grid.push_messages([Message(content, 12345, "train")]))
    (failed,) = grid.pull_messages([*ids, *unknown])
    assert failed.metadata.reply_to_message_id == unknown[0]
    for message_id in ids:
        state.forget(message_id, None)
    assert (len(state.object_store), state.num_message_ins()) == (0, 0)
    grid.close()
    assert state.on_activation == []


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    """An address, a certificate, a database."""
    tls = TlsFiles(tmp_path / "none.pem", tmp_path / "none.key")
    with pytest.raises(ConfigError, match="address"):
        SuperLink(tmp_path / "state.db", tls, "nowhere")
    with pytest.raises(ConfigError, match="certificate"):
        SuperLink(tmp_path / "state.db", tls, "127.0.0.1:0")
    (tmp_path / "broken.db").write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(StorageError, match="no database"):
        SuperLink(tmp_path / "broken.db", tls, "127.0.0.1:0")


def test_a_connection_has_small_buffers() -> None:
    """The one that TLS reads into, and what waits to be written; memory grew with the sites by both."""
    assert "bytearray(self.max_size)" in inspect.getsource(sslproto.SSLProtocol.__init__)
    assert isinstance(sslproto.SSLProtocol.max_size, int)
    limits: list[dict[str, int]] = []

    class Transport(asyncio.Transport):
        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            limits.append({"high": high or 0})

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return default

    async def connect() -> None:
        config = uvicorn.Config(lambda *_: None, log_config=None, lifespan="off", ws="none")
        config.load()
        connection: Any = Connection(config=config, server_state=ServerState(), app_state={})
        connection.connection_made(Transport())

    asyncio.run(connect())
    assert limits == [{"high": WRITE_BUFFER}]
