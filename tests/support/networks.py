"""Two machines on a wire between them: network namespaces, for which a test has to be root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SERVER, SITE = "10.213.7.1", "10.213.7.2"
SLOW_LINE = Path(__file__).with_name("slow_line.py")


@dataclass(frozen=True)
class Machine:
    """One end of the wire.

    Attributes:
        name: Of its network namespace.
        interface: Its end.
    """

    name: str
    interface: str

    @contextmanager
    def process(
        self, arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A Python process there, ended with the block."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env,
            )  # fmt: skip
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def why_not() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    name = f"wr{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces need root and iproute2: {error}"
    return None


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """The server's and the site's; the site's only way out of itself leads to the server's."""
    ends = Machine(f"wrs{os.getpid()}", f"ws{os.getpid()}"), Machine(f"wrh{os.getpid()}", f"wh{os.getpid()}")
    with ExitStack() as stack:
        for machine in ends:
            _ip("netns", "add", machine.name)
            stack.callback(_ip, "netns", "del", machine.name)
        server, site = ends
        _ip("link", "add", server.interface, "type", "veth", "peer", "name", site.interface)
        for machine, address in ((server, SERVER), (site, SITE)):
            _ip("link", "set", machine.interface, "netns", machine.name)
            inside = ("-n", machine.name)
            _ip(
                "netns", "exec", machine.name, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
            )
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "addr", "add", f"{address}/30", "dev", machine.interface)
            _ip(*inside, "link", "set", machine.interface, "up")
        _ip("-n", site.name, "route", "add", "default", "via", SERVER)
        yield ends


@dataclass(frozen=True)
class Line:
    """How bad a line is.

    Attributes:
        bits_s: Bits a second, each way.
        round_trip_s: Seconds there and back.
        loss: Share of packets that are lost, each way.
    """

    bits_s: float
    round_trip_s: float
    loss: float


@contextmanager
def slow_machines(line: Line) -> Iterator[tuple[Machine, Machine]]:
    """As `two_machines`, with a slow line between them (`slow_line.py`)."""
    ends = Machine(f"wrs{os.getpid()}", f"wt{os.getpid()}"), Machine(f"wrh{os.getpid()}", f"wu{os.getpid()}")
    server, site = ends
    with ExitStack() as stack:
        for machine in ends:
            _ip("netns", "add", machine.name)
            stack.callback(_ip, "netns", "del", machine.name)
        figures = map(str, (line.bits_s, line.round_trip_s, line.loss))
        process = subprocess.Popen(
            [sys.executable, str(SLOW_LINE), server.interface, site.interface, *figures],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout.readline() == "ready\n"
        for machine, address, other in ((server, SERVER, SITE), (site, SITE, SERVER)):
            _ip("link", "set", machine.interface, "netns", machine.name)
            inside = ("-n", machine.name)
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "addr", "add", address, "peer", other, "dev", machine.interface)
            _ip(*inside, "link", "set", machine.interface, "up")
        yield ends


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
