"""A request that comes a second time, because its node was lost with the reply, gets the same reply."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wardround.client.flower_app import LastReply
from wardround.core.messages import Reply, Request, reply_to
from wardround.core.packed import Layout, Packed, TensorSpec

LAYOUT = Layout(tensors=(TensorSpec(name="x", shape=(4,)),))


def request(value: float = 1.0) -> Request:
    """With a broadcast."""
    vector = np.full(4, value, dtype=np.float32)
    return Request("run", "d", 1, "ward", {"training": b"offer"}, broadcast=Packed(LAYOUT, vector))


def test_only_the_very_same_request_gets_the_same_reply() -> None:
    """Whatever differs is answered anew; an older one as well, since one reply is remembered."""
    last, made = LastReply(), []

    def answer(asked: Request) -> Reply:
        made.append(asked)
        return reply_to(asked, sums={"training": bytes([len(made)])})

    first = last.of(request(), answer)
    assert last.of(request(), answer) is first
    assert len(made) == 1
    others = [
        request(2.0),
        replace(request(), round=2),
        replace(request(), attempt=1),
        replace(request(), exchange=1),
        replace(request(), sums={"training": b"another offer"}),
        replace(request(), broadcast=None),
        request(),
    ]
    for number, other in enumerate(others, start=2):
        assert last.of(other, answer).sums == {"training": bytes([number])}
