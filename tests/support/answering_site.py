"""A site's Flower app for tests: it does what a message asks for. No torch."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

PRIVATE = "the patient's name"


def app(note: str = "") -> ClientApp:
    """Answers `do` with itself, the process id and a note; or breaks, dies, hangs, sleeps."""
    flower = ClientApp()

    @flower.train()
    def train(message: Message, context: Any) -> Message:
        asked = message.content.config_records["ask"]
        do = str(asked["do"])
        if do == "raise":
            raise RuntimeError(PRIVATE)
        if do == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "hang":
            time.sleep(3600)
        if do == "slow":
            Path(note).touch()  # the test may go on
            time.sleep(float(str(asked["for_s"])))
        answer = ConfigRecord({"do": do, "pid": os.getpid(), "note": note})
        size = int(str(asked.get("size", 0)))
        if size:
            answer["data"] = os.urandom(size)
        return Message(RecordDict({"answer": answer}), reply_to=message)

    return flower
