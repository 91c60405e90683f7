"""A site's Flower app for tests: it does what a message asks for. No torch."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from wardround.core.messages import Reply
from wardround.core.packed import Layout, TensorSpec
from wardround.runtime.flower_codec import addressee, decode_request, encode_reply

LAYOUT = Layout(tensors=(TensorSpec(name="x", shape=(250_000,)),))
PRIVATE = "the patient's name"


def app(note: str = "") -> ClientApp:
    """Answers `do` with itself, the process id and a note; or breaks, dies, hangs, sleeps."""
    flower = ClientApp()

    @flower.train()
    def train(message: Message, context: Any) -> Message:
        if "ask" not in message.content.config_records:
            return requested(message)
        asked = message.content.config_records["ask"]
        do = str(asked["do"])
        if do == "raise":
            raise RuntimeError(PRIVATE)
        if do == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "hang":
            time.sleep(3600)
        if do == "stuck":
            ctypes.PyDLL(None).sleep(3600)  # keeps the interpreter's lock: no other thread gets its turn
        if do == "slow":
            Path(note).touch()  # the test may go on
            time.sleep(float(str(asked["for_s"])))
        answer = ConfigRecord({"do": do, "pid": os.getpid(), "note": note})
        size = int(str(asked.get("size", 0)))
        if size:
            answer["data"] = os.urandom(size)
        return Message(RecordDict({"answer": answer}), reply_to=message)

    return flower


def requested(message: Message) -> Message:
    """A request of the round loop's, answered with what it asked and the sum of its broadcast."""
    request = decode_request(message.content, LAYOUT)
    site = addressee(message.content).site
    assert request.broadcast is not None
    total = str(float(request.broadcast.vector.sum())).encode()
    reply = Reply(
        request.run_id, request.plan_digest, request.round, site, sums={**request.sums, "total": total}
    )
    return Message(encode_reply(reply)[0], reply_to=message)
