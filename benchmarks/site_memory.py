"""Memory and pace of a simulation by the number of its sites, with an adapter large enough to be seen.

    python benchmarks/site_memory.py [SITES ...] [--mode off|real] [--rounds 3]

MiniLM with LoRA of rank 64 on query and value (0.7 M numbers, 2.8 MB) over `pqa_sections` (needs
WARDROUND_DATA), one step of one short row a round: what waits is what counts here, and not what trains. Each
number of sites in a process of its own. Printed: the adapter's size; of the process, at the beginning of each
round, memory that is its own and not a file's (RssAnon), which a number of sites that grows must not raise;
its peak, mapped files included; seconds of a round after the first.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import quality

from wardround.runtime.events import Event, RoundFolded, RoundStarted
from wardround.simulations.simulate import run_simulation

SETTINGS = [
    "experiment=pqa_sections", "partition.kind=iid", "~partition.options", "data.max_length=16",
    "data.validation_fraction=0", "adapter.options={r: 64, alpha: 64, targets: [query, value]}",
    "local.epochs=null", "++local.steps=1", "local.batch_size=1", "data.test=null", "machine.threads=1",
    "bounds.centralised=false", "evaluation.every=null",
]  # fmt: skip


def own_mib() -> float:
    """Resident memory that no file stands behind, MiB."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found.group(1)) / 1024 if found else 0.0


class Marks:
    """Memory at the beginning of each round, and when each round ended."""

    def __init__(self) -> None:
        self.mib: list[float] = []
        self.seconds: list[float] = []
        self._since = time.monotonic()

    def emit(self, event: Event) -> None:
        """Look."""
        if isinstance(event, RoundStarted):
            self.mib.append(own_mib())
        elif isinstance(event, RoundFolded):
            now = time.monotonic()
            self.seconds.append(now - self._since)
            self._since = now

    def close(self) -> None:
        """Nothing is held."""


def inside(sites: int, mode: str, rounds: int) -> None:
    """Run and print one line."""
    marks = Marks()
    with tempfile.TemporaryDirectory() as place:
        config = quality.parsed([
            *SETTINGS, f"+partition.options={{sites: {sites}, by: row}}", f"secure.mode={mode}",
            f"rounds.rounds={rounds}", f"release.every={rounds}", f"output={place}/run",
        ])  # fmt: skip
        result = run_simulation(config, sinks=(marks,))
    size = result.federated.outcome.last.adapter.vector.nbytes / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    own = ", ".join(f"{mib:.0f}" for mib in marks.mib)
    later = statistics.median(marks.seconds[1:])
    print(
        f"{mode} {sites} sites, adapter {size:.1f} MiB: own memory by round {own} MiB, peak {peak:.0f} MiB, "
        f"{later:.1f} s a round, {sites / later:.1f} site-rounds a second"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sites", nargs="*", type=int, default=[50, 300, 1000])
    parser.add_argument("--mode", choices=["off", "real"], default="off")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside(given.sites[0], given.mode, given.rounds)
        return
    for sites in given.sites:
        command = [sys.executable, __file__, str(sites), "--mode", given.mode, "--rounds", str(given.rounds)]
        subprocess.run([*command, "--inside"], check=True)


if __name__ == "__main__":
    main()
