"""Requests and replies as Flower records: one small JSON manifest each, and few arrays.

Cost in Flower grows with the number of arrays, so there is exactly one for the broadcast and one of bytes for
each sum. Nothing is pickled. Only Flower's public API is used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple, TypeAlias, TypeVar

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.core.errors import PeerError
from wardround.core.messages import PLACE, Reply, Request
from wardround.core.packed import Array, Layout, Packed

M = TypeVar("M", bound=BaseModel)
PROTOCOL = 3
LARGEST_MANIFEST = 1 << 20
MOST_OPENED = 1000
"""Of the sums that come with a broadcast: one a stage, or a group."""
PLAIN = "wardround.little_endian"
"""How an array lies in its bytes: one number after the other, nothing before them. NumPy's own form begins
with a Python expression, which is parsed; two threads at once can fail at that (CPython issue 106905)."""
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "float32", "float64", "int64")}
BROADCAST, OPENED, SUM = "broadcast", "opened.", "sum."
SumName: TypeAlias = Annotated[str, Field(pattern="^[a-z]{1,20}$")]


class _Manifest(BaseModel):
    """Fields that requests and replies share; strict, since it comes from the other side."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    protocol: int = Field(ge=PROTOCOL, le=PROTOCOL)
    run_id: str = Field(max_length=200)
    plan_digest: str = Field(max_length=64)
    round: int = Field(ge=0)
    """0 is before the first one: the draw of the groups."""
    stage: int = Field(ge=0, le=7)
    attempt: int = Field(ge=0)
    site: str = Field(min_length=1, max_length=200)
    exchange: int = Field(ge=0, le=15)
    layout_digest: str = Field(max_length=64)
    sums: tuple[SumName, ...] = Field(max_length=2)


class _RequestManifest(_Manifest):
    opened: int = Field(ge=0, le=MOST_OPENED)


class _ReplyManifest(_Manifest):
    status: str = Field(pattern="^(ok|refused|failed)$")
    code: str = Field(max_length=100)
    reason: str = Field(max_length=2000)
    local: dict[str, float]


def encode_request(request: Request) -> tuple[RecordDict, int]:
    """Records of a request, and the bytes of their contents."""
    manifest = _RequestManifest(
        protocol=PROTOCOL,
        plan_digest=request.plan_digest,
        layout_digest=request.broadcast.layout.digest if request.broadcast else "",
        sums=tuple(request.sums),
        opened=len(request.opened),
        **{name: getattr(request, name) for name in PLACE},
    )
    arrays = {BROADCAST: request.broadcast.vector} if request.broadcast else {}
    arrays |= {OPENED + str(stage): _as_array(message) for stage, message in enumerate(request.opened)}
    return _records(manifest, arrays | _as_arrays(request.sums))


def decode_request(records: RecordDict, layout: Layout) -> Request:
    """Read a request; a broadcast has to follow `layout`.

    Raises:
        PeerError: Anything missing, unknown, too large, of another layout or type.
    """
    manifest = _manifest(records, _RequestManifest)
    broadcast = None
    if manifest.layout_digest:
        vector = _array(records, BROADCAST)
        if manifest.layout_digest != layout.digest:
            raise PeerError(
                "the broadcast has another layout",
                found=manifest.layout_digest[:12],
                expected=layout.digest[:12],
            )
        if vector.dtype != np.float32:
            raise PeerError("the broadcast has the wrong type", found=vector.dtype, expected="float32")
        broadcast = Packed(layout, vector)
    return Request(
        plan_digest=manifest.plan_digest,
        broadcast=broadcast,
        opened=tuple(_bytes(records, OPENED + str(stage)) for stage in range(manifest.opened)),
        sums=_sums(records, manifest),
        **{name: getattr(manifest, name) for name in PLACE},
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
        plan_digest=reply.plan_digest,
        layout_digest="",
        sums=tuple(reply.sums),
        status=reply.status,
        code=reply.code,
        reason=reply.reason[:2000],
        local=reply.local,
        **{name: getattr(reply, name) for name in PLACE},
    )
    return _records(manifest, _as_arrays(reply.sums))


def decode_reply(records: RecordDict) -> Reply:
    """Read a reply; what its sums hold is for whoever collects them to check.

    Raises:
        PeerError: Anything missing, unknown or too large.
    """
    manifest = _manifest(records, _ReplyManifest)
    return Reply(
        plan_digest=manifest.plan_digest,
        status=manifest.status,  # type: ignore[arg-type]  # the pattern of the manifest allows just these
        code=manifest.code,
        reason=manifest.reason,
        sums=_sums(records, manifest),
        local=manifest.local,
        **{name: getattr(manifest, name) for name in PLACE},
    )


def _as_arrays(sums: Mapping[str, bytes]) -> dict[str, Array]:
    return {SUM + name: _as_array(message) for name, message in sums.items()}


def _as_array(message: bytes) -> Array:
    return np.frombuffer(message, dtype=np.uint8)


def _sums(records: RecordDict, manifest: _Manifest) -> dict[str, bytes]:
    return {name: _bytes(records, SUM + name) for name in manifest.sums}


def _bytes(records: RecordDict, name: str) -> bytes:
    array = _array(records, name)
    if array.dtype != np.uint8:
        raise PeerError("a sum's message has the wrong type", found=array.dtype, expected="uint8")
    return array.tobytes()


def _records(manifest: BaseModel, arrays: dict[str, Array]) -> tuple[RecordDict, int]:
    text = manifest.model_dump_json()
    packed = ArrayRecord({name: flower_array(array) for name, array in arrays.items()})
    records = RecordDict({"manifest": ConfigRecord({"json": text}), "arrays": packed})
    return records, len(text) + sum(array.nbytes for array in arrays.values())


def flower_array(array: Array) -> FlowerArray:
    """An array as it travels: dtype and shape beside its little-endian bytes."""
    data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    return FlowerArray(dtype=array.dtype.name, shape=array.shape, stype=PLAIN, data=data)


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
    found = arrays[name]
    dtype = DTYPES.get(found.dtype)
    if found.stype != PLAIN or dtype is None:
        raise PeerError(
            f"the array {name!r} cannot be read", found=f"{found.dtype[:20]} as {found.stype[:40]}",
            expected=f"{', '.join(DTYPES)} as {PLAIN}",
        )  # fmt: skip
    if len(found.shape) != 1:
        raise PeerError(
            f"the array {name!r} has the wrong shape", found=f"{len(found.shape)} dimensions", expected="one"
        )
    if len(found.data) != found.shape[0] * dtype.itemsize:
        raise PeerError(
            f"the array {name!r} has not the bytes that its shape says",
            found=len(found.data), expected=found.shape[0] * dtype.itemsize,
        )  # fmt: skip
    return np.frombuffer(found.data, dtype).astype(dtype.newbyteorder("="))
