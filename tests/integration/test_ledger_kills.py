"""A client that is killed at random instants: everything that it was told stands in its ledger."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ledger.py"


@pytest.mark.parametrize(
    ("times", "more"),
    [
        (20, []),
        (20, ["--mirror"]),
        pytest.param(1000, [], marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_no_kill_makes_the_ledger_count_too_little(times: int, more: list[str]) -> None:
    """SIGKILL between, before and within writes; the script asserts that nothing is missing."""
    command = [sys.executable, str(SCRIPT), "kill", "--times", str(times), *more]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{times} kills" in done.stdout
    assert "nothing missing" in done.stdout


def test_the_benchmark_of_size_runs() -> None:
    """Small; it compares its count with the ledger's before it times anything."""
    command = [sys.executable, str(SCRIPT), "size", "--entries", "50", "--units", "30"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "reserve, mirrored" in done.stdout
