from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("site", "identity")
    SITE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    site: str
    identity: bytes
    def __init__(self, site: _Optional[str] = ..., identity: _Optional[bytes] = ...) -> None: ...

class SignRequest(_message.Message):
    __slots__ = ("statement",)
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    def __init__(self, statement: _Optional[bytes] = ...) -> None: ...

class SignReply(_message.Message):
    __slots__ = ("signature",)
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signature: bytes
    def __init__(self, signature: _Optional[bytes] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("run_id", "plan", "sum")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    plan: bytes
    sum: str
    def __init__(self, run_id: _Optional[str] = ..., plan: _Optional[bytes] = ..., sum: _Optional[str] = ...) -> None: ...

class LoadRecordRequest(_message.Message):
    __slots__ = ("place",)
    PLACE_FIELD_NUMBER: _ClassVar[int]
    place: Place
    def __init__(self, place: _Optional[_Union[Place, _Mapping]] = ...) -> None: ...

class LoadRecordReply(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    def __init__(self, record: _Optional[bytes] = ...) -> None: ...

class SaveRecordRequest(_message.Message):
    __slots__ = ("place", "record")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    place: Place
    record: bytes
    def __init__(self, place: _Optional[_Union[Place, _Mapping]] = ..., record: _Optional[bytes] = ...) -> None: ...

class SaveRecordReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("charge",)
    CHARGE_FIELD_NUMBER: _ClassVar[int]
    charge: bytes
    def __init__(self, charge: _Optional[bytes] = ...) -> None: ...

class ReserveReply(_message.Message):
    __slots__ = ("epsilon",)
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    def __init__(self, epsilon: _Optional[float] = ...) -> None: ...

class SealRequest(_message.Message):
    __slots__ = ("run_id", "round", "digest")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    digest: str
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class SealReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HasLedgerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HasLedgerReply(_message.Message):
    __slots__ = ("has",)
    HAS_FIELD_NUMBER: _ClassVar[int]
    has: bool
    def __init__(self, has: _Optional[bool] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("run_id", "round", "draw", "steps")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    draw: str
    steps: int
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., draw: _Optional[str] = ..., steps: _Optional[int] = ...) -> None: ...

class SettleReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OwnHeadRequest(_message.Message):
    __slots__ = ("sum",)
    SUM_FIELD_NUMBER: _ClassVar[int]
    sum: str
    def __init__(self, sum: _Optional[str] = ...) -> None: ...

class OwnHeadReply(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: bytes
    def __init__(self, head: _Optional[bytes] = ...) -> None: ...

class KeptHeadsRequest(_message.Message):
    __slots__ = ("sum", "sites")
    SUM_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    sum: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sum: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ...) -> None: ...

class KeptHeadsReply(_message.Message):
    __slots__ = ("heads",)
    class HeadsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    HEADS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.ScalarMap[str, bytes]
    def __init__(self, heads: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class KeepHeadsRequest(_message.Message):
    __slots__ = ("sum", "heads")
    class HeadsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    SUM_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    sum: str
    heads: _containers.ScalarMap[str, bytes]
    def __init__(self, sum: _Optional[str] = ..., heads: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class KeepHeadsReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JudgeHeadsRequest(_message.Message):
    __slots__ = ("sum", "heads")
    class HeadsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    SUM_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    sum: str
    heads: _containers.ScalarMap[str, bytes]
    def __init__(self, sum: _Optional[str] = ..., heads: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class JudgeHeadsReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
