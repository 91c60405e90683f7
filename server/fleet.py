"""Flower's fleet routes, as far as they are served, and the app bundle that Flower wants with a run.

With link_state.py, link_grid.py and superlink.py the server's only imports of Flower's internals.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.error import http_error_translator
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.routers.fleet import node_auth
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as flowers_fleet_router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from wardround.server.link_state import LinkState

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


def fleet_app(state: LinkState) -> FastAPI:
    """Flower's fleet routes that `FLEET` names, behind Flower's node authentication; nothing else exists."""
    # Flower's own 300 s are for a clock that is late; one that is 6 s early it refuses.
    node_auth.TIMESTAMP_TOLERANCE, node_auth.SYSTEM_TIME_TOLERANCE = 0, CLOCK_S
    router = APIRouter()
    router.routes.extend(
        route for route in flowers_fleet_router.routes if getattr(route, "path", "") in FLEET
    )
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
            Middleware(BaseHTTPMiddleware, dispatch=_in_its_own_name),
        ],
    )
    factory = LinkStateFactory(state.database_url, state.federation_manager, state.objects)
    factory.state_instance = state
    app.state.linkstate_factory = factory
    app.state.enable_supernode_auth = True
    app.include_router(router)
    return app


async def _in_its_own_name(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """A node answers for itself: Flower does not compare a reply's sender with the node that it let in."""
    message = getattr(request.state, "protobuf_request", None)
    if isinstance(message, PushMessagesRequest) and (
        len(message.messages_list) != 1
        or len(message.message_object_trees) != 1
        or message.messages_list[0].metadata.src_node_id != message.node.node_id
    ):
        raise HTTPException(401, "a reply in the name of another node")
    return await call_next(request)


def empty_bundle() -> bytes:
    """The bundle of every run; the same bytes each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), BUNDLE)
    return buffer.getvalue()
