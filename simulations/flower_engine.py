"""Flower's own simulation engine in this process, without Ray, over one shared base model.

Every import of Flower's internals by the simulator stands in this file;
tests/contract/test_flower_internals.py fails loudly when one of them moves.
Flower's nodes are delivery lanes here: which site a message is for stands in the message.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import RUN_ID_NUM_BYTES, SUPERLINK_NODE_ID, TASK_ID_NUM_BYTES, ErrorCode
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.server.superlink.linkstate.utils import generate_rand_int_from_bytes
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

PULL_INTERVAL_S = 0.01


@dataclass(frozen=True)
class _Work:
    """One message for the client app, and where its answer goes."""

    message: Message
    context: Context
    answer: Future[Message] = field(default_factory=Future)


class _CallersThread(Backend):
    """Hands every message to the thread that called `simulate`, one at a time (sites share one model).

    To that thread and no other, since each thread that computes with torch gets a set of OpenMP threads of
    its own, and two sets on the same cores get in each other's way.
    """

    def __init__(self) -> None:
        super().__init__({})
        self._works: Queue[_Work | None] = Queue()
        self._lock = threading.Lock()
        self._unanswered: _Work | None = None
        self._closed = False

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        self._app = app_fn()

    @property
    def num_workers(self) -> int:
        return 1

    def is_worker_idle(self) -> bool:
        return self._works.empty()

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        work = _Work(message, context)
        with self._lock:
            if self._closed:
                return _interrupted(message), context
            self._unanswered = work
            self._works.put(work)
        return work.answer.result(), context

    def serve(self) -> None:
        """Answer what comes until `finish`; whoever still waits when this thread is interrupted is let go."""
        try:
            while (work := self._works.get()) is not None:
                try:
                    work.answer.set_result(self._app(message=work.message, context=work.context))
                except Exception as error:  # noqa: BLE001 - the engine makes it the site's named failure
                    work.answer.set_exception(error)
        finally:
            with self._lock:
                self._closed = True
                if self._unanswered is not None and not self._unanswered.answer.done():
                    self._unanswered.answer.set_result(_interrupted(self._unanswered.message))

    def finish(self) -> None:
        """No more work comes."""
        self._works.put(None)

    def terminate(self) -> None:
        """The engine has ended, in whatever way."""
        self.finish()


def _interrupted(message: Message) -> Message:
    return Message(Error(ErrorCode.UNKNOWN, "the simulation was interrupted"), reply_to=message)


class _Stop(threading.Event):
    """The end of the engine; Flower's extractor waits on it, for 0.1 s between two looks for messages.

    `news` ends that pause, so that a message goes out when it is sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self._news = threading.Semaphore(0)

    def news(self, looks: int) -> None:
        """There are messages; a look takes one a node, so that the fullest node needs so many looks."""
        if looks:
            self._news.release(looks)

    def wait(self, timeout: float | None = None) -> bool:
        """Until the end, the next news or the timeout; gives whether it is the end."""
        if not self.is_set():
            self._news.acquire(timeout=timeout)
        return self.is_set()


class _Messages(Queue[Any]):
    """A queue between Flower's threads, whose readers would wait for a second when the engine has ended."""

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        """The next message.

        Raises:
            Empty: None came in time, or none comes any more.
        """
        message = super().get(block, timeout)
        if message is None:
            raise Empty
        return message  # type: ignore[no-any-return]  # only `close` puts anything else in

    def close(self) -> None:
        """No more messages come: whoever waits is let go."""
        self.put(None)


class _StoppableGrid(InMemoryGrid):
    """Flower's grid, except that nobody waits on it for sites that are no longer served."""

    def __init__(self, factory: LinkStateFactory, stop: _Stop) -> None:
        super().__init__(factory, pull_interval=PULL_INTERVAL_S)
        self._stop = stop

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        lanes = Counter(message.metadata.dst_node_id for message in messages)
        ids = super().push_messages(messages)
        self._stop.news(max(lanes.values(), default=0))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self._stop.is_set():
            raise KeyboardInterrupt  # the engine was interrupted; the server's thread ends as well
        return super().pull_messages(message_ids)


def simulate(server: Callable[[Grid, list[int]], None], client: ClientApp, *, lanes: int) -> None:
    """Run a server function against a client app on Flower's engine, in this process.

    Args:
        server: Gets the grid and the ids of the nodes; the simulation ends when it returns.
        client: Answers messages.
        lanes: Number of Flower nodes.

    Raises:
        BaseException: Whatever `server` raised.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    run = Run.create_empty(run_id=generate_rand_int_from_bytes(RUN_ID_NUM_BYTES))
    run.primary_task_id = generate_rand_int_from_bytes(TASK_ID_NUM_BYTES)
    run.federation_id = NOOP_FEDERATION_ID
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run.run_id, SUPERLINK_NODE_ID
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    state: Any = factory.state()  # the in-memory one, whose tables are filled by hand
    state.run_ids[run.run_id] = RunRecord(run=run)
    state.task_store[run.primary_task_id] = Task(task_id=run.primary_task_id, run_id=run.run_id)
    stop, inbox, outbox = _Stop(), _Messages(), _Messages()
    grid = _StoppableGrid(factory, stop)
    grid.set_run(run)
    nodes = vce_api._register_nodes(lanes, factory)  # noqa: SLF001 - Flower has no public way in
    stores = vce_api._register_node_info_stores(nodes, run, None)  # noqa: SLF001 - as above

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        server(grid, list(nodes))

    backend = _CallersThread()
    raised: list[BaseException] = []

    def end() -> None:
        stop.set()
        stop.news(1)
        inbox.close()
        outbox.close()
        backend.finish()

    def in_thread(name: str, work: Callable[[], Any]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
                raised.append(error)
            finally:
                end()

        thread = threading.Thread(target=guarded, name=name)
        thread.start()
        return thread

    context = Context(run_id=run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={})
    backend.build(lambda: client)
    # What `vce_api.run_api` starts, over queues that let their readers go.
    threads = [
        in_thread("flower-extractor", lambda: vce_api.add_messages_to_queue(state, inbox, nodes, stop)),
        in_thread("flower-injector", lambda: vce_api.put_message_into_state(state, outbox, stop)),
        in_thread(
            "flower-worker", lambda: vce_api.worker(inbox, outbox, stores, backend, stop, VceMetrics())
        ),
        in_thread("wardround-server", lambda: app(grid, context)),
    ]
    try:
        backend.serve()
    finally:
        end()
        for thread in threads:
            thread.join()
    if raised:
        raise raised[0]
