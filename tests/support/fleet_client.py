"""Flower's client with a site's key, without a SuperNode around it: one request of a node at a time."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from deployed import Pair
from flwr.app import Message, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from wardround.server.superlink import SuperLink

OPEN: list[FleetHttpClient] = []
"""To close at the end of a module's tests."""


def private_key(pair: Pair, site: str) -> Any:
    """A site's transport key."""
    pair.key(site)
    return load_ssh_private_key((pair.folder / f"{site}.key").read_bytes(), None)


class SiteClient:
    """Flower's client with a site's key, without a SuperNode around it."""

    def __init__(self, pair: Pair, link: SuperLink, site: str, names: str | None = None) -> None:
        key, named = (private_key(pair, one) for one in (site, names or site))
        self.public = public_key_to_bytes(named.public_key())
        self.fleet = FleetHttpClient.from_server_address(
            link.address,
            insecure=False,
            root_certificates=(pair.folder / "ca.pem").read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, named.public_key()),
            ],
        )

        OPEN.append(self.fleet)

    def activate(self) -> Node:
        """Go online."""
        request = ActivateNodeRequest(public_key=self.public, heartbeat_interval=30)
        return Node(node_id=self.fleet.ActivateNode(request).node_id)

    def pull(self, node: Node, run_id: int, *, confirm: bool = True) -> Message:
        """The next message, with its content; as if a part of it got lost, unless it is confirmed."""
        response = self.fleet.PullMessages(PullMessagesRequest(node=node))
        message = message_from_proto(response.messages_list[0])
        for tree in _trees(response.message_object_trees[0]):
            request = PullObjectRequest(node=node, run_id=run_id, object_id=tree.object_id)
            assert self.fleet.PullObject(request).object_available
        if confirm:
            message_id = message.metadata.message_id
            self.fleet.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message_id)
            )
        return message

    def announce(self, node: Node, reply: Message) -> PushMessagesResponse:
        """Say what reply is to be uploaded."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        bare = make_message(metadata=reply.metadata, content=RecordDict())
        return self.fleet.PushMessages(
            PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(bare)],
                message_object_trees=[get_object_tree(reply)],
            )
        )

    def upload(self, node: Node, reply: Message, object_id: str, session_id: str) -> bool:
        """Upload one part; gives whether the server has it."""
        return self.fleet.PushObject(
            PushObjectRequest(
                node=node,
                run_id=reply.metadata.run_id,
                object_id=object_id,
                object_content=get_all_nested_objects(reply)[object_id].deflate(),
                session_id=session_id,
            )
        ).stored

    def push(self, node: Node, reply: Message) -> list[str]:
        """Announce and upload; gives the objects that the server wanted."""
        response = self.announce(node, reply)
        for object_id in response.objects_to_push:
            self.upload(node, reply, object_id, response.session_id)
        return list(response.objects_to_push)


def _trees(tree: ObjectTree) -> list[ObjectTree]:
    return [tree, *(below for child in tree.children for below in _trees(child))]
