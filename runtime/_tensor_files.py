"""Arrays at rest: safetensors with a checksum that is verified before anything is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from wardround.core.errors import PeerError, StorageError
from wardround.core.packed import Array, Layout, Packed
from wardround.runtime._durable import write_atomic

DIGEST = "wardround.digest"
LAYOUT = "wardround.layout"
VECTOR = "vector"


def save_tensors(
    path: Path, tensors: Mapping[str, Array] | Packed, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays (or one packed vector with its layout) and metadata, atomically.

    Raises:
        StorageError: The file could not be written, or a metadata key is reserved.
    """
    notes = dict(metadata or {})
    if reserved := sorted({DIGEST, LAYOUT} & set(notes)):
        raise StorageError(f"the metadata key {reserved[0]!r} is reserved", remedy="choose another key")
    if isinstance(tensors, Packed):
        notes[LAYOUT] = tensors.layout.model_dump_json()
        tensors = {VECTOR: tensors.vector}
    arrays = {name: _little(array) for name, array in tensors.items()}
    notes[DIGEST] = _digest(arrays, notes)
    write_atomic(Path(path), safetensors.numpy.save(arrays, notes))


def load_tensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata as they were saved.

    Raises:
        StorageError: The file is missing or not readable, was not written by `save_tensors`, or does not
            hold what was written.
    """
    arrays, notes = _load(Path(path))
    return arrays, {key: text for key, text in notes.items() if key != LAYOUT}


def load_packed(path: Path) -> tuple[Packed, dict[str, str]]:
    """A packed vector and the metadata, as they were saved.

    Raises:
        StorageError: As `load_tensors`, or the file holds no packed vector.
    """
    arrays, notes = _load(Path(path))
    try:
        layout = Layout.model_validate_json(notes.pop(LAYOUT))
        return Packed(layout, arrays[VECTOR]), notes
    except (KeyError, ValidationError, PeerError) as error:
        raise StorageError(
            f"{path} holds no packed vector", found=", ".join(sorted(arrays)[:5]) or "nothing",
            expected=f"{VECTOR!r} and its layout",
        ) from error  # fmt: skip


def _load(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    remedy = "restore the file from a copy, or start again without it"
    try:
        with safe_open(path, framework="numpy") as file:
            notes: dict[str, str] = dict(file.metadata() or {})
            arrays: dict[str, Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        found = (
            error.strerror if isinstance(error, OSError) and error.strerror else "no whole safetensors file"
        )
        raise StorageError(f"cannot read {path}", found=found, remedy=remedy) from error
    expected = notes.pop(DIGEST, None)
    if expected is None:
        raise StorageError(f"{path} has no checksum", expected="a file that Wardround wrote", remedy=remedy)
    digest = _digest(arrays, notes)
    if digest != expected:
        raise StorageError(
            f"{path} does not hold what was written", found=digest[:12], expected=expected[:12], remedy=remedy
        )
    return arrays, notes


def _digest(arrays: Mapping[str, Array], notes: Mapping[str, str]) -> str:
    """SHA-256 over the notes and each array's name, type, shape and little-endian bytes, by name."""
    state = hashlib.sha256(json.dumps(dict(notes), sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        state.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        state.update(array.tobytes())
    return state.hexdigest()


def _little(array: Array) -> Array:
    return np.asarray(array, dtype=np.asarray(array).dtype.newbyteorder("<"), order="C")
