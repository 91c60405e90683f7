"""Every decoder of what comes from outside, or lies on a disk: it reads, or refuses by name; nothing else.

50 inputs of each kind by default and 10,000 (`-m slow`): changed examples and random bytes, always the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fuzzed_files
import fuzzed_messages
import pytest
from fuzz import KINDS, Made, Watched, inputs
from hypothesis import HealthCheck, given, settings

NOTED = (fuzzed_files.__name__, fuzzed_messages.__name__)
"""Whoever is imported notes its kinds."""


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path, consortium: Any) -> Made:
    """Examples and reader of a kind."""
    return KINDS[request.param](tmp_path, consortium)


def fuzzed(made: Made, count: int) -> Watched:
    """The reader after so many inputs."""
    examples, read = made
    watched = Watched(read)
    for example in examples:
        watched(example)
    assert (watched.read_well, watched.refused) == (len(examples), 0), "an example is not valid"

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(inputs(examples))
    def each(data: bytes) -> None:
        watched(data)

    each()
    return watched


@pytest.mark.parametrize("made", sorted(KINDS), indirect=True)
def test_an_input_is_read_or_refused_by_name(made: Made) -> None:
    """In little time and memory."""
    fuzzed(made, 50)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("made", sorted(KINDS), indirect=True)
def test_ten_thousand_inputs_are_read_or_refused_by_name(made: Made) -> None:
    """In little time and memory."""
    fuzzed(made, 10_000)
