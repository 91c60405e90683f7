"""Flower's fleet routes, as far as they are served, and the app bundle that Flower wants with a run.

With link_state.py, link_grid.py and superlink.py the server's only imports of Flower's internals.
"""

from __future__ import annotations

import inspect
import io
import logging
import zipfile
from collections.abc import Callable, Mapping
from http import HTTPStatus

import anyio
import anyio.to_thread
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.error import ApiErrorCode, FlowerError, http_error_translator
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES, ProtobufTranslationMiddleware
from flwr.superlink.routers.fleet import node_auth
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.routers.fleet.router import router as flowers_fleet_router
from google.protobuf.message import Message as ProtobufMessage
from starlette.datastructures import State

from wardround.core.errors import StorageError
from wardround.server.link_state import LinkState
from wardround.server.listener import Receive, Scope, Send

LOG = logging.getLogger(__name__)
MIB = 2**20
SMALL = 64 * 1024
FLEET: Mapping[str, int] = {
    "/v1/fleet/activate-node": SMALL,
    "/v1/fleet/deactivate-node": SMALL,
    "/v1/fleet/send-node-heartbeat": SMALL,
    "/v1/fleet/pull-messages": SMALL,
    "/v1/fleet/push-messages": MIB,
    "/v1/fleet/get-run": SMALL,
    "/v1/fleet/get-fab": SMALL,
    "/v1/fleet/pull-object": SMALL,
    "/v1/fleet/push-object": 16 * MIB,
    "/v1/fleet/confirm-message-received": SMALL,
}
"""Flower's routes that are served → most bytes of a body. A reply travels in pieces of at most 5 MB.
Registering a node and taking it back are not among them: the roster decides who is one."""
CLOCK_S = 300
"""Seconds by which a site's clock and the server's may differ, either way."""
UNKEPT = "the server cannot keep what it is sent"
"""What a node is told of a full disk."""
BUNDLE = """[build-system]
requires = []
build-backend = "none"
[project]
name = "wardround-plan"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "wardround"
[tool.flwr.app.components]
serverapp = "none:none"
clientapp = "none:none"
"""
"""Flower wants an app bundle with a run. Ours holds no code, and sites read none."""


class FleetApp:
    """Flower's fleet routes that `FLEET` names (ASGI), behind Flower's node authentication; no other one.

    Wire, authentication and handlers are Flower's. What is ours is the way between them: one turn of one
    thread for a request, where Flower's own application takes five and four layers of middleware, which cost
    more than most requests do.

    Args:
        state: What the handlers work on.
        threads: Requests that are worked at together.
    """

    def __init__(self, state: LinkState, threads: int) -> None:
        # Flower's own 300 s are for a clock that is late; one that is 6 s early it refuses.
        vars(node_auth).update(TIMESTAMP_TOLERANCE=0, SYSTEM_TIME_TOLERANCE=CLOCK_S)
        factory = LinkStateFactory(state.database_url, state.federation_manager, ObjectStoreFactory())
        factory.state_instance = state
        self.state = State({"linkstate_factory": factory, "enable_supernode_auth": True})
        self._link = state
        self._threads = threads
        self._limit: anyio.CapacityLimiter | None = None
        self.handlers: Mapping[str, Callable[..., ProtobufMessage]] = {
            route.path: inspect.unwrap(route.endpoint)
            for route in flowers_fleet_router.routes
            if isinstance(route, APIRoute) and route.path in FLEET
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["app"] = self  # where Flower looks for its state
        response = await http_error_translator(Request(scope, receive), self._answer)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        kind = PROTOBUF_REQUEST_TYPES.get((request.method, path))
        if kind is None or path not in self.handlers:
            raise HTTPException(404)
        translation = ProtobufTranslationMiddleware
        translation._check_request_media_type(request)  # noqa: SLF001 - Flower's translation, without its layer
        asked = translation._parse_request(await request.body(), kind)  # noqa: SLF001 - as above
        request.state.protobuf_request = asked
        if self._limit is None:  # needs a running loop
            self._limit = anyio.CapacityLimiter(self._threads)
        try:
            content = await anyio.to_thread.run_sync(self._handle, request, limiter=self._limit)
        except StorageError:  # the log has it already, once (server/full_disk.py); the node tries again
            return JSONResponse({"detail": UNKEPT}, HTTPStatus.SERVICE_UNAVAILABLE)
        except FlowerError as error:
            if error.code != ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
                raise
            LOG.info("what belongs to an earlier run is refused (%s)", path.rpartition("/")[2])
            return JSONResponse(
                error.to_json(API_ERROR_MAP[error.code].public_message),
                API_ERROR_MAP[error.code].http_status_code,
            )
        return Response(content, media_type=PROTOBUF_MEDIA_TYPE)

    def _handle(self, request: Request) -> bytes:
        authenticate_node(request)
        asked = request.state.protobuf_request
        if isinstance(asked, PushMessagesRequest):
            in_its_own_name(asked)
        answer = self.handlers[request.url.path](request=asked, state=self._link)
        content: bytes = answer.SerializeToString()
        return content


def in_its_own_name(asked: PushMessagesRequest) -> None:
    """A node answers for itself: Flower does not compare a reply's sender with the node that it let in.

    Raises:
        HTTPException: 401, it does not.
    """
    if (
        len(asked.messages_list) != 1
        or len(asked.message_object_trees) != 1
        or asked.messages_list[0].metadata.src_node_id != asked.node.node_id
    ):
        raise HTTPException(401, "a reply in the name of another node")


def empty_bundle() -> bytes:
    """The bundle of every run; the same bytes each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), BUNDLE)
    return buffer.getvalue()
