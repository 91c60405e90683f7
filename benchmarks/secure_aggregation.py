"""Secure aggregation beside Flower's SecAgg+ and TenSEAL's CKKS, on the same vectors.

    python benchmarks/secure_aggregation.py run [--parameters 1e6] [--sites 10] [--lost 0 0.2] [--bits 32 16]
        [--systems wardround secagg+ ckks] [--degree 0 --share-threshold 0] [--threads 1 2] [--repeats 3]
    python benchmarks/secure_aggregation.py run --all [--missing]
    python benchmarks/secure_aggregation.py table

First all systems have to find the same mean of the same vectors, every site real. Then each configuration
runs in a process of its own: the sum that the server opens has to be the plain sum, to the bit, and what
clients and server took is the median of `--repeats` clients and openings. Processor times are those of one
thread; with two, the time on the wall is read. Memory is the growth of a client's peak resident memory
(ru_maxrss) from before its vector exists, in another process; from 1 M parameters on.

Each configuration adds a line to benchmarks/results/secure_aggregation.jsonl, or to `--results`. `--all` is
the whole grid, the peers to 10 M parameters; `--missing` leaves out what has a line already. What needs more
memory than is free, or more than `--most-minutes`, is skipped, and said to be.

TenSEAL is no dependency: `pip install tenseal==0.3.18`, or its rows say that it is absent.
How the sites that are not measured are played: `_secure_extras.py`, `_secure_peers.py`.

Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from _secure_case import Case
from _secure_table import Line, goals, table

RESULTS = Path(__file__).parent / "results" / "secure_aggregation.jsonl"
OURS, FLOWER, CKKS = "wardround", "secagg+", "ckks"
SYSTEMS = (OURS, FLOWER, CKKS)
LEAST_FOR_MEMORY = 1_000_000
"""Below, the libraries' own memory is most of what is seen."""
NEEDED_BYTES = {OURS: 64, FLOWER: 96, CKKS: 250}
"""A parameter, roughly: what does not fit the free memory is skipped."""
PEERS_TO = 10_000_000
THE_MANY = Case(1_000_000, 1000, 0.2, degree=100, share_threshold=60)
PACKAGES = ("cryptography", "flwr", "numpy", "pycryptodome", "tenseal")


def inside(system: str, what: str, case: Case) -> dict[str, Any]:
    """One measurement, in this process."""
    import _secure_ours as ours
    import _secure_peers as peers

    match system, what:
        case (_, "agree"):
            return agree(case)
        case ("wardround", "measure"):
            return ours.measure(case)
        case ("wardround", _):
            return ours.memory(case)
        case ("secagg+", "measure"):
            return peers.flower(case)
        case ("secagg+", _):
            return peers.flower_memory(case)
        case (_, "measure"):
            return peers.ckks(case)
        case _:
            return peers.ckks_memory(case)


def agree(case: Case) -> dict[str, Any]:
    """All systems find the weighted mean of the same vectors, to their own precision."""
    import _secure_ours as ours
    import _secure_peers as peers

    alive = range(case.sites - case.lost_sites)
    total = sum(case.weight(site) for site in alive)
    exact = sum(case.vector(site).astype(np.float64) * case.weight(site) for site in alive) / total
    errors: dict[str, float] = {}
    for of_case in (case, replace(case, bits=16), replace(case, degree=4, share_threshold=4)):
        found, bound = ours.mean(of_case)
        errors[f"{OURS}, {of_case.bits} bits, degree {of_case.degree or 'n-1'}"] = error = _off(found, exact)
        assert error <= bound + 1e-9, f"{error} is above {bound}"
    errors[FLOWER] = _off(peers.flower_mean(case), exact)
    assert errors[FLOWER] <= len(alive) * peers.quantum(case) / total
    try:
        errors[CKKS] = _off(peers.ckks_mean(case), exact)
    except ModuleNotFoundError:
        return errors
    assert errors[CKKS] <= 1e-6
    return errors


def _off(found: Any, exact: Any) -> float:
    return float(np.abs(found - exact).max())


