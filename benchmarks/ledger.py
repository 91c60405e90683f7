"""A site's privacy ledger: how quickly it opens and grows, and that no kill makes it count too little.

    python benchmarks/ledger.py size [--entries 100000] [--units 100000]
    python benchmarks/ledger.py kill [--times 1000] [--mirror] [--seed 0]

`size` builds a ledger without syncing (which only takes time), counts its rows by hand and compares, then
times it with every sync in place. `kill` forks a process that reserves, settles and seals as fast as it can
and says so through a pipe after each call; it is killed (SIGKILL) at a random instant, and everything that
it said has to be in the ledger, counted from its bare lines. Goals: open 100,000 entries in under a second,
append in milliseconds, never an under-count.

Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.repair import mend
from wardround.client.ledger.store import make_mirror
from wardround.core.errors import StorageError
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.privacy.accounting.renyi import rdp_of_step_at

PLAN = "ab" * 32
STEPS = 7
MECHANISM = SampledGaussian(sample_rate=0.01, sigma=4.0, steps=STEPS)
ROUNDS = 500
"""Of each run."""
KILLS_OF_ONE_LEDGER = 50


def reserve(ledger: Ledger, source: object, number: int, draw: str = "0" * 32) -> object:
    """The reservation of a numbered stage."""
    return ledger.reserve(
        source,  # type: ignore[arg-type]  # a Source
        run=f"run {number // ROUNDS}",
        plan=PLAN,
        round=number % ROUNDS,
        stage=0,
        draw=draw,
        mechanism=MECHANISM,
    )


def recount(folder: Path) -> tuple[Counter[tuple[str, int]], set[tuple[str, int]]]:
    """Steps charged and stages sealed, by run and round, from the bare lines."""
    steps: Counter[tuple[str, int]] = Counter()
    sealed = set()
    for line in (folder / "ledger.jsonl").read_bytes().split(b"\n")[:-1]:
        row = json.loads(line)["body"]
        if row["kind"] == "reserve":
            steps[row["terms"]["run"], row["round"]] += row["terms"]["mechanism"]["steps"]
        elif row["kind"] == "settle":
            steps[row["run"], row["round"]] -= STEPS - row["steps"]
        elif row["kind"] == "seal":
            sealed.add((row["run"], row["round"]))
    return steps, sealed


def timed(work: Callable[[], object], repeats: int) -> str:
    """Median and range of wall times, in milliseconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return f"median {statistics.median(times):8.2f} ms ({min(times):.2f} to {max(times):.2f})"


def size(entries: int, units: int) -> None:
    """Build, compare, time."""
    rdp_of_step_at(2.0, 0.5, 1.0)  # what is imported for the first time now is not timed below
    with tempfile.TemporaryDirectory() as room:
        folder, mirror = Path(room) / "ledger", Path(room) / "mirror"
        policy = BudgetPolicy(epsilon=1e6, delta=0.1 / (units + 1))
        sync, os.fsync = os.fsync, lambda _: None
        with Ledger.create(folder, policy, units=units + 1) as ledger:
            source = ledger.source("everybody", range(units))
            for number in range(entries):
                reserve(ledger, source, number)
        os.fsync = sync
        with Ledger.open(folder) as ledger:
            counted = sum(recount(folder)[0].values())
            assert ledger.book.totals[0].steps.total() == counted == STEPS * entries
            print(f"{entries} entries, {(folder / 'ledger.jsonl').stat().st_size >> 20} MiB, {units} units")
        print("open              ", timed(lambda: Ledger.open(folder).close(), 5))
        numbers = iter(range(entries, 10 * entries))
        with Ledger.open(folder) as ledger:
            print("reserve           ", timed(lambda: reserve(ledger, source, next(numbers)), 200))
            ids = iter(range(units, 10 * units))
            print("a source more     ", timed(lambda: ledger.source("more", range(next(ids) + 1)), 1))
        make_mirror(folder, mirror)
        with Ledger.open(folder, mirror=mirror) as ledger:
            print("reserve, mirrored ", timed(lambda: reserve(ledger, source, next(numbers)), 200))


