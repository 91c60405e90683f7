"""The site's handler as a Flower ClientApp: decode, answer, encode; nothing else.

Flower sends the text of an exception to the server. So none is let out: what this file cannot answer with
a reply it answers with Flower's own error, whose reason is ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from wardround.client.round import answer
from wardround.client.site import Site
from wardround.core.errors import PeerError
from wardround.core.messages import Reply, Request
from wardround.core.plan_offers import PlanAnswer, PlanOffer
from wardround.runtime.flower_codec import addressee, decode_request, encode_reply
from wardround.runtime.flower_records import OTHER_VERSION, OtherVersionError
from wardround.runtime.offer_codec import OFFER_ACTION, decode_offer, encode_answer

LOG = logging.getLogger(__name__)
UNKNOWN_ERROR = 0
"""Flower's code for an error of no kind of its own."""


class Sites(Protocol):
    """The sites that are served here."""

    def get(self, key: tuple[str, str]) -> Site | None:
        """The site of a run and a name."""


def client_app(
    sites: Sites,
    offered: Callable[[PlanOffer], PlanAnswer] | None = None,
    shared: Callable[[Request], Request] | None = None,
) -> ClientApp:
    """An app that serves these sites, by run and name: one at a hospital, many in a simulation.

    Args:
        sites: Answer requests.
        offered: Answers offers of plans; a simulation has none.
        shared: A request as it was read → the same one, over objects that other sites of this process have.
    """
    app, last = ClientApp(), LastReply()

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
        return _guarded(message, lambda: answered(message, sites, last, shared))

    if offered is not None:

        @app.query(OFFER_ACTION)
        def offer(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
            def decided() -> Message:
                records, _ = encode_answer(offered(decode_offer(message.content)))
                return Message(records, reply_to=message)

            return _guarded(message, decided)

    return app


def _guarded(message: Message, work: Callable[[], Message]) -> Message:
    try:
        return work()
    except OtherVersionError as error:
        LOG.error("a message cannot be answered: %s", error)  # noqa: TRY400 - its story is in its words
        return Message(Error(OTHER_VERSION, error.what), reply_to=message)
    except PeerError as error:
        LOG.warning("a message cannot be answered: %s", error)
        return Message(Error(UNKNOWN_ERROR, error.what), reply_to=message)
    except Exception as error:
        LOG.exception("a message cannot be answered")
        return Message(Error(UNKNOWN_ERROR, type(error).__name__), reply_to=message)


@dataclass
class LastReply:
    """The last request, and what was answered: a node that was lost with the reply is asked the same again.

    The same bytes go out again; to mask them anew would be another attempt.
    """

    _asked: tuple[Request, str] | None = None
    _said: Reply | None = None

    def of(self, request: Request, answer: Callable[[Request], Reply]) -> Reply:
        """The same reply to the same request, or a new one."""
        broadcast = "" if request.broadcast is None else request.broadcast.digest
        asked = (replace(request, broadcast=None), broadcast)
        if asked != self._asked or self._said is None:
            self._said = answer(request)
            self._asked = asked
        return self._said


def answered(
    message: Message,
    sites: Sites,
    last: LastReply | None = None,
    shared: Callable[[Request], Request] | None = None,
) -> Message:
    """The site's reply as a Flower message.

    Args:
        message: A request.
        sites: Answer it.
        last: What was answered before; None where nothing is asked twice.
        shared: As of `client_app`.

    Raises:
        PeerError: The message is malformed, or for a run, a site or a stage that is not served here.
    """
    run_id, name, stage = addressee(message.content)
    site = sites.get((run_id, name))
    if site is None:
        raise PeerError("the request is for a run or a site that is not served here")
    if not 0 <= stage < site.strategy.stages:
        raise PeerError("the request is for a stage that the strategy does not have")
    request = decode_request(message.content, site.strategy.broadcast_layout(stage))
    request = request if shared is None else shared(request)
    last = LastReply() if last is None else last
    records, _ = encode_reply(last.of(request, lambda asked: answer(asked, site)))
    return Message(records, reply_to=message)
