"""A control service that is made when a test runs: it echoes, fails, streams and waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from wardround.runtime.control.methods import Call, Service


def _descriptor() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="echo.proto", package="echo.v1", syntax="proto3")
    for name in ("Asked", "Answered"):
        message = file.message_type.add(name=name)
        message.field.add(name="text", number=1, type=9, label=1)
        message.field.add(name="size", number=2, type=5, label=1)
    service = file.service.add(name="Echo")
    for name, client, server in (("Say", 0, 0), ("Count", 0, 1), ("Join", 1, 0), ("Hang", 0, 0)):
        service.method.add(
            name=name, input_type=".echo.v1.Asked", output_type=".echo.v1.Answered",
            client_streaming=bool(client), server_streaming=bool(server),
        )  # fmt: skip
    pool = descriptor_pool.Default()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("echo.v1.Echo")


ECHO = _descriptor()
Asked = GetMessageClass(ECHO.methods_by_name["Say"].input_type)
Answered = GetMessageClass(ECHO.methods_by_name["Say"].output_type)


class Echo:
    """What answers; `raises` is raised by each call."""

    def __init__(self, raises: BaseException | None = None) -> None:
        self.raises = raises
        self.free = threading.Event()
        self.calls = 0
        self.ended = 0

    def service(self, protocol: int = 1) -> Service:
        handlers = {"Say": self.say, "Count": self.count, "Join": self.join, "Hang": self.hang}
        return Service(ECHO, protocol, handlers)

    def say(self, request: Any, call: Call) -> Any:
        self.calls += 1
        if self.raises is not None:
            raise self.raises
        return Answered(text=request.text, size=len(request.text))

    def count(self, request: Any, call: Call) -> Iterator[Any]:
        """So many numbers; with a text, then nothing more until the caller is gone."""
        try:
            for number in range(request.size):
                yield Answered(size=number)
            if self.raises is not None:
                raise self.raises
            gone = threading.Event()
            call.on_end(gone.set)
            if request.text:
                gone.wait(20)
        finally:
            self.ended += 1

    def join(self, parts: Iterator[Any], call: Call) -> Any:
        return Answered(text="".join(part.text for part in parts))

    def hang(self, request: Any, call: Call) -> Any:
        self.free.wait(20)
        return Answered()
