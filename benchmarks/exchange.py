"""How long an empty exchange with a site takes, and how often an idle site asks: ours beside Flower's pauses.

    python benchmarks/exchange.py [--exchanges 20] [--idle-s 120]

One server and one site's two processes on loopback, over TLS with node authentication. Each reply is compared
with what was asked. "Flower's pauses" is the same site and server with the pauses of a stock deployment (the
node looks every 3 s, the server's app every 3 s) and our resident worker; a stock deployment starts a process
for each message on top, so the figure is a lower bound of its time.

Idle: the requests that one site makes when it has had no message for long, counted at the listener and scaled
to an hour; Flower's heartbeats are among them.

On 2026-11-26, x86-64, 2 cores shared with other work (load 6), flwr 1.41.0: ours 1.03 s (0.75 to 1.61),
Flower's pauses 3.17 s (3.07 to 6.37); idle 400 and 1520 requests an hour.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from deployed import Pair, answer, for_children, make_pair, wait_for
from flwr.app import ConfigRecord, Message, RecordDict

from wardround.client.processes import SiteProcesses
from wardround.server.listener import Door, Receive, Scope, Send
from wardround.server.superlink import FlowerRun, SuperLink

STOCK = "Flower's pauses"
STOCK_S = 3.0
OURS_S = 0.2
IDLE_S = 15.0
REQUESTS: list[str] = []


def counted() -> None:
    """Note the path of every request that reaches a listener."""
    call = Door.__call__

    async def noting(self: Door, scope: Scope, receive: Receive, send: Send) -> None:
        REQUESTS.append(scope["path"])
        await call(self, scope, receive, send)

    Door.__call__ = noting  # type: ignore[method-assign]  # for the count


@contextmanager
def site(pair: Pair, link: SuperLink, least_s: float, most_s: float) -> Iterator[None]:
    """One that polls so."""
    settings = replace(pair.settings(link.address), least_s=least_s, most_s=most_s)
    heard = link.online()["north"]
    began = time.monotonic()
    with SiteProcesses(settings):
        wait_for(
            lambda: (
                (now := link.online()["north"]) is not None
                and (heard is None or now < time.monotonic() - began)
            )
        )
        yield


def exchange(run: FlowerRun, number: int, poll_s: float) -> float:
    """Seconds of one empty exchange."""
    asked = RecordDict({"ask": ConfigRecord({"do": f"echo {number}"})})
    began = time.perf_counter()
    waiting = list(run.grid.push_messages([Message(asked, run.node_of("north"), "train", ttl=600)]))
    while not (replies := list(run.grid.pull_messages(waiting))):
        time.sleep(poll_s)
    seconds = time.perf_counter() - began
    assert answer(replies[0])["do"] == f"echo {number}"
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time of an empty exchange, and requests of an idle site")
    parser.add_argument("--exchanges", type=int, default=20)
    parser.add_argument("--idle-s", type=float, default=120.0)
    options = parser.parse_args()
    counted()
    with tempfile.TemporaryDirectory() as folder, for_children():
        pair = make_pair(Path(folder))
        with pair.server() as link:
            link.admit("north", pair.key("north"))
            run = link.open_run("benchmark")
            medians = {}
            for name, pause_s in (("ours", OURS_S), (STOCK, STOCK_S)):
                with site(pair, link, pause_s, pause_s):
                    exchange(run, -1, pause_s)  # the first fetches the run
                    before = len(REQUESTS)
                    times = [exchange(run, number, pause_s) for number in range(options.exchanges)]
                    per = (len(REQUESTS) - before) / options.exchanges
                medians[name] = statistics.median(times)
                print(
                    f"{name:16} median {medians[name]:.2f} s, {min(times):.2f} to {max(times):.2f} s, "
                    f"{per:.0f} requests an exchange"
                )
            print(f"ratio {medians[STOCK] / medians['ours']:.1f}")
            for name, pause_s in (("ours", IDLE_S), (STOCK, STOCK_S)):
                with site(pair, link, pause_s, pause_s):
                    before = len(REQUESTS)
                    time.sleep(options.idle_s)
                    count = len(REQUESTS) - before
                print(f"{name:16} idle: {count * 3600 / options.idle_s:.0f} requests an hour")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
