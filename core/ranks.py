"""An adapter at another rank than the plan's: what a site of its own rank trains, and what of it counts.

A site of a smaller rank trains the first directions of each module (after a fold over products those of the
largest singular values) while the rest stands frozen beside them; one of a larger rank trains further
directions that begin as LoRA does, with nothing in B. Some methods train new directions alone, with the whole
adapter frozen beside them. The scaling s stays the plan's, so that a learning rate means the same at every
rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardround.core.lora import pairs
from wardround.core.packed import Adapter, Array, Layout, TensorSpec, pack


@dataclass(frozen=True)
class AtRank:
    """The global adapter as a site of its own rank loads it.

    Attributes:
        trained: What the site trains: its first directions, or all and further ones.
        rest: The directions that stand frozen beside them, in layout of the same modules; None where none do.
    """

    trained: Adapter
    rest: Adapter | None


def layout_at(layout: Layout, rank: int, *, beyond: bool = True) -> Layout:
    """The layout with every module at a rank; never above its own where nothing goes beyond.

    Dense tensors stay as they are.
    """
    specs = []
    for spec in layout.tensors:
        if spec.role in ("lora_a", "lora_b"):
            axis = directions_axis(spec)
            shape = list(spec.shape)
            shape[axis] = rank if beyond else min(rank, shape[axis])
            specs.append(spec.model_copy(update={"shape": tuple(shape)}))
        else:
            specs.append(spec)
    return Layout(tensors=tuple(specs))


def directions_axis(factor: TensorSpec) -> int:
    """Along which a factor's directions lie: the rows of A, the columns of B."""
    return 0 if factor.role == "lora_a" else 1


def same_but_for_ranks(one: Layout, other: Layout) -> bool:
    """Whether two layouts are of the same tensors, whatever rank each module has."""
    return layout_at(one, 1).digest == layout_at(other, 1).digest


def at_rank(adapter: Adapter, rank: int, draw: np.random.Generator) -> AtRank:
    """The adapter for a site of a rank.

    Args:
        adapter: The global one.
        rank: The site's, at least 1.
        draw: For A of directions beyond the adapter's own: as `fresh_rows`, and in the mean as long as the
            rows that are there, so that they train as fast and what is sent of them is as large.
    """
    factors: dict[str, Array] = {}
    for pair in pairs(adapter.layout):
        a, b = adapter[pair.a.name], adapter[pair.b.name]
        more = max(0, rank - pair.rank)
        if more:
            length = float(np.sqrt(3 * np.mean(np.sum(a.astype(np.float64) ** 2, axis=1)))) or 1.0
            fresh = (length * fresh_rows(more, pair.d_in, draw)).astype(a.dtype)
            a, b = np.vstack([a, fresh]), np.hstack([b, np.zeros((pair.d_out, more), b.dtype)])
        factors |= {pair.a.name: a, pair.b.name: b}
    return first_directions(_with_factors(adapter, factors), rank)


def first_directions(adapter: Adapter, rank: int) -> AtRank:
    """The first directions of each module train; the others, where there are any, stand frozen."""
    trained: dict[str, Array] = {}
    rest: dict[str, Array] = {}
    for pair in pairs(adapter.layout):
        a, b = adapter[pair.a.name], adapter[pair.b.name]
        trained |= {pair.a.name: a[:rank], pair.b.name: b[:, :rank]}
        rest |= {pair.a.name: a[rank:], pair.b.name: b[:, rank:]}
    own = _with_factors(adapter, trained)
    if not any(array.size for array in rest.values()):
        return AtRank(own, None)
    return AtRank(own, _factors_alone(adapter, rest))


def fresh_beside(adapter: Adapter, rank: int, draw: np.random.Generator) -> AtRank:
    """New directions of a rank train, with nothing in B; the whole adapter stands frozen beside them.

    Dense tensors train from where they are.

    Args:
        adapter: The global one.
        rank: The site's, at least 1.
        draw: For A, as `fresh_rows`.
    """
    trained: dict[str, Array] = {}
    rest: dict[str, Array] = {}
    for pair in pairs(adapter.layout):
        a, b = adapter[pair.a.name], adapter[pair.b.name]
        trained[pair.a.name] = fresh_rows(rank, pair.d_in, draw).astype(a.dtype)
        trained[pair.b.name] = np.zeros((pair.d_out, rank), b.dtype)
        rest |= {pair.a.name: a, pair.b.name: b}
    return AtRank(_with_factors(adapter, trained), _factors_alone(adapter, rest))


def fresh_rows(rows: int, d_in: int, draw: np.random.Generator) -> Array:
    """A of new directions, (rows, d_in), float64: uniform within ±1/√d_in, as LoRA's usual start.

    Hu et al. 2021; Kaiming's of a = √5 in PEFT. A row is about 1/√3 long.
    """
    width = 1 / np.sqrt(d_in)
    return draw.uniform(-width, width, (rows, d_in))


def beside(trained: Adapter, rest: Adapter | None) -> Adapter:
    """The whole adapter again: the trained directions, and those that stood frozen beside them."""
    if rest is None:
        return trained
    joined: dict[str, Array] = dict(trained.tensors())
    for pair in pairs(rest.layout):
        a, b = pair.a.name, pair.b.name
        joined[a] = np.vstack([joined[a], rest[a]])
        joined[b] = np.hstack([joined[b], rest[b]])
    return pack(_of_shapes(trained.layout, joined), joined, trained.vector.dtype)


def _with_factors(adapter: Adapter, factors: dict[str, Array]) -> Adapter:
    """The adapter with other factors, of any rank; its dense tensors stay."""
    tensors = {spec.name: factors.get(spec.name, adapter[spec.name]) for spec in adapter.layout.tensors}
    return pack(_of_shapes(adapter.layout, tensors), tensors, adapter.vector.dtype)


def _factors_alone(adapter: Adapter, factors: dict[str, Array]) -> Adapter:
    """Factors of an adapter's modules, without its dense tensors."""
    layout = Layout(tensors=tuple(spec for spec in adapter.layout.tensors if spec.name in factors))
    return pack(_of_shapes(layout, factors), factors, adapter.vector.dtype)


def _of_shapes(layout: Layout, tensors: dict[str, Array]) -> Layout:
    """The layout with the shapes that its tensors have."""
    return Layout(
        tensors=tuple(
            spec.model_copy(update={"shape": tensors[spec.name].shape}) if spec.name in tensors else spec
            for spec in layout.tensors
        )
    )
