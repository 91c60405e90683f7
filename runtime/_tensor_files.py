"""Arrays at rest: safetensors with a checksum that is verified before anything is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from wardround.core.errors import StorageError
from wardround.core.packed import Array
from wardround.runtime._durable import write_atomic

DIGEST = "wardround.digest"


def save_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays and metadata, atomically.

    Raises:
        StorageError: The file could not be written, or a metadata key is reserved.
    """
    notes = dict(metadata or {})
    if DIGEST in notes:
        raise StorageError(f"the metadata key {DIGEST!r} is reserved", remedy="choose another key")
    arrays = {name: _little(array) for name, array in tensors.items()}
    notes[DIGEST] = _digest(arrays, notes)
    write_atomic(Path(path), safetensors.numpy.save(arrays, notes))


def load_tensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata as they were saved.

    Raises:
        StorageError: The file is missing or not readable, was not written by `save_tensors`, or does not
            hold what was written.
    """
    return _load(Path(path))


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
