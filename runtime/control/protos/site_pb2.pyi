from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SiteStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SiteProcess(_message.Message):
    __slots__ = ("name", "pid", "restarts", "code", "reason", "note")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    pid: int
    restarts: int
    code: int
    reason: str
    note: str
    def __init__(self, name: _Optional[str] = ..., pid: _Optional[int] = ..., restarts: _Optional[int] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class SiteStatusReply(_message.Message):
    __slots__ = ("site", "pid", "started_s", "processes")
    SITE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    site: str
    pid: int
    started_s: float
    processes: _containers.RepeatedCompositeFieldContainer[SiteProcess]
    def __init__(self, site: _Optional[str] = ..., pid: _Optional[int] = ..., started_s: _Optional[float] = ..., processes: _Optional[_Iterable[_Union[SiteProcess, _Mapping]]] = ...) -> None: ...

class SiteStopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SiteStopReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
