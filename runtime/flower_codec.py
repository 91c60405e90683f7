"""Requests and replies as Flower records: one packed array and one small JSON manifest each.

Cost in Flower grows with the number of arrays, so there is exactly one for the vector and one for
the counters. Nothing is pickled. Only Flower's public API is used here.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.core.errors import PeerError
from wardround.core.messages import Reply, Request
from wardround.core.packed import Array, Layout, Packed

M = TypeVar("M", bound=BaseModel)
PROTOCOL = 1
LARGEST_MANIFEST = 1 << 20


class _Manifest(BaseModel):
    """Fields that requests and replies share; strict, since it comes from the other side."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    protocol: int = Field(ge=PROTOCOL, le=PROTOCOL)
    run_id: str = Field(max_length=256)
    plan_digest: str = Field(max_length=64)
    round: int = Field(ge=1)
    stage: int = Field(ge=0, le=7)
    attempt: int = Field(ge=0)
    site: str = Field(min_length=1, max_length=200)
    layout_digest: str = Field(max_length=64)


class _RequestManifest(_Manifest):
    train: bool
    evaluate: bool
    cohort_size: int = Field(ge=1)


class _ReplyManifest(_Manifest):
    status: str = Field(pattern="^(ok|refused|failed)$")
    code: str = Field(max_length=100)
    reason: str = Field(max_length=2000)
    counters_digest: str = Field(max_length=64)
    local: dict[str, float]


def encode_request(request: Request) -> tuple[RecordDict, int]:
    """Records of a request, and the bytes of their contents."""
    manifest = _RequestManifest(
        protocol=PROTOCOL,
        run_id=request.run_id,
        plan_digest=request.plan_digest,
        round=request.round,
        stage=request.stage,
        attempt=request.attempt,
        site=request.site,
        layout_digest=request.broadcast.layout.digest,
        train=request.train,
        evaluate=request.evaluate,
        cohort_size=request.cohort_size,
    )
    return _records(manifest, {"broadcast": request.broadcast.vector})


def decode_request(records: RecordDict, layout: Layout) -> Request:
    """Read a request whose broadcast follows `layout`.

    Raises:
        PeerError: Anything missing, unknown, too large, of another layout or type.
    """
    manifest = _manifest(records, _RequestManifest)
    broadcast = _array(records, "broadcast")
    if manifest.layout_digest != layout.digest:
        raise PeerError(
            "the broadcast has another layout", found=manifest.layout_digest[:12], expected=layout.digest[:12]
        )
    if broadcast.dtype != np.float32:
        raise PeerError("the broadcast has the wrong type", found=broadcast.dtype, expected="float32")
    return Request(
        run_id=manifest.run_id,
        plan_digest=manifest.plan_digest,
        round=manifest.round,
        site=manifest.site,
        train=manifest.train,
        evaluate=manifest.evaluate,
        broadcast=Packed(layout, broadcast),
        cohort_size=manifest.cohort_size,
        stage=manifest.stage,
        attempt=manifest.attempt,
    )


class Addressee(NamedTuple):
    """Whom a request is for, and in which stage: what has to be known before the rest can be read."""

    run_id: str
    site: str
    stage: int


def addressee(records: RecordDict) -> Addressee:
    """The run and the site that a request is for (one Flower node may serve several), and the stage.

    Raises:
        PeerError: There is no valid manifest.
    """
    manifest = _manifest(records, _RequestManifest)
    return Addressee(manifest.run_id, manifest.site, manifest.stage)


def encode_reply(reply: Reply) -> tuple[RecordDict, int]:
    """Records of a reply, and the bytes of their contents."""
    manifest = _ReplyManifest(
        protocol=PROTOCOL,
        run_id=reply.run_id,
        plan_digest=reply.plan_digest,
        round=reply.round,
        stage=reply.stage,
        attempt=reply.attempt,
        site=reply.site,
        layout_digest=reply.statistics_layout_digest,
        status=reply.status,
        code=reply.code,
        reason=reply.reason[:2000],
        counters_digest=reply.counters.layout.digest if reply.counters else "",
        local=reply.local,
    )
    arrays: dict[str, Array] = {}
    if reply.statistics is not None:
        arrays["statistics"] = reply.statistics
    if reply.counters is not None:
        arrays["counters"] = reply.counters.vector
    return _records(manifest, arrays)


def decode_reply(records: RecordDict, counters_layout: Layout) -> Reply:
    """Read a reply; layout, shape and dtype of the contribution are the intake's to check.

    Raises:
        PeerError: Anything missing, unknown or too large.
    """
    manifest = _manifest(records, _ReplyManifest)
    counters = None
    if manifest.counters_digest:
        vector = _array(records, "counters")
        if manifest.counters_digest != counters_layout.digest:
            raise PeerError("the reply's counters have another layout")
        counters = Packed(counters_layout, vector)
    statistics = _array(records, "statistics") if manifest.layout_digest else None
    return Reply(
        run_id=manifest.run_id,
        plan_digest=manifest.plan_digest,
        round=manifest.round,
        site=manifest.site,
        stage=manifest.stage,
        attempt=manifest.attempt,
        status=manifest.status,  # type: ignore[arg-type]  # the pattern of the manifest allows just these
        code=manifest.code,
        reason=manifest.reason,
        statistics=statistics,
        statistics_layout_digest=manifest.layout_digest,
        counters=counters,
        local=manifest.local,
    )


def _records(manifest: BaseModel, arrays: dict[str, Array]) -> tuple[RecordDict, int]:
    text = manifest.model_dump_json()
    packed = ArrayRecord({name: FlowerArray(np.ascontiguousarray(array)) for name, array in arrays.items()})
    records = RecordDict({"manifest": ConfigRecord({"json": text}), "arrays": packed})
    return records, len(text) + sum(array.nbytes for array in arrays.values())


def _manifest(records: RecordDict, model: type[M]) -> M:
    config = records.config_records.get("manifest")
    text = config.get("json") if config is not None else None
    if not isinstance(text, str) or len(text) > LARGEST_MANIFEST:
        raise PeerError(
            "the message has no manifest, or too large a one",
            expected=f"JSON of at most {LARGEST_MANIFEST} bytes",
        )
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        fields = [".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)]
        raise PeerError(
            "the message's manifest is not valid",
            found=", ".join(filter(None, fields[:5])) or "no JSON object",
        ) from error


def _array(records: RecordDict, name: str) -> Array:
    arrays = records.array_records.get("arrays")
    if arrays is None or name not in arrays:
        raise PeerError(f"the message lacks its array {name!r}")
    try:
        value: Any = arrays[name].numpy()
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise PeerError(f"the array {name!r} cannot be read", found=type(error).__name__) from error
    array: Array = np.asarray(value)
    if array.ndim != 1:
        raise PeerError(
            f"the array {name!r} has the wrong shape", found=array.shape, expected="one dimension"
        )
    return array
