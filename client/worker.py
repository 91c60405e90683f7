"""The site's resident worker: takes tasks from the node and answers them with our own app, in this process.

With supernode.py and node_state.py the site's only imports of Flower's internals. The bundle that a task
names is not looked at: what runs is the installed package. The app is built once and keeps its models between
messages.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from wardround.client.child import DEADLINE, hush_flower
from wardround.client.polling import Polling

LOG = logging.getLogger(__name__)

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
UNKNOWN_ERROR = 0
"""Flower's code for an error of no kind of its own."""
HEARTBEAT_S = 10.0
RETRY_S = 60.0
"""For so long a call to the node is tried again; a node that starts anew takes seconds."""
LOCAL = Polling(least_s=0.02, most_s=0.25)
BACKSTOP_S = 5.0
"""After the deadline, for a worker whose interpreter is stuck in foreign code."""


def serve_tasks(
    address: str,
    secret: bytes,
    app: ClientApp,
    deadline_s: float,
    idle: Callable[[float], None] = lambda _: None,
    closing: threading.Event | None = None,
) -> None:
    """Answer messages until this process ends, or is to close and has none in hand.

    Args:
        address: `host:port` of the node's Runtime API.
        secret: Lets this process take tasks.
        app: Answers messages.
        deadline_s: Seconds that one message may take; then this process ends with the code `DEADLINE`.
        idle: Is told between messages for how many seconds there was none.
        closing: Set when no further message is to be taken.
    """
    hush_flower()
    node = _client(address, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[ACQUIRE]))
    last = time.monotonic()
    while closing is None or not closing.is_set():
        token = _next_task(node)
        if token is None:
            quiet = time.monotonic() - last
            idle(quiet)
            time.sleep(LOCAL.pause_s(quiet, random.random()))  # noqa: S311 - nothing hangs on it
            continue
        try:
            _serve_one(_client(address, RuntimeTokenHttpInterceptor(token)), app, deadline_s)
        except (httpx.HTTPError, RuntimeError, ValueError) as error:
            LOG.warning("a task is dropped: the node does not know it any more (%s)", type(error).__name__)
        last = time.monotonic()


def _next_task(node: RuntimeHttpClient) -> str | None:
    try:
        answer = node.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
    except httpx.HTTPError as error:
        LOG.info("the node does not answer yet (%s)", type(error).__name__)
        time.sleep(LOCAL.most_s)
        return None
    return answer.token if answer.HasField("task") and answer.token else None


def _serve_one(client: RuntimeHttpClient, app: ClientApp, deadline_s: float) -> None:
    try:
        with _deadline(deadline_s), _heartbeats(client):
            message, context, _, _ = pull_task_input(client)
            reply, status = answer_with(app, message, context)
            push_message(client, reply, context)
            push_task_output(client, context, status, "")
    finally:
        client.close()


def answer_with(app: ClientApp, message: Message, context: Context) -> tuple[Message, str]:
    """The app's reply; where it breaks, an error that names the kind of exception and nothing of its text."""
    try:
        return app(message=message, context=context), SubStatus.COMPLETED
    except Exception as error:
        LOG.exception("a message cannot be answered")
        return Message(Error(UNKNOWN_ERROR, type(error).__name__), reply_to=message), SubStatus.FAILED


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """End this process when the block takes longer, even where no Python thread gets its turn any more."""
    timer = threading.Timer(seconds, _too_late, (seconds,))
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + BACKSTOP_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()


def _too_late(seconds: float) -> None:
    LOG.error("a message took longer than %.0f s: the worker ends, and is started anew", seconds)
    os._exit(DEADLINE)


@contextmanager
def _heartbeats(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the node that somebody works on its task."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            with suppress(httpx.HTTPError):
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    thread = threading.Thread(target=beat, name="wardround-heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _client(
    address: str, permission: RuntimeTokenHttpInterceptor | SuperExecAuthHttpInterceptor
) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        address,
        insecure=True,  # the loopback interface; what it carries never leaves this machine
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), permission],
        retry_invoker=RetryInvoker(
            lambda: exponential(base_delay=0.1, max_delay=2),
            httpx.TransportError,
            max_tries=None,
            max_time=RETRY_S,
        ),
    )
