"""Inputs from outside as nobody would write them: valid ones changed at a few places, and random bytes."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from hypothesis import strategies as st

from wardround.core.errors import InternalError, WardroundError

ODD = (
    b"null", b"-1", b"1e400", b"NaN", b"18446744073709551616", b'""', b"[]", b"{}", b"[[[[[[[[", b"\\ud800",
    b"\0", b"\xff\xfe", b"\n", b"'", b"&a *a", b"9" * 5000, b"[" * 2000, b"true",
)  # fmt: skip
"""What parsers stumble over."""
MOST_S = 10.0
"""For one input, on a machine that does other things as well."""
SLACK_BYTES = 12 * 2**20
"""What a decoder may hold whatever it is given: room for the largest plan, when a file of one is read."""
TIMES = 10
"""So many times its input may a decoder hold."""

Read: TypeAlias = Callable[[bytes], Any]
Made: TypeAlias = tuple[list[bytes], Read]
KINDS: dict[str, Callable[[Path, Any], Made]] = {}


def kind(name: str) -> Callable[[Callable[[Path, Any], Made]], Callable[[Path, Any], Made]]:
    """Notes how examples and reader of a kind of input are made, of a folder and the `consortium` fixture."""

    def note(make: Callable[[Path, Any], Made]) -> Callable[[Path, Any], Made]:
        KINDS[name] = make
        return make

    return note


@st.composite
def changed(draw: st.DrawFn, examples: Sequence[bytes]) -> bytes:
    """One of the examples, changed at one to four places."""
    data = draw(st.sampled_from(examples))
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.sampled_from(("flip", "cut", "drop", "extend", "splice", "repeat", "odd"))):
            case "flip" if start < len(data):
                data = data[:start] + bytes([data[start] ^ draw(st.integers(1, 255))]) + data[start + 1 :]
            case "cut":
                data = data[:end]
            case "drop":
                data = data[:start] + data[min(end, start + 20) :]
            case "extend":
                data += draw(st.binary(max_size=40))
            case "splice":
                data = data[:start] + draw(st.sampled_from(examples))[start:]
            case "repeat":
                data = data[:end] + data[start:end] + data[end:]
            case "odd":
                data = data[:start] + draw(st.sampled_from(ODD)) + data[min(end, start + 8) :]
    return data


def inputs(examples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly changed examples."""
    return st.one_of(changed(examples), changed(examples), changed(examples), st.binary(max_size=300))


@dataclass
class Watched:
    """A decoder whose errors, time and memory are watched.

    Attributes:
        read: The decoder.
        weigh_every: Memory is measured for each so many-th input: that takes time.
        read_well: Inputs that it took.
        refused: Inputs that it refused by name.
    """

    read: Callable[[bytes], Any]
    weigh_every: int = 10
    read_well: int = 0
    refused: int = 0
    _seen: int = field(default=0)

    def __call__(self, data: bytes) -> None:
        """Read or refuse by name, quickly, and in little memory."""
        self._seen += 1
        weigh = self._seen % self.weigh_every == 0
        if weigh:
            tracemalloc.start()
        started = time.perf_counter()
        try:
            self.read(data)
            self.read_well += 1
        except InternalError:
            raise  # a broken invariant of ours is no answer to anybody's input
        except WardroundError:
            self.refused += 1
        finally:
            took = time.perf_counter() - started
            peak = tracemalloc.get_traced_memory()[1] if weigh else 0
            if weigh:
                tracemalloc.stop()
        assert took < MOST_S, f"{took:.1f} s for {len(data)} bytes"
        assert peak <= TIMES * len(data) + SLACK_BYTES, f"{peak} bytes for an input of {len(data)}"
