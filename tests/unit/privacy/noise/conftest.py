"""Sources for tests of noise: repeatable ones, and one that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from wardround.core.packed import Array
from wardround.core.seeds import Purpose
from wardround.privacy.noise.source import RandomSource, RepeatableSource


class ScriptedSource:
    """These words, one after the other, and no more."""

    repeatable = True

    def __init__(self, words: Iterable[int]) -> None:
        self._words = list(words)

    def words(self, count: int) -> Array:
        """The next ones of the script."""
        assert count <= len(self._words), "the script has no more words"
        taken, self._words = self._words[:count], self._words[count:]
        return np.array(taken, dtype=np.uint64)


@pytest.fixture
def repeatable() -> Callable[[int], RandomSource]:
    """Seed → a source that says the same every time, so that no statistical test ever flickers."""
    return lambda seed: RepeatableSource(seed, Purpose.NOISE, round=1, site="mercy")


@pytest.fixture
def scripted() -> Callable[[Iterable[int]], RandomSource]:
    """Words → a source of them."""
    return ScriptedSource
