"""The site's handler as a Flower ClientApp: decode, answer, encode; nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from wardround.client.round import answer
from wardround.client.site import Site
from wardround.core.errors import PeerError
from wardround.runtime.flower_codec import addressee, decode_request, encode_reply


def client_app(sites: Mapping[tuple[str, str], Site]) -> ClientApp:
    """An app that serves these sites, by run and name: one at a hospital, many in a simulation."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
        site = sites.get(addressee(message.content))
        if site is None:
            raise PeerError("the request is for a run or a site that is not served here")
        request = decode_request(message.content, site.strategy.broadcast_layout())
        records, _ = encode_reply(answer(request, site))
        return Message(records, reply_to=message)

    return app
