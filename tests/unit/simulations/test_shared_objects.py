"""What many sites are sent alike is one object, and what differs in a bit is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wardround.core.messages import Request
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.simulations.shared_objects import SharedObjects, same_bits

LAYOUT = Layout(tensors=(TensorSpec(name="x", shape=(3,)),))
RENAMED = Layout(tensors=(TensorSpec(name="y", shape=(3,)),))


def packed(*values: float) -> Packed:
    """A vector of its own."""
    return Packed(LAYOUT, np.array(values, np.float32))


def request(site: str, broadcast: Packed | None = None, opened: tuple[bytes, ...] = ()) -> Request:
    """As it was read from a message of its own."""
    return Request("run", "d", 2, site, {"training": b"o"}, broadcast=broadcast, opened=opened)


def test_equal_ones_are_one_object_and_the_request_is_the_same() -> None:
    """Whoever is asked second gets what the first one has."""
    shared = SharedObjects()
    first = shared(request("a", packed(1, 2, 3), (bytes([7] * 9),)))
    asked = request("b", packed(1, 2, 3), (bytes([7] * 9),))
    second = shared(asked)
    assert second.broadcast is first.broadcast
    assert second.opened is first.opened
    assert asked.broadcast is not None
    assert second.broadcast is not None
    assert replace(second, broadcast=None) == replace(asked, broadcast=None)
    np.testing.assert_array_equal(second.broadcast.vector, asked.broadcast.vector)
    assert shared(request("c", None, (bytes([7] * 9),))).broadcast is None
    assert shared(request("d", packed(1, 2, 3))).opened == ()
    assert shared(request("e")) == request("e")


def test_another_broadcast_and_other_sums_stay_what_they_are() -> None:
    """One site is sent another state than the rest: its own checks have to see it."""
    shared = SharedObjects()
    shared(request("a", packed(1, 2, 3), (b"one", b"two")))
    other = shared(request("b", packed(1, 2, 4), (b"one", b"too")))
    assert other.broadcast is not None
    assert list(other.broadcast.vector) == [1, 2, 4]
    assert other.opened == (b"one", b"too")


def test_bits_are_compared_and_not_numbers() -> None:
    """Minus zero is another broadcast, not-a-number is the same one."""
    assert not same_bits(packed(0, 1, 2), packed(-0.0, 1, 2))
    assert same_bits(packed(np.nan, 1, 2), packed(np.nan, 1, 2))
    assert not same_bits(packed(0, 1, 2), Packed(RENAMED, packed(0, 1, 2).vector))
    assert not same_bits(packed(0, 1, 2), Packed(LAYOUT, np.array([0, 1, 2], np.float64)))
    assert not same_bits(packed(0, 1, 2), None)
