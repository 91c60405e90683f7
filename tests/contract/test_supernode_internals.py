"""Flower's internals that a site's node and worker stand on: this fails loudly when one of them moves."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import Status
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.runtime import run_clientapp

from wardround.client import worker
from wardround.client.child import QUIET
from wardround.client.node_state import SiteNodeState
from wardround.client.supernode import PIECE


def names(function: Any) -> list[str]:
    """Its parameters."""
    return list(inspect.signature(function).parameters)


def test_the_node_starts_with_the_same_arguments() -> None:
    """All that are given exist; isolation in a process of ours, no installing."""
    given = {
        "state_factory", "server_address", "node_config", "root_certificates", "insecure",
        "authentication_keys", "isolation", "superexec_auth_secret", "runtime_dependency_install",
    }  # fmt: skip
    assert given <= set(names(start_client_internal.start_client_internal))
    assert names(create_app) == ["state_factory", "superexec_auth_secret"]
    assert names(NodeStateFactory) == ["objectstore_factory"]
    assert isinstance(NodeStateFactory(ObjectStoreFactory()).state(), InMemoryNodeState)


def test_the_loop_pauses_where_it_is_thought_to() -> None:
    """3 s without a message, by the module's `time`, and half a second while the worker is at it."""
    loop = inspect.getsource(start_client_internal.start_client_internal)
    assert loop.count("time.sleep(") == loop.count("time.sleep(3)") == 1
    assert loop.count("_pull_and_store_message(") == 1
    pushing = inspect.getsource(start_client_internal._push_messages)
    assert pushing.count("time.sleep(") == pushing.count("time.sleep(0.5)") == 2
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(start_client_internal)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
    }
    assert used == {"sleep"}
    assert "FleetHttpClient.from_server_address(" in inspect.getsource(
        fleet_http_connection.http_request_response
    )
    assert {"path", "rpc_method", "request", "response_type", "timeout"} <= set(
        names(FleetHttpClient._unary_unary)
    )
    assert f'path="/v1/fleet{PIECE}"' in inspect.getsource(FleetHttpClient.PushObject)


def test_the_worker_finds_its_calls() -> None:
    """Taking a task, fetching its message, answering."""
    assert names(run_clientapp.pull_task_input) == ["client"]
    assert names(run_clientapp.push_message) == ["client", "message", "context"]
    assert names(run_clientapp.push_task_output) == ["client", "context", "sub_status", "details"]
    assert {"AcquireTask", "SendTaskHeartbeat"} <= set(dir(RuntimeHttpClient))
    assert worker.ACQUIRE in inspect.getsource(RuntimeHttpClient.AcquireTask)
    assert names(SuperExecAuthHttpInterceptor) == ["master_secret", "protected_methods"]
    assert {"max_tries", "max_time"} <= set(names(RetryInvoker))


def test_flower_calls_nobody_when_it_is_told_not_to() -> None:
    """In a fresh process with the children's settings."""
    code = (
        "import json, flwr.supercore.telemetry as t, flwr.supercore.update_check as u, inspect\n"
        "print(json.dumps([t.FLWR_TELEMETRY_ENABLED, 'FLWR_DISABLE_UPDATE_CHECK' in inspect.getsource(u)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ | QUIET
    )
    assert json.loads(done.stdout) == ["0", True]


