"""What all sites of a process are sent alike is in memory once, however many sites keep it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from wardround.core.messages import Request
from wardround.core.packed import Packed
from wardround.strategies.contract import Broadcast


@dataclass
class SharedObjects:
    """The last broadcast and the last opened sums that a site of this process was sent.

    Called with a request as it was read, it gives the same over them, where its own are equal bit for bit.
    """

    _broadcast: Broadcast | None = field(default=None, repr=False)
    _opened: tuple[bytes, ...] = field(default=(), repr=False)

    def __call__(self, request: Request) -> Request:
        """The same request, over objects that other sites have."""
        if request.broadcast is not None and not same_bits(request.broadcast, self._broadcast):
            self._broadcast = request.broadcast
        if request.opened != self._opened and request.opened:
            self._opened = request.opened
        return replace(
            request,
            broadcast=None if request.broadcast is None else self._broadcast,
            opened=self._opened if request.opened else (),
        )


def same_bits(one: Packed, other: Packed | None) -> bool:
    """Whether two vectors of one layout are equal bit for bit, not-a-number included."""
    return (
        other is not None
        and one.layout.digest == other.layout.digest
        and one.vector.dtype == other.vector.dtype
        and np.array_equal(one.vector.view(np.uint8), other.vector.view(np.uint8))
    )
