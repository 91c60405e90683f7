"""What the allocator gives back."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import ctypes
from pathlib import Path
from wardround.server.allocator import keep_little

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if {tuned}:
    if not keep_little():
        raise SystemExit(77)
first = bytearray(8 << 20)
del first  # from here on glibc's own threshold is above 8 MB
blocks = [bytearray(4 << 20) for _ in range(16)]
last = ctypes.create_string_buffer(100_000)  # and what lies above them cannot be trimmed
pins = [bytearray(100_000) for _ in range(40)]
before = resident()
del blocks
print(before - resident())
"""


def given_back(*, tuned: bool) -> int:
    """Bytes that a process gives back of 64 MiB that it frees."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(tuned=tuned)], check=False, capture_output=True, text=True
    )
    if done.returncode == 77:
        import pytest

        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_what_a_server_frees_it_gives_back() -> None:
    """Also between things that stay; glibc's own settings keep it."""
    assert given_back(tuned=True) > 60 << 20
    assert given_back(tuned=False) < 30 << 20
