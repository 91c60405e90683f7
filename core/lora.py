"""Algebra of LoRA adapters: products s · B A in factored form, never as d_out × d_in matrices.

A layout's `lora_a` (r, d_in) and `lora_b` (d_out, r) of one module are a `Pair`; with the module's scaling s
(alpha/r, or alpha/√r) they stand for the update s · B A of its weight. s belongs to the product: it is folded
in as soon as factors are read, and taken out when they are written, so that adapters of other ranks and
scalings add up right. Everything is computed in float64.

Sizes: factors of inner size k cost O((d_out + d_in) k²) to norm, to compare and to truncate (two QR
decompositions and an SVD of size k).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from wardround.core.errors import PeerError
from wardround.core.packed import Adapter, Array, Layout, TensorSpec

DEPENDENT: Final = 1e-6
"""A column of which so little is left, relatively, beside those before it says nothing in float32."""


@dataclass(frozen=True)
class Pair:
    """The two factors of one module.

    Attributes:
        module: Name of the module.
        a: Spec of A, (r, d_in).
        b: Spec of B, (d_out, r).
    """

    module: str
    a: TensorSpec
    b: TensorSpec

    @property
    def rank(self) -> int:
        """Inner size r."""
        return self.a.shape[0]

    @property
    def d_out(self) -> int:
        """Outputs of the module."""
        return self.b.shape[0]

    @property
    def d_in(self) -> int:
        """Inputs of the module."""
        return self.a.shape[1]

    @property
    def scaling(self) -> float:
        """The s of s · B A."""
        return self.a.scaling


@dataclass(frozen=True)
class Factored:
    """A matrix of d_out × d_in as a product of two thin ones.

    Attributes:
        left: (d_out, k), float64.
        right: (k, d_in), float64.
    """

    left: Array
    right: Array

    def __add__(self, other: Factored) -> Factored:
        """The sum: inner sizes add up."""
        return Factored(np.hstack([self.left, other.left]), np.vstack([self.right, other.right]))

    def __sub__(self, other: Factored) -> Factored:
        """The difference; of inner size k + k'."""
        return self + other.scaled(-1.0)

    def scaled(self, factor: float) -> Factored:
        """Times a number."""
        return Factored(self.left * factor, self.right)

    def dense(self) -> Array:
        """(d_out, d_in): for tests and small matrices."""
        return np.asarray(self.left @ self.right)

    def norm(self) -> float:
        """Frobenius norm; of a difference of near equals right to about 1e-16 of what is subtracted."""
        return float(np.linalg.norm(self._core()))

    def inner(self, other: Factored) -> float:
        """Σ of the products of all entries, ⟨X, Y⟩ = tr(Xᵀ Y)."""
        return float(np.sum((self.left.T @ other.left) * (self.right @ other.right.T)))

    def truncated(self, rank: int) -> Truncated:
        """The best approximation of a rank (Eckart and Young 1936); less where the matrix has less.

        Raises:
            PeerError: Not finite, or the SVD does not converge.
        """
        u, values, v = _svd(self.left, self.right)
        kept = slice(0, rank)
        return Truncated(u[:, kept], values[kept], v[:, kept], float(np.sum(values[rank:] ** 2)))

    def _core(self) -> Array:
        if self.left.shape[1] >= min(self.left.shape[0], self.right.shape[1]):
            return self.dense()
        inner, outer = (np.asarray(np.linalg.qr(x, mode="r")) for x in (self.left, self.right.T))
        return np.asarray(inner @ outer.T)


@dataclass(frozen=True)
class Truncated:
    """U diag(σ) Vᵀ.

    Attributes:
        u: (d_out, k), orthonormal columns.
        values: σ (k,), falling.
        v: (d_in, k), orthonormal columns.
        cut: Squared norm of what was cut off.
    """

    u: Array
    values: Array
    v: Array
    cut: float

    @property
    def energy(self) -> float:
        """Squared Frobenius norm of what is left."""
        return float(np.sum(self.values**2))

    @property
    def factored(self) -> Factored:
        """The same, with σ on the left."""
        return Factored(self.u * self.values, self.v.T)


def pairs(layout: Layout) -> tuple[Pair, ...]:
    """The modules of a layout that have factors, in the layout's order.

    Raises:
        PeerError: A module has one factor only, or two that do not go together.
    """
    found = _PAIRS.get(layout.digest)
    if found is None:
        found = _PAIRS[layout.digest] = _pairs(layout)
    return found


def dense_specs(layout: Layout) -> tuple[TensorSpec, ...]:
    """Heads, biases, magnitudes: whatever stands beside the factors."""
    return tuple(spec for spec in layout.tensors if spec.role not in ("lora_a", "lora_b"))


def product(adapter: Adapter, pair: Pair) -> Factored:
    """One module's s · B A."""
    return Factored(
        adapter[pair.b.name].astype(np.float64) * pair.scaling, adapter[pair.a.name].astype(np.float64)
    )


def products(adapter: Adapter) -> Iterator[tuple[Pair, Factored]]:
    """Every module's s · B A."""
    for pair in pairs(adapter.layout):
        yield pair, product(adapter, pair)