def node_with_a_message() -> tuple[SiteNodeState, Message, int]:
    """A node's state as it is when a message has been announced, before its contents are here."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    state = SiteNodeState(ObjectStoreFactory().store())
    state.set_node_id(5)
    message = Message(RecordDict({"c": ConfigRecord({"x": 1})}), 5, "train", ttl=60)
    message.metadata.__dict__["_message_id"] = message.object_id
    task_id = state.create_task(task_type="flwr-clientapp", run_id=7, fab_hash="0" * 64)
    assert task_id
    state.object_store.preregister(7, get_object_tree(message))
    state.store_message(message)
    return state, message, task_id


def fill(state: SiteNodeState, message: Message) -> None:
    """The contents arrive."""
    for object_id, part in get_all_nested_objects(message).items():
        state.object_store.put(object_id, part.deflate())


def replies(state: SiteNodeState) -> list[Message]:
    """What the node would send."""
    return list(state.get_messages_legacy(is_reply=True))


def test_a_task_is_given_when_its_message_is_whole() -> None:
    """Not before, and once."""
    state, message, task_id = node_with_a_message()
    assert state.claim_task(task_id) is None
    fill(state, message)
    assert state.claim_task(task_id)
    assert state.claim_task(task_id) is None


@pytest.mark.parametrize("moment", ["taken", "begun", "fetched", "half answered"])
def test_a_worker_that_ends_is_answered_for_whenever_it_ends(moment: str) -> None:
    """Between any two of its calls; and nothing is left that a node could wait for."""
    state, message, task_id = node_with_a_message()
    fill(state, message)
    assert state.claim_task(task_id)
    if moment != "taken":
        assert state.activate_task(task_id)
    if moment in {"fetched", "half answered"}:
        assert state.get_messages_legacy(run_ids=[7], is_reply=False, limit=1)
    if moment == "half answered":
        reply = Message(RecordDict({"c": ConfigRecord({"x": 2})}), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        session = state.start_session(7)
        state.store_message_and_object_tree(reply, get_object_tree(reply), session)
    assert state.fail_unanswered("it ended") == 1
    (error,) = replies(state)
    assert error.error.reason == "it ended"
    assert error.metadata.reply_to_message_id == message.metadata.message_id
    assert all(state.object_store.get(part) for part in get_all_nested_objects(error))
    assert state.get_tasks(statuses=[Status.PENDING, Status.STARTING, Status.RUNNING]) == []
    assert state.fail_unanswered("again") == 0


def test_an_answer_that_is_whole_is_not_replaced() -> None:
    """The worker ended after its work was done."""
    state, message, task_id = node_with_a_message()
    fill(state, message)
    assert state.claim_task(task_id)
    assert state.activate_task(task_id)
    assert state.get_messages_legacy(run_ids=[7], is_reply=False, limit=1)
    reply = Message(RecordDict({"c": ConfigRecord({"x": 2})}), reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    session = state.start_session(7)
    state.store_message_and_object_tree(reply, get_object_tree(reply), session)
    for object_id, part in get_all_nested_objects(reply).items():
        assert state.store_object(7, session, object_id, part.deflate())
    assert state.fail_unanswered("it ended") == 1
    (sent,) = replies(state)
    assert sent.has_content()


def test_a_message_that_nobody_has_taken_waits_for_the_next_worker() -> None:
    """It is not failed."""
    state, message, task_id = node_with_a_message()
    fill(state, message)
    assert state.fail_unanswered("it ended") == 0
    assert replies(state) == []
    assert state.claim_task(task_id)


def test_what_an_app_raises_goes_out_by_its_kind_only() -> None:
    """Our worker's answer; Flower's own would carry the text."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        raise KeyError("the patient's name")

    _, message, _ = node_with_a_message()
    context: Any = None
    reply, status = worker.answer_with(app, message, context)
    assert reply.error.reason == "KeyError"
    assert status == "failed"


def test_a_reply_is_sent_when_all_of_it_is_here() -> None:
    """It is recorded as a whole before its first byte; Flower announces a reply whose pieces come later."""
    state, message, task_id = node_with_a_message()
    fill(state, message)
    assert state.claim_task(task_id)
    reply = Message(RecordDict({"manifest": ConfigRecord({"json": '{"status": "ok"}'})}), reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    state.store_message_and_object_tree(reply, get_object_tree(reply), state.start_session(7))
    assert replies(state) == []
    fill(state, reply)
    assert [found.metadata.message_id for found in replies(state)] == [reply.object_id]
    assert replies(state) == [], "once"
    assert state.manifest(reply.object_id) == {"status": "ok"}
    assert state.size(reply.object_id) == len(reply.deflate())
    assert state.asked[message.metadata.message_id].type == "train"
    state.delete_messages(message_ids=[reply.object_id, message.metadata.message_id])
    assert state.asked == {}


def test_a_manifest_that_cannot_be_read_is_none() -> None:
    """Whatever a worker writes there."""
    for text in ("", "[]", "{", '"x"'):
        state, message, _ = node_with_a_message()
        reply = Message(RecordDict({"manifest": ConfigRecord({"json": text})}), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        state.object_store.preregister(7, get_object_tree(reply))
        fill(state, reply)
        assert state.manifest(reply.object_id) == {}
    assert state.manifest("0" * 64) == {}
