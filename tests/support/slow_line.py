"""A slow and lossy line between two network namespaces: real packets, held back by this process.

python slow_line.py NEAR FAR BITS_A_SECOND ROUND_TRIP_S LOSS

It makes a TUN interface for each end, says so, and is killed at the end.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import sys
import time
from dataclasses import dataclass, field

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LARGEST = 2048
QUEUE_S = 0.5
"""So much of the line's time a queue before it holds; what comes then is lost, as in a router."""


def tun(name: str) -> int:
    """A descriptor from which packets are read that leave by the interface of this name."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


@dataclass
class Way:
    """One direction.

    Attributes:
        into: Descriptor to which packets go.
        bits_s: Of the line.
        delay_s: Of each packet, beside its turn.
        loss: Share of packets that are lost.
        chance: Which of them.
    """

    into: int
    bits_s: float
    delay_s: float
    loss: float
    chance: random.Random
    free_at: float = 0.0
    under_way: list[tuple[float, int, bytes]] = field(default_factory=list)
    number: itertools.count[int] = field(default_factory=itertools.count)

    def take(self, packet: bytes, now: float) -> None:
        """A packet at the line's near end."""
        if max(0.0, self.free_at - now) > QUEUE_S or self.chance.random() < self.loss:
            return
        self.free_at = max(now, self.free_at) + 8 * len(packet) / self.bits_s
        heapq.heappush(self.under_way, (self.free_at + self.delay_s, next(self.number), packet))

    def deliver(self, now: float) -> float | None:
        """Hand over what has arrived; seconds until the next one arrives, None without any."""
        while self.under_way and self.under_way[0][0] <= now:
            os.write(self.into, heapq.heappop(self.under_way)[2])
        return self.under_way[0][0] - now if self.under_way else None


def main(near: str, far: str, bits_s: float, round_trip_s: float, loss: float) -> None:
    """Carry packets until this process ends."""
    ends = tun(near), tun(far)
    chance = random.Random(0)
    ways = {here: Way(there, bits_s, round_trip_s / 2, loss, chance) for here, there in (ends, ends[::-1])}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        waits = [wait for way in ways.values() if (wait := way.deliver(time.monotonic())) is not None]
        ready, _, _ = select.select(ends, [], [], max(0.0, min(waits, default=1.0)))
        for here in ready:
            ways[here].take(os.read(here, LARGEST), time.monotonic())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:]))
