"""Errors over gRPC: a WardroundError crosses whole, as a status code for all tools and a typed detail."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from wardround.core import errors
from wardround.core.errors import InternalError, PeerError, PolicyError, UnreachableError, WardroundError
from wardround.runtime.control.protos.contact_pb2 import DetailedStatus, Fault

DETAILS = "grpc-status-details-bin"
"""Trailing metadata in which gRPC tools look for typed details."""
LARGEST_TEXT_BYTES = 1200
"""Of each text of a fault: all of them together stay under gRPC's 8 KiB of metadata."""

_CODES: dict[str, grpc.StatusCode] = {
    "ConfigError": grpc.StatusCode.INVALID_ARGUMENT,
    "DataError": grpc.StatusCode.INVALID_ARGUMENT,
    "ModelError": grpc.StatusCode.INVALID_ARGUMENT,
    "PeerError": grpc.StatusCode.FAILED_PRECONDITION,
    "QuorumError": grpc.StatusCode.FAILED_PRECONDITION,
    "PolicyError": grpc.StatusCode.PERMISSION_DENIED,
    "BudgetError": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TrainingError": grpc.StatusCode.ABORTED,
    "StorageError": grpc.StatusCode.DATA_LOSS,
    "RolledBackError": grpc.StatusCode.DATA_LOSS,
    "UnreachableError": grpc.StatusCode.UNAVAILABLE,
    "InternalError": grpc.StatusCode.INTERNAL,
}
_SILENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
"""Codes of a server that is not there, or does not answer."""


def clipped(text: str, largest: int = LARGEST_TEXT_BYTES) -> str:
    """The text, or its beginning in so many bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    # Through its bytes in any case: a lone surrogate is text to Python and none to protobuf.
    return data.decode() if len(data) <= largest else data[: largest - 3].decode("utf-8", "ignore") + "…"


def fault_of(error: BaseException) -> Fault:
    """What crosses of an error; of one that is not ours nothing but that there was one."""
    if not isinstance(error, WardroundError):
        error = InternalError("the server met a fault of its own", remedy="its log has the details")
    kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in {*_CODES, "WardroundError"})
    texts = {
        name: clipped(text)
        for name, text in (("found", error.found), ("expected", error.expected), ("remedy", error.remedy))
        if text is not None
    }
    code = error.code if isinstance(error, errors.TrainingError) else ""
    return Fault(kind=kind, what=clipped(error.what), code=clipped(code, 100), **texts)


def code_of(fault: Fault) -> grpc.StatusCode:
    """The status code that a fault is sent with."""
    return _CODES.get(fault.kind, grpc.StatusCode.UNKNOWN)


def abort(context: Any, error: BaseException, code: grpc.StatusCode | None = None) -> None:
    """End a call with an error; raises what gRPC ends the handler by."""
    fault = fault_of(error)
    code = code or code_of(fault)
    detail = AnyMessage()
    detail.Pack(fault)
    status = DetailedStatus(code=code.value[0], message=fault.what, details=[detail])
    context.set_trailing_metadata(((DETAILS, status.SerializeToString()),))
    context.abort(code, fault.what)


def error_of(failed: grpc.RpcError, server: str) -> WardroundError:
    """The error that a failed call stands for, for the client to raise.

    Args:
        failed: As gRPC raised it; also a call.
        server: Where the server was looked for, for people.
    """
    fault = _fault_in(failed)
    code = failed.code()
    if fault is not None:
        texts = {
            name: getattr(fault, name) for name in ("found", "expected", "remedy") if fault.HasField(name)
        }
        if fault.kind == "TrainingError":
            return errors.TrainingError(fault.code, fault.what, **texts)
        # Names of our own tree alone: what arrives chooses no other class.
        return (getattr(errors, fault.kind) if fault.kind in _CODES else PeerError)(fault.what, **texts)
    if code in _SILENT:
        late = code is grpc.StatusCode.DEADLINE_EXCEEDED
        return UnreachableError(
            "the server did not answer in time" if late else "the server cannot be reached",
            found=f"{server}: {clipped(failed.details() or code.name.lower(), 300)}",
            remedy="look whether it runs, and what its log says",
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return PeerError(
            "the server does not know this service",
            found=f"{server}: {clipped(failed.details() or '', 300)}",
            remedy="use the same version of Wardround on both sides",
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return PolicyError("the server does not let this caller in", found=server)
    return PeerError(
        "the server refuses the call", found=f"{code.name}: {clipped(failed.details() or '', 300)}"
    )


def _fault_in(failed: grpc.RpcError) -> Fault | None:
    for key, value in failed.trailing_metadata() or ():
        if key == DETAILS:
            status, fault = DetailedStatus(), Fault()
            try:
                status.ParseFromString(value)
                found = any(detail.Unpack(fault) for detail in status.details)
            except Exception:  # noqa: BLE001 - what arrives may be anything, and gRPC's own code still speaks
                return None
            return fault if found else None
    return None
