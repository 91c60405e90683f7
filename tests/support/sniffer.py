"""Counts what leaves through a network interface: `sniffer.py INTERFACE OUTPUT`, until it is told to end.

OUTPUT gets {"PROTOCOL ADDRESS:PORT": [packets, bytes of TCP or UDP payload]} as JSON.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
from collections import defaultdict
from pathlib import Path

OUTGOING = 4
EVERY_PROTOCOL, IPV4, ARP = 0x0003, 0x0800, 0x0806
TCP, UDP = 6, 17


def main(interface: str, output: str) -> None:
    """Count until SIGTERM."""
    done = False

    def end(*_: object) -> None:
        nonlocal done
        done = True

    signal.signal(signal.SIGTERM, end)
    seen: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERY_PROTOCOL)) as wire:
        wire.bind((interface, EVERY_PROTOCOL))
        wire.settimeout(0.2)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 2**20)
        Path(output).write_text("{}")  # it listens
        while not done:
            try:
                packet, address = wire.recvfrom(2**17)
            except TimeoutError:
                continue
            if address[2] != OUTGOING or address[1] == ARP:
                continue  # what came in; who asks for a neighbour's hardware address
            place, size = told(packet, address[1])
            seen[place][0] += 1
            seen[place][1] += size
    Path(output).write_text(json.dumps(seen))


def told(packet: bytes, kind: int) -> tuple[str, int]:
    """Where a packet goes, and the bytes of its payload."""
    if kind != IPV4 or len(packet) < 20:
        return f"kind {kind:#06x}", len(packet)
    header = (packet[0] & 15) * 4
    (length,) = struct.unpack("!H", packet[2:4])
    protocol, address = packet[9], socket.inet_ntoa(packet[16:20])
    if protocol not in (TCP, UDP):
        return f"protocol {protocol} {address}", length - header
    (port,) = struct.unpack("!H", packet[header + 2 : header + 4])
    if protocol == UDP:
        return f"udp {address}:{port}", length - header - 8
    return f"tcp {address}:{port}", length - header - (packet[header + 12] >> 4) * 4


if __name__ == "__main__":
    main(*sys.argv[1:])
