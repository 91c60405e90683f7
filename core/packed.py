"""Named arrays packed into one flat vector, with a layout that both sides can check by digest.

An adapter, a strategy's statistics and a site's counters are all `Packed`: they differ in dtype
and in what the layout's names mean.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from wardround.core.errors import PeerError

Role: TypeAlias = Literal["lora_a", "lora_b", "magnitude", "dense", "counter"]
Array: TypeAlias = NDArray[Any]


class TensorSpec(BaseModel):
    """One named tensor of a layout.

    `role` says how aggregation may treat it: `lora_a` (r, d_in) and `lora_b` (d_out, r) of the same
    `module` form the product scaling · B · A; all others ride along and are averaged as they are: DoRA's
    `magnitude` (d_out,) of a `module`, and `dense` tensors (heads, biases).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=512)
    shape: tuple[int, ...] = ()
    role: Role = "dense"
    module: str = ""
    scaling: float = 1.0

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


class Layout(BaseModel):
    """Ordered tensors that fill one flat vector from front to back without gaps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(spec.size for spec in self.tensors)

    @cached_property
    def offsets(self) -> dict[str, tuple[int, TensorSpec]]:
        """Name → (start in the flat vector, spec)."""
        table: dict[str, tuple[int, TensorSpec]] = {}
        start = 0
        for spec in self.tensors:
            if spec.name in table:
                raise PeerError(f"the layout names {spec.name!r} twice")
            table[spec.name] = (start, spec)
            start += spec.size
        return table

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the tensors, in order."""
        canonical = json.dumps(
            [spec.model_dump(mode="json") for spec in self.tensors],
            sort_keys=True,
            separators=(",", ":"),
        )
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Packed:
    """A layout and its flat vector; treat the vector as read-only.

    Raises:
        PeerError: The vector is not one-dimensional or its length is not the layout's.
    """

    layout: Layout
    vector: Array

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or self.vector.size != self.layout.size:
            raise PeerError(
                "a packed vector does not fit its layout",
                found=f"shape {self.vector.shape}",
                expected=f"({self.layout.size},)",
            )

    def __getitem__(self, name: str) -> Array:
        """View of one tensor in its own shape."""
        start, spec = self.layout.offsets[name]
        return self.vector[start : start + spec.size].reshape(spec.shape)

    def tensors(self) -> dict[str, Array]:
        """Views of all tensors, in layout order."""
        return {spec.name: self[spec.name] for spec in self.layout.tensors}

    def with_vector(self, vector: Array) -> Packed:
        """The same layout over another vector."""
        return Packed(self.layout, vector)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over layout digest, dtype and the little-endian bytes of the vector."""
        little = np.ascontiguousarray(self.vector).astype(self.vector.dtype.newbyteorder("<"), copy=False)
        state = hashlib.sha256(self.layout.digest.encode())
        state.update(self.vector.dtype.name.encode())
        state.update(little.tobytes())
        return state.hexdigest()


Adapter: TypeAlias = Packed
"""float32; what a site loads before training and reads after it."""

Statistics: TypeAlias = Packed
"""float32 or float64; what a strategy lets a site contribute."""

Counters: TypeAlias = Packed
"""int64; weights, fixed-point loss sums, metric numerators. Exact in any order of addition."""


def pack(layout: Layout, tensors: Mapping[str, Array], dtype: Any = np.float32) -> Packed:
    """Fill a layout from named arrays.

    Raises:
        PeerError: A name is missing or unknown, or a shape differs; names tensor and both shapes.
    """
    unknown = sorted(set(tensors) - set(layout.offsets))
    missing = sorted(set(layout.offsets) - set(tensors))
    if unknown or missing:
        raise PeerError(
            "the tensors are not those of the layout",
            found=f"unknown: {unknown[:5] or 'none'}; missing: {missing[:5] or 'none'}",
            expected=f"the {len(layout.tensors)} names of layout {layout.digest[:12]}",
        )
    vector = np.empty(layout.size, dtype=dtype)
    for name, (start, spec) in layout.offsets.items():
        array = np.asarray(tensors[name])
        if array.shape != spec.shape:
            raise PeerError(f"tensor {name!r} has the wrong shape", found=array.shape, expected=spec.shape)
        vector[start : start + spec.size] = array.reshape(-1)
    return Packed(layout, vector)


def zeros(layout: Layout, dtype: Any = np.float32) -> Packed:
    """All tensors zero."""
    return Packed(layout, np.zeros(layout.size, dtype=dtype))


def require_finite(packed: Packed, what: str) -> None:
    """Refuse NaN and infinity, naming the first tensor that holds one.

    Raises:
        PeerError: Names the tensor and how many of its values are not finite.
    """
    if np.isfinite(packed.vector).all():
        return
    for name, array in packed.tensors().items():
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise PeerError(
                f"{what} is not finite",
                found=f"{bad} of {array.size} values of {name!r}",
                expected="finite numbers",
                remedy="lower the learning rate, or look at the site's data",
            )
