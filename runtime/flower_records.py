"""Values as Flower records: one small JSON manifest each, pieces of bytes beside it, and few arrays.

Flower moves a message object by object, each in a request of its own: an array is three of them, a piece of
bytes beside the manifest none. Nothing is pickled. Only Flower's public API is used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from wardround import __version__
from wardround.core.errors import PeerError
from wardround.core.packed import Array

M = TypeVar("M", bound=BaseModel)
LARGEST_MANIFEST = 1 << 20
BESIDE = 4 << 20
"""Bytes up to which a piece may stand beside the manifest: all of that is one object, and travels whole."""
PLAIN = "wardround.little_endian"
"""How an array lies in its bytes: one number after the other, nothing before them. NumPy's own form begins
with a Python expression, which is parsed; two threads at once can fail at that (CPython issue 106905)."""
Version = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+!_-]{0,40}$", strict=True)]
"""Of Wardround, as one side names it to the other; empty where it does not."""
OTHER_VERSION: Final = 700
"""Flower's error code by which a site answers a message of another protocol; Flower's own end below it."""
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "float32", "float64", "int64")}


def as_array(message: bytes) -> Array:
    """Bytes as the array of bytes that carries them."""
    return np.frombuffer(message, dtype=np.uint8)


def read_bytes(records: RecordDict, name: str) -> bytes:
    """The bytes of a piece, which stands beside the manifest or is an array of bytes.

    Raises:
        PeerError: As `read_array`, or the array is no array of bytes.
    """
    config = records.config_records.get("manifest")
    piece = None if config is None else config.get(name)
    if isinstance(piece, bytes):
        return piece
    array = read_array(records, name)
    if array.dtype != np.uint8:
        raise PeerError("a message has the wrong type", found=array.dtype, expected="uint8")
    return array.tobytes()


def make_records(
    manifest: BaseModel, arrays: Mapping[str, Array], pieces: Mapping[str, bytes] | None = None
) -> tuple[RecordDict, int]:
    """Records of a manifest, its arrays and pieces of bytes, and the bytes of their contents.

    What several sites are sent alike should be an array: Flower keeps it once. Pieces go beside the manifest
    as long as they are together no larger than `BESIDE`, the others become arrays.
    """
    text = manifest.model_dump_json()
    beside = ConfigRecord({"json": text})
    left, all_arrays = BESIDE, dict(arrays)
    for name, piece in (pieces or {}).items():
        if len(piece) <= left:
            beside[name] = piece
            left -= len(piece)
        else:
            all_arrays[name] = as_array(piece)
    records = RecordDict({"manifest": beside})
    if all_arrays:
        records["arrays"] = ArrayRecord({name: flower_array(array) for name, array in all_arrays.items()})
    return records, contents_size(text, arrays, pieces or {})


def contents_size(text: str, arrays: Mapping[str, Array], pieces: Mapping[str, bytes]) -> int:
    """Bytes of the contents of a manifest's text, its arrays and its pieces."""
    return len(text) + sum(array.nbytes for array in arrays.values()) + sum(map(len, pieces.values()))


def flower_array(array: Array) -> FlowerArray:
    """An array as it travels: dtype and shape beside its little-endian bytes."""
    data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    return FlowerArray(dtype=array.dtype.name, shape=array.shape, stype=PLAIN, data=data)


class _Head(BaseModel):
    """What a manifest of any version begins with."""

    protocol: int = Field(ge=0, le=10**6, strict=True)
    version: Version = ""


class OtherVersionError(PeerError):
    """A message of another protocol than this version of Wardround speaks."""


def read_manifest(records: RecordDict, model: type[M], protocol: int) -> M:
    """The manifest.

    Args:
        records: The message.
        model: What it has to be.
        protocol: That it has to speak.

    Raises:
        OtherVersionError: It speaks another one; named before anything else of it is read.
        PeerError: There is none, it is too large, or not what `model` asks for.
    """
    config = records.config_records.get("manifest")
    text = config.get("json") if config is not None else None
    if not isinstance(text, str) or len(text) > LARGEST_MANIFEST:
        raise PeerError(
            "the message has no manifest, or too large a one",
            expected=f"JSON of at most {LARGEST_MANIFEST} bytes",
        )
    _require_protocol(text, protocol)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        fields = [".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)]
        raise PeerError(
            "the message's manifest is not valid",
            found=", ".join(filter(None, fields[:5])) or "no JSON object",
        ) from error


def _require_protocol(text: str, protocol: int) -> None:
    try:
        head = _Head.model_validate_json(text)
    except ValidationError:
        return  # no manifest of any version: what is wrong with it is said where all of it is read
    if head.protocol == protocol:
        return
    who = f"Wardround {head.version}" if head.version else "another version of Wardround"
    found, own = f"protocol {head.protocol} of {who}", f"protocol {protocol} of Wardround {__version__}"
    raise OtherVersionError(  # the sentence travels alone: it names both
        f"a message speaks {found}, who has to read it {own}", found=found, expected=own,
        remedy="install the same version of Wardround at the server and at every site",
    )  # fmt: skip


def read_array(records: RecordDict, name: str) -> Array:
    """One array, of one dimension.

    Raises:
        PeerError: It is not there, of another type or shape, or has other bytes than its shape says.
    """
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
