"""Peak memory of 50 simulated sites, divided by that of one.

    python benchmarks/memory.py [SITES]

Each in a process of its own, on the demo's rows: all 552 at one site, or spread over 50. One round, no
test scoring. Goal: at most 1.2. Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile


def peak_mib(sites: int) -> float:
    """Peak resident memory of a simulation with that many sites, MiB, measured by the process itself."""
    done = subprocess.run(
        [sys.executable, __file__, "--inside", str(sites)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.strip().splitlines()[-1])


def inside(sites: int) -> None:
    """Run and print the peak."""
    from hydra import compose, initialize_config_module
    from rich.console import Console

    from wardround.simulations.command import run_composed

    with (
        tempfile.TemporaryDirectory() as folder,
        initialize_config_module("wardround.conf", version_base="1.3"),
    ):
        composed = compose(
            "config",
            overrides=[
                "experiment=demo", "strategy=fedavg", "rounds.rounds=1", "bounds.local_only=false",
                "bounds.centralised=false", "data.test=null", "partition.kind=iid",
                f"+partition.options.sites={sites}", f"output={folder}/run",
            ],
        )  # fmt: skip
        result = run_composed(composed, console=Console(quiet=True))
    assert len(result.federated.arm.sites) == sites
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(sites: int = 50) -> None:
    """Print both peaks and their ratio."""
    one, many = peak_mib(1), peak_mib(sites)
    print(f"1 site: {one:.0f} MiB   {sites} sites: {many:.0f} MiB   ratio {many / one:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(int(sys.argv[2]))
    else:
        main(*map(int, sys.argv[1:2]))
