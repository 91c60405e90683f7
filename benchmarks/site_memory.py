"""Memory and pace of a simulation by the number of its sites, with an adapter large enough to be seen.

    python benchmarks/site_memory.py [SITES ...] [--mode off|real] [--rounds 3] [--rank 64]
                                      [--how alone|together|workers]

MiniLM with LoRA of rank 64 on query and value (0.6 M numbers, 2.3 MiB) over `pqa_sections` (needs
WARDROUND_DATA), one step of one short row a round: what waits is what counts here, and not what trains. Where
there are more sites than rows, the rows come again under other names. Each number of sites in a process of
its own, which trains them one after another, or several together; with `workers` as `wardround simulate`
comes, a process a core. Printed: the adapter's size; of all its processes, at the beginning of each
round, memory that is theirs and not a file's (Pss_Anon), which a number of sites that grows must not raise;
the first one's peak, mapped files included; seconds of a round after the first.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import quality
from _simulators_running import processes

from wardround.runtime.events import Event, RoundFolded, RoundStarted
from wardround.simulations.simulate import run_simulation

SETTINGS = [
    "experiment=pqa_sections", "partition.kind=iid", "~partition.options", "data.max_length=16",
    "data.validation_fraction=0", "adapter.options.targets=[query, value]",
    "local.epochs=null", "++local.steps=1", "local.batch_size=1", "data.test=null",
    "bounds.centralised=false", "evaluation.every=null",
]  # fmt: skip
HOW = {
    "alone": ["machine.threads=1"],
    "together": ["machine.threads=1", "simulation.together=auto"],
    "workers": ["simulation.together=auto"],
}
ROWS = "data/pqa_sections/train.jsonl.gz"


def enough_rows(folder: Path, sites: int) -> Path:
    """A file with a row for each site: the set's own, and again with a number before the sentence."""
    with gzip.open(Path(os.environ["WARDROUND_DATA"]) / ROWS, "rt", encoding="utf-8") as file:
        own = [json.loads(line) for line in file]
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(itertools.islice(itertools.cycle(own), max(sites, len(own)))):
            turn = number // len(own)
            again = {name: f"{turn}-{row[name]}" for name in ("id", "pmid")} if turn else {}
            text = {"text": f"{turn} {row['text']}"} if turn else {}
            file.write(json.dumps(row | again | text) + "\n")
    return path


def own_mib() -> float:
    """Memory of all processes that no file stands behind, MiB; of what several share each counts its part."""
    total = 0
    for pid in processes(os.getpid()):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss_Anon:"):
                total += int(line.split()[1])
    return total / 1024


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


def inside(sites: int, mode: str, rounds: int, rank: int, how: str) -> None:
    """Run and print one line."""
    marks = Marks()
    with tempfile.TemporaryDirectory() as place:
        config = quality.parsed([
            *SETTINGS, f"+partition.options={{sites: {sites}, by: row}}", f"secure.mode={mode}",
            f"data.source.path={enough_rows(Path(place), sites)}",
            f"adapter.options.r={rank}", f"adapter.options.alpha={rank}",
            f"rounds.rounds={rounds}", f"release.every={rounds}", f"output={place}/run",
            *HOW[how],
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
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--how", choices=list(HOW), default="alone")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside(given.sites[0], given.mode, given.rounds, given.rank, given.how)
        return
    options = ["--mode", given.mode, "--rounds", str(given.rounds), "--rank", str(given.rank)]
    for sites in given.sites:
        command = [sys.executable, __file__, str(sites), *options, "--how", given.how, "--inside"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
