"""Requests and replies as Flower records: a manifest, sums beside it, arrays of what all sites are sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
from flwr.app import RecordDict
from pydantic import BaseModel, ConfigDict, Field

from wardround.core.errors import PeerError
from wardround.core.messages import PLACE, Reply, Request
from wardround.core.packed import Array, Layout, Packed
from wardround.runtime.flower_records import (
    as_array,
    contents_size,
    make_records,
    read_array,
    read_bytes,
    read_manifest,
)

PROTOCOL = 5
MOST_OPENED = 1000
"""Of the sums that come with a broadcast: one a stage, or a group."""
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
    follows: str = Field(max_length=64)
    opened: int = Field(ge=0, le=MOST_OPENED)


class _ReplyManifest(_Manifest):
    status: str = Field(pattern="^(ok|refused|failed)$")
    code: str = Field(max_length=100)
    reason: str = Field(max_length=2000)
    local: dict[str, float]


def encode_request(request: Request) -> tuple[RecordDict, int]:
    """Records of a request, and the bytes of their contents."""
    return make_records(_manifest_of(request), _arrays_of(request), _pieces(request.sums))


def request_size(request: Request) -> int:
    """Bytes of a request's contents, as `encode_request` counts them, without making its records."""
    text = _manifest_of(request).model_dump_json()
    return contents_size(text, _arrays_of(request), _pieces(request.sums))


def _manifest_of(request: Request) -> _RequestManifest:
    return _RequestManifest(
        protocol=PROTOCOL,
        plan_digest=request.plan_digest,
        layout_digest=request.broadcast.layout.digest if request.broadcast else "",
        sums=tuple(request.sums),
        opened=len(request.opened),
        follows=request.follows,
        **{name: getattr(request, name) for name in PLACE},
    )


def _arrays_of(request: Request) -> dict[str, Array]:
    arrays = {BROADCAST: request.broadcast.vector} if request.broadcast else {}
    return arrays | {OPENED + str(stage): as_array(message) for stage, message in enumerate(request.opened)}


def decode_request(records: RecordDict, layout: Layout) -> Request:
    """Read a request; a broadcast has to follow `layout`.

    Raises:
        PeerError: Anything missing, unknown, too large, of another layout or type.
    """
    manifest = read_manifest(records, _RequestManifest, PROTOCOL)
    if manifest.follows and manifest.layout_digest:
        raise PeerError("the request has a broadcast, and a digest in its place")
    broadcast = None
    if manifest.layout_digest:
        vector = read_array(records, BROADCAST)
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
        follows=manifest.follows,
        opened=tuple(read_bytes(records, OPENED + str(stage)) for stage in range(manifest.opened)),
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
    manifest = read_manifest(records, _RequestManifest, PROTOCOL)
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
    return make_records(manifest, {}, _pieces(reply.sums))


def decode_reply(records: RecordDict) -> Reply:
    """Read a reply; what its sums hold is for whoever collects them to check.

    Raises:
        PeerError: Anything missing, unknown or too large.
    """
    manifest = read_manifest(records, _ReplyManifest, PROTOCOL)
    return Reply(
        plan_digest=manifest.plan_digest,
        status=manifest.status,  # type: ignore[arg-type]  # the pattern of the manifest allows just these
        code=manifest.code,
        reason=manifest.reason,
        sums=_sums(records, manifest),
        local=manifest.local,
        **{name: getattr(manifest, name) for name in PLACE},
    )


def _pieces(sums: Mapping[str, bytes]) -> dict[str, bytes]:
    return {SUM + name: message for name, message in sums.items()}


def _sums(records: RecordDict, manifest: _Manifest) -> dict[str, bytes]:
    return {name: read_bytes(records, SUM + name) for name in manifest.sums}
