"""What methods over products s · B A share: their pairs, the step from one global adapter to the next.

After a fold the factors are those of the truncated product, √σ on each side, columns by falling σ. They are
determined by the product but for rotations among equal singular values, so two machines' factors of one state
may differ where their products do not: `difference` compares what a training from them depends on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import numpy as np
from pydantic import BaseModel

from wardround.core import lora
from wardround.core.errors import ConfigError, PeerError
from wardround.core.lora import Factored, Pair
from wardround.core.packed import Adapter, Array, Layout, Packed, pack, require_finite
from wardround.strategies._mean_update import AdapterBroadcast

O = TypeVar("O", bound=BaseModel)  # noqa: E741 - O for options, as T for type


def require_pairs(layout: Layout, strategy: str) -> tuple[Pair, ...]:
    """The layout's pairs of factors; a layout without tensors has none.

    Raises:
        ConfigError: It has tensors, and none of them is a factor.
    """
    found = lora.pairs(layout)
    if layout.tensors and not found:
        raise ConfigError(
            f"strategy {strategy!r} works on LoRA's factors, and this adapter has none",
            found=f"{len(layout.tensors)} tensors without a pair A and B",
            expected="an adapter of B and A",
            remedy="set strategy=fedavg, or adapter.method=lora with targets",
        )  # fmt: skip
    return found


def require_same_modules(adapter: Adapter, layout: Layout, what: str) -> None:
    """Refuse an adapter of other modules; ranks and scalings may differ.

    Raises:
        PeerError: Names the layouts by digest and size.
    """
    if adapter.layout.digest != layout.digest and _modules(adapter.layout) != _modules(layout):
        raise PeerError(
            f"{what} has another layout",
            found=f"{adapter.layout.digest[:12]}, {adapter.layout.size} values",
            expected=f"the modules of {layout.digest[:12]}, {layout.size} values, at any rank",
        )
    require_finite(adapter, what)


def product_update(before: Adapter, after: Adapter, module: Pair) -> Factored:
    """s_i B_i A_i after training less that before it, of one module, whatever the site's rank."""
    own = {pair.module: pair for pair in lora.pairs(after.layout)}[module.module]
    b, a = (before[spec.name].astype(np.float64) for spec in (own.b, own.a))
    after_a = after[own.a.name].astype(np.float64)
    moved_b = after[own.b.name].astype(np.float64) - b
    # (B_i − B) A_i + B (A_i − A): nothing cancels, and no update is exactly nothing.
    return Factored(np.hstack([moved_b, b]) * own.scaling, np.vstack([after_a, after_a - a]))


def stepped(
    adapter: Adapter,
    steps: Mapping[str, Factored | None],
    dense: Mapping[str, Array],
    *,
    with_adapter: bool = False,
    row_length: float | None = None,
) -> tuple[Adapter, float]:
    """As `truncated_step`, with the share of energy that truncation discarded."""
    moved, lost, whole = truncated_step(
        adapter, steps, dense, with_adapter=with_adapter, row_length=row_length
    )
    return moved, lost / whole if whole else 0.0


def truncated_step(
    adapter: Adapter,
    steps: Mapping[str, Factored | None],
    dense: Mapping[str, Array],
    *,
    with_adapter: bool = False,
    row_length: float | None = None,
) -> tuple[Adapter, float, float]:
    """The global adapter after a step: each module's T_r(G + X), dense tensors plus their step.

    Args:
        adapter: G and the dense tensors.
        steps: Module → X; None leaves its factors as they are, bit for bit.
        dense: Name → step of a dense tensor, float64.
        with_adapter: Whether the steps are G + X already.
        row_length: As of `lora.balanced`.

    Returns:
        The next adapter, float32; the squared norm of what truncation cut off, and that of all G + X before.

    Raises:
        PeerError: It is not finite in float32.
    """
    tensors: dict[str, Array] = {}
    lost = whole = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # named by require_finite
        for pair in lora.pairs(adapter.layout):
            step = steps[pair.module]
            if step is None:
                tensors |= {spec.name: adapter[spec.name] for spec in (pair.a, pair.b)}
                continue
            moved_to = step if with_adapter else lora.product(adapter, pair) + step
            found = moved_to.truncated(pair.rank)
            lost, whole = lost + found.cut, whole + found.cut + found.energy
            tensors[pair.b.name], tensors[pair.a.name] = lora.balanced(found, adapter, pair, row_length)
        for spec in lora.dense_specs(adapter.layout):
            tensors[spec.name] = adapter[spec.name].astype(np.float64) + dense[spec.name]
        moved = pack(adapter.layout, tensors, np.float32)
    require_finite(moved, "the folded adapter")
    return moved, lost, whole


class ProductBroadcast(AdapterBroadcast[O], Generic[O]):
    """A method over products that broadcasts the global adapter."""

    name: ClassVar[str]
    any_rank: bool = True
    linear: bool = False

    def __init__(self, options: O, layout: Layout) -> None:
        super().__init__(options, layout)
        self.pairs = require_pairs(layout, self.name)
        self.dense = lora.dense_specs(layout)

    def difference(self, expected: Adapter, found: Adapter) -> float:
        """Of the products, the dense tensors, and of Bᵀ B and A Aᵀ, which say how B and A share a product."""
        apart = lora.difference(expected, found)
        for pair in self.pairs:
            for name, transposed in ((pair.a.name, False), (pair.b.name, True)):
                own, other = (_gram(packed, name, transposed=transposed) for packed in (expected, found))
                size = float(np.linalg.norm(own))
                apart = max(apart, float(np.linalg.norm(other - own)) / (size or 1.0))
        return apart


def unit_of(adapter: Adapter, pair: Pair) -> float:
    """Public factor that brings an update of a product to about the size of an update of B.

    It is s · max(‖A‖, ‖B‖), by spectral norms of the broadcast; s alone where both factors are zero.
    """
    grams = (_gram(adapter, pair.a.name, transposed=False), _gram(adapter, pair.b.name, transposed=True))
    largest = max(float(np.linalg.eigvalsh(gram)[-1]) for gram in grams)
    return pair.scaling * (math.sqrt(largest) if largest > 0 else 1.0)


def public_draw(layout: Layout, pair: Pair, round: int) -> np.random.Generator:
    """Of the random test matrices of a module and round: everybody's are the same, and they hide nothing."""
    seed = hashlib.sha256(f"{layout.digest}/{pair.module}/{round}".encode()).digest()
    return np.random.default_rng(np.frombuffer(seed, dtype=np.uint32))


def is_zero(*arrays: Array) -> bool:
    """Whether nothing stands in any of them."""
    return not any(np.any(array) for array in arrays)


def dense_part(packed: Packed, layout: Layout) -> dict[str, Array]:
    """The dense tensors of a layout, out of statistics that hold them under their own names."""
    return {spec.name: packed[spec.name] for spec in lora.dense_specs(layout)}


def _gram(packed: Packed, name: str, *, transposed: bool) -> Array:
    """A Aᵀ, or Bᵀ B where the matrix is tall: (r, r)."""
    matrix = packed[name].astype(np.float64)
    return np.asarray(matrix.T @ matrix if transposed else matrix @ matrix.T)


def _modules(layout: Layout) -> tuple[object, ...]:
    """What has to agree between adapters of different ranks."""
    factors = tuple((pair.module, pair.d_out, pair.d_in) for pair in lora.pairs(layout))
    return factors, tuple((spec.name, spec.shape) for spec in lora.dense_specs(layout))