def child(folder: Path, mirror: Path | None, said: int, first: int) -> None:
    """Reserve, settle and seal until killed; says what returned, and before it what may lower a charge."""

    def say(kind: str, number: int, steps: int) -> None:
        os.write(said, f"{kind} {number} {steps}\n".encode())

    with Ledger.open(folder, mirror=mirror) as ledger:
        source = ledger.source("ward", range(20))
        number = first
        while True:
            reservation = reserve(ledger, source, number, draw=os.urandom(8).hex())
            say("reserved", number, STEPS)
            if number % 3 == 0:
                say("settling", number, STEPS - 2)
                ledger.settle(reservation, STEPS - 2)  # type: ignore[arg-type]  # a Reservation
            if number % 4 == 0:
                ledger.seal(run=f"run {number // ROUNDS}", round=number % ROUNDS, stage=0, digest=PLAN)
                say("sealed", number, 0)
            number += 1


def kill_once(folder: Path, mirror: Path | None, first: int, wait_s: float) -> list[tuple[str, int, int]]:
    """Run a child and kill it so long after its first words; what it said."""
    heard, said = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(heard)
            child(folder, mirror, said, first)
        finally:
            os._exit(1)
    os.close(said)
    with os.fdopen(heard, "rb") as pipe:
        words = [pipe.readline()]
        time.sleep(wait_s)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        words += pipe.readlines()
    found = [word.decode().split() for word in words if word.endswith(b"\n")]
    assert found, "the child said nothing: it did not get as far as a reservation"
    return [(kind, int(number), int(steps)) for kind, number, steps in found]


def kill(times: int, seed: int, *, mirrored: bool) -> None:
    """Kill so often; asserts that everything that was said is there."""
    rng = random.Random(seed)  # noqa: S311 - chooses instants, protects nobody
    rdp_of_step_at(2.0, 0.5, 1.0)  # imported here, so that no child has to
    torn = calls = 0
    for batch in range(0, times, KILLS_OF_ONE_LEDGER):
        with tempfile.TemporaryDirectory() as room:
            folder = Path(room) / "ledger"
            mirror = Path(room) / "mirror" if mirrored else None
            Ledger.create(folder, BudgetPolicy(epsilon=1e6, delta=1e-5), units=20, mirror=mirror).close()
            least: Counter[tuple[str, int]] = Counter()
            sealed = set()
            for attempt in range(min(KILLS_OF_ONE_LEDGER, times - batch)):
                first = 1_000 * attempt
                words = kill_once(folder, mirror, first, rng.uniform(0, 0.04))
                calls += len(words)
                for kind, number, steps in words:
                    place = (f"run {number // ROUNDS}", number % ROUNDS)
                    if kind == "sealed":
                        sealed.add(place)
                    else:
                        least[place] = steps
                try:
                    Ledger.open(folder, mirror=mirror).close()
                except StorageError as error:
                    if "torn line" not in error.what:
                        raise
                    torn += 1
                    mend(folder, who="the benchmark", why="killed", mirror=mirror)
                charged, stand = recount(folder)
                missing = {place: n for place, n in least.items() if charged[place] < n}
                assert not missing, f"charged too little: {missing}"
                assert sealed <= stand, f"seals are missing: {sealed - stand}"
            with Ledger.open(folder, mirror=mirror) as ledger:
                assert ledger.book.totals[0].steps.total() == sum(charged.values())
    print(f"{times} kills, {calls} calls had returned, {torn} torn lines, nothing missing")


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sized = commands.add_parser("size")
    sized.add_argument("--entries", type=int, default=100_000)
    sized.add_argument("--units", type=int, default=100_000)
    killed = commands.add_parser("kill")
    killed.add_argument("--times", type=int, default=1_000)
    killed.add_argument("--seed", type=int, default=0)
    killed.add_argument("--mirror", action="store_true")
    asked = parser.parse_args()
    if asked.command == "size":
        size(asked.entries, asked.units)
    else:
        kill(asked.times, asked.seed, mirrored=asked.mirror)


if __name__ == "__main__":
    main()