def child(system: str, what: str, case: Case, seconds: float) -> dict[str, Any]:
    """One measurement, in a process of its own with so many threads."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(case.threads))
    done = subprocess.run(
        [sys.executable, __file__, "inside", system, what, json.dumps(asdict(case))],
        check=True, stdout=subprocess.PIPE, text=True, timeout=seconds, env={**os.environ, **threads},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def free_bytes() -> int:
    """Memory that may be taken."""
    for row in Path("/proc/meminfo").read_text().splitlines():
        if row.startswith("MemAvailable"):
            return int(row.split()[1]) * 1024
    return 1 << 62


def machine() -> dict[str, Any]:
    """What the figures were seen on."""
    info = Path("/proc/cpuinfo")
    models = [
        row.split(":")[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")
    ]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{len(models)} × {models[0] if models else platform.processor()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def measured(system: str, case: Case, seconds: float) -> dict[str, Any] | str:
    """The figures of one configuration, or why there are none."""
    needed = NEEDED_BYTES[system] * case.parameters
    if needed > free_bytes() * 0.9:
        return f"needs about {needed >> 30} GiB of memory"
    try:
        found = child(system, "measure", case, seconds)
        if case.threads == 1 and case.parameters >= LEAST_FOR_MEMORY and "absent" not in found:
            found |= child(system, "memory", case, seconds)
    except subprocess.TimeoutExpired:
        return f"took over {seconds / 60:.0f} minutes"
    return found


def grid() -> Iterator[tuple[str, Case]]:
    """Everything, one thread."""
    for parameters in (100_000, 1_000_000, 10_000_000, 100_000_000):
        for sites in (5, 10, 50):
            for lost in (0.0, 0.2):
                yield from configurations(SYSTEMS, (32, 16), Case(parameters, sites, lost))
    yield from configurations((OURS,), (32, 16), THE_MANY)


def configurations(systems: Sequence[str], widths: Sequence[Any], case: Case) -> Iterator[tuple[str, Case]]:
    """Of one case: ours at each width; a peer once; CKKS whatever the sites."""
    for system in systems:
        if system == OURS:
            yield from ((OURS, replace(case, bits=bits)) for bits in widths)
        elif case.parameters <= PEERS_TO and not case.degree:
            yield system, case if system == FLOWER else replace(case, sites=0, lost=0.0)


def asked(args: argparse.Namespace) -> Iterator[tuple[str, Case]]:
    """What the command line names."""
    for parameters in args.parameters:
        for sites in args.sites:
            for lost in args.lost:
                case = Case(
                    int(parameters), sites, lost, degree=args.degree, share_threshold=args.share_threshold
                )
                yield from configurations(args.systems, args.bits, case)


def run(args: argparse.Namespace) -> None:
    """Assert equality, then measure."""
    print("same mean:", child(OURS, "agree", Case(10_007, 5, 0.2), args.most_minutes * 60), flush=True)
    have = {line.key for line in lines(args.results)} if args.missing else set()
    of_machine = machine()
    for system, named in dict.fromkeys(grid() if args.all else asked(args)):
        for threads in args.threads:
            case = replace(named, threads=threads, repeats=args.repeats)
            line = {"system": system, "case": asdict(case)}
            if Line(line).key in have:
                continue
            started = time.perf_counter()
            found = measured(system, case, args.most_minutes * 60)
            what = f"{system:10} {case.parameters / 1e6:g} M × {case.sites}, {case.lost_sites} lost, "
            what += f"{case.bits} bits, {threads} threads:"
            if isinstance(found, str):
                print(what, "skipped, it", found, flush=True)
                continue
            with args.results.open("a") as file:
                file.write(json.dumps(line | found | of_machine, ensure_ascii=False) + "\n")
            said = f"client {found['client']['cpu_s']:.3f} s" if "client" in found else found["absent"]
            print(what, said, f"({time.perf_counter() - started:.0f} s in all)", flush=True)


def lines(results: Path) -> list[Line]:
    """What was measured."""
    return [Line(json.loads(row)) for row in results.read_text().splitlines()] if results.exists() else []


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--all", action="store_true", help="the whole grid; sizes and sites are ignored")
    runs.add_argument("--missing", action="store_true", help="only what has no line yet")
    runs.add_argument("--parameters", type=float, nargs="+", default=[1e6])
    runs.add_argument("--sites", type=int, nargs="+", default=[10])
    runs.add_argument("--lost", type=float, nargs="+", default=[0.0, 0.2], help="shares of the sites")
    runs.add_argument("--bits", type=int, nargs="+", default=[32, 16], help="of our ring")
    runs.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    runs.add_argument("--degree", type=int, default=0, help="of a regular graph, ours only")
    runs.add_argument("--share-threshold", type=int, default=0, help="of a regular graph")
    runs.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    runs.add_argument("--repeats", type=int, default=3, help="clients and openings")
    runs.add_argument("--most-minutes", type=float, default=20, help="for one measurement")
    for command in (runs, commands.add_parser("table")):
        command.add_argument("--results", type=Path, default=RESULTS, help="file of the lines")
    one = commands.add_parser("inside")
    for name in ("system", "what", "case"):
        one.add_argument(name)
    args = parser.parse_args()
    match args.command:
        case "run":
            run(args)
        case "table":
            found = lines(args.results)
            print(table(found), goals(found), sep="\n\n")
        case _:
            try:
                print(json.dumps(inside(args.system, args.what, Case(**json.loads(args.case)))))
            except ModuleNotFoundError as error:
                if error.name != "tenseal":
                    raise
                print(json.dumps({"absent": "TenSEAL is not installed"}))


if __name__ == "__main__":
    main()
