from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Submission(_message.Message):
    __slots__ = ("signed_plan", "submission", "initial_bytes", "initial_sha256")
    SIGNED_PLAN_FIELD_NUMBER: _ClassVar[int]
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    INITIAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    INITIAL_SHA256_FIELD_NUMBER: _ClassVar[int]
    signed_plan: bytes
    submission: str
    initial_bytes: int
    initial_sha256: bytes
    def __init__(self, signed_plan: _Optional[bytes] = ..., submission: _Optional[str] = ..., initial_bytes: _Optional[int] = ..., initial_sha256: _Optional[bytes] = ...) -> None: ...

class SubmitPart(_message.Message):
    __slots__ = ("submission", "chunk")
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    submission: Submission
    chunk: bytes
    def __init__(self, submission: _Optional[_Union[Submission, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("run_id", "wait_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    wait_s: float
    def __init__(self, run_id: _Optional[str] = ..., wait_s: _Optional[float] = ...) -> None: ...

class ExcludeRequest(_message.Message):
    __slots__ = ("run_id", "site")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    site: str
    def __init__(self, run_id: _Optional[str] = ..., site: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Run(_message.Message):
    __slots__ = ("run_id", "name", "status", "wish", "reason", "place", "excluded", "submitted", "changed", "worked_s", "down_s")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    WISH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    WORKED_S_FIELD_NUMBER: _ClassVar[int]
    DOWN_S_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    status: str
    wish: str
    reason: str
    place: int
    excluded: _containers.RepeatedScalarFieldContainer[str]
    submitted: float
    changed: float
    worked_s: float
    down_s: float
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., wish: _Optional[str] = ..., reason: _Optional[str] = ..., place: _Optional[int] = ..., excluded: _Optional[_Iterable[str]] = ..., submitted: _Optional[float] = ..., changed: _Optional[float] = ..., worked_s: _Optional[float] = ..., down_s: _Optional[float] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("runs", "unreadable", "left_out")
    class UnreadableEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUNS_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    unreadable: _containers.ScalarMap[str, str]
    left_out: int
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., unreadable: _Optional[_Mapping[str, str]] = ..., left_out: _Optional[int] = ...) -> None: ...

class SiteState(_message.Message):
    __slots__ = ("state", "round", "code", "reason")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    state: str
    round: int
    code: str
    reason: str
    def __init__(self, state: _Optional[str] = ..., round: _Optional[int] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("run", "round", "rounds", "phase", "sites", "metrics", "epsilon", "bytes_down", "bytes_up", "released_round")
    class SitesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SiteState
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SiteState, _Mapping]] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class EpsilonEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    RELEASED_ROUND_FIELD_NUMBER: _ClassVar[int]
    run: Run
    round: int
    rounds: int
    phase: str
    sites: _containers.MessageMap[str, SiteState]
    metrics: _containers.ScalarMap[str, float]
    epsilon: _containers.ScalarMap[str, float]
    bytes_down: int
    bytes_up: int
    released_round: int
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., phase: _Optional[str] = ..., sites: _Optional[_Mapping[str, SiteState]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., epsilon: _Optional[_Mapping[str, float]] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., released_round: _Optional[int] = ...) -> None: ...

class WhyReply(_message.Message):
    __slots__ = ("run", "text", "sites", "since", "ahead")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    run: Run
    text: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    since: float
    ahead: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., text: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., since: _Optional[float] = ..., ahead: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("run_id", "after", "epoch", "follow")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after: int
    epoch: str
    follow: bool
    def __init__(self, run_id: _Optional[str] = ..., after: _Optional[int] = ..., epoch: _Optional[str] = ..., follow: _Optional[bool] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("epoch", "number", "missed", "time_s", "kind", "round", "stage", "status", "site", "site_state", "sites", "metrics", "epsilon", "bytes_down", "bytes_up", "text", "record_json", "record_version")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class EpsilonEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    SITE_STATE_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RECORD_JSON_FIELD_NUMBER: _ClassVar[int]
    RECORD_VERSION_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    number: int
    missed: int
    time_s: float
    kind: str
    round: int
    stage: int
    status: str
    site: str
    site_state: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.ScalarMap[str, float]
    epsilon: _containers.ScalarMap[str, float]
    bytes_down: int
    bytes_up: int
    text: str
    record_json: str
    record_version: int
    def __init__(self, epoch: _Optional[str] = ..., number: _Optional[int] = ..., missed: _Optional[int] = ..., time_s: _Optional[float] = ..., kind: _Optional[str] = ..., round: _Optional[int] = ..., stage: _Optional[int] = ..., status: _Optional[str] = ..., site: _Optional[str] = ..., site_state: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., epsilon: _Optional[_Mapping[str, float]] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., text: _Optional[str] = ..., record_json: _Optional[str] = ..., record_version: _Optional[int] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("epoch", "number", "missed", "time_s", "level", "text")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    number: int
    missed: int
    time_s: float
    level: str
    text: str
    def __init__(self, epoch: _Optional[str] = ..., number: _Optional[int] = ..., missed: _Optional[int] = ..., time_s: _Optional[float] = ..., level: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