def difference(expected: Adapter, found: Adapter) -> float:
    """`distance` as a share of ‖expected‖; where that is zero, the distance itself.

    Raises:
        PeerError: As `distance`.
    """
    size = math.sqrt(
        sum(found.norm() ** 2 for _, found in products(expected))
        + sum(
            float(np.sum(expected[spec.name].astype(np.float64) ** 2))
            for spec in dense_specs(expected.layout)
        )
    )
    return distance(expected, found) / (size or 1.0)


def distance(one: Adapter, other: Adapter) -> float:
    """‖other − one‖ over all products s · B A and dense tensors; ranks and scalings may differ.

    Raises:
        PeerError: The two have other modules or dense tensors.
    """
    ours, theirs = pairs(one.layout), pairs(other.layout)
    if [pair.module for pair in ours] != [pair.module for pair in theirs] or [
        spec.name for spec in dense_specs(one.layout)
    ] != [spec.name for spec in dense_specs(other.layout)]:
        raise PeerError("two adapters are of other modules", found=len(theirs), expected=len(ours))
    apart = 0.0
    for own, its in zip(ours, theirs, strict=True):
        apart += (product(other, its) - product(one, own)).norm() ** 2
    for spec in dense_specs(one.layout):
        apart += float(np.sum((other[spec.name].astype(np.float64) - one[spec.name].astype(np.float64)) ** 2))
    return math.sqrt(apart)


def orthonormal(columns: Array) -> Array:
    """An orthonormal basis of the columns' span, (n, k) → (n, k); zero in place of a dependent column.

    Gram-Schmidt, each column twice ("twice is enough", Giraud, Langou and Rozložník 2005): whoever has the
    same columns has the same basis, signs included, but for rounding of about 1e-16 times their condition.
    """
    basis = np.zeros(columns.shape)
    for index in range(columns.shape[1]):
        column = columns[:, index].astype(np.float64)
        length = float(np.linalg.norm(column))
        if not length > 0:
            continue
        column = column / length
        for _ in range(2):
            column = column - basis[:, :index] @ (basis[:, :index].T @ column)
        left = float(np.linalg.norm(column))
        if left > DEPENDENT:
            column = column / left
            column = column - basis[:, :index] @ (basis[:, :index].T @ column)
            basis[:, index] = column / np.linalg.norm(column)
    return basis


def balanced(
    found: Truncated, before: Adapter, pair: Pair, row_length: float | None = None
) -> tuple[Array, Array]:
    """Factors (B, A) of a truncated product: √σ to each side, s taken out, columns by falling σ.

    With a `row_length` every row of A has that length, and B has the rest.

    A direction with nothing in it keeps LoRA's usual start: nothing in B, and in A a direction of the adapter
    before, of its mean length, so that it still trains.
    """
    rank = pair.rank
    b, a = np.zeros((pair.d_out, rank)), np.zeros((rank, pair.d_in))
    used = int(np.sum(found.values > DEPENDENT * found.values[0])) if found.values.size else 0
    own = found.values[:used] / pair.scaling
    rows = np.sqrt(own) if row_length is None else np.full(used, row_length)
    b[:, :used] = found.u[:, :used] * (own / rows)
    a[:used] = (found.v[:, :used] * rows).T
    if used < rank:
        old = before[pair.a.name].astype(np.float64)
        length = row_length or float(np.linalg.norm(old)) / math.sqrt(rank)
        free = orthonormal(np.hstack([found.v[:, :used], old.T]))[:, used:]
        free = free[:, np.any(free != 0, axis=0)][:, : rank - used]
        a[used : used + free.shape[1]] = length * free.T
    return b, a


_PAIRS: Final[dict[str, tuple[Pair, ...]]] = {}


def _pairs(layout: Layout) -> tuple[Pair, ...]:
    found: dict[str, dict[str, TensorSpec]] = {}
    for spec in layout.tensors:
        if spec.role in ("lora_a", "lora_b"):
            if spec.role in found.setdefault(spec.module, {}):
                raise PeerError("a module of the layout has a factor twice", found=spec.name)
            found[spec.module][spec.role] = spec
    made = []
    for module, factors in found.items():
        a, b = factors.get("lora_a"), factors.get("lora_b")
        if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:  # noqa: PLR2004 - of a matrix
            raise PeerError(
                "a module of the layout has no two factors", found=module, expected="lora_a and lora_b"
            )
        if a.shape[0] != b.shape[1] or a.scaling != b.scaling or not a.scaling > 0:
            raise PeerError(
                f"the factors of {module!r} form no product", found=f"{b.shape} times {a.shape}, scaled by "
                f"{b.scaling:g} and {a.scaling:g}",
            )  # fmt: skip
        made.append(Pair(module, a, b))
    return tuple(made)


def _svd(left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Thin SVD of left @ right: U (m, k), σ (k,), V (n, k).

    Raises:
        PeerError: Not finite, or no convergence.
    """
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise PeerError("a product of factors is not finite")
    try:
        if left.shape[1] >= min(left.shape[0], right.shape[1]):
            u, values, vt = np.linalg.svd(left @ right, full_matrices=False)
            return u, values, vt.T
        outer, core = np.linalg.qr(left)
        other, rest = np.linalg.qr(right.T)
        u, values, vt = np.linalg.svd(core @ rest.T, full_matrices=False)
    except np.linalg.LinAlgError as error:
        raise PeerError("the SVD of a product of factors does not converge") from error
    return outer @ u, values, other @ vt.T
