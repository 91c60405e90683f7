"""The noise of sums, as sites or the server add it in the ring: the second test where no step has noise.

Integers of zero are given to the code that noises contributions, or opened sums, and what comes back is the
noise. A discrete Gaussian of more than a few ring units has the variance it is named by, and a sum of squares
that is distributed like a chi-square.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wardround.privacy.noise.source import RandomSource
from wardround.privacy.packing import word_of
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.noise import RingNoise
from wardround.training.private.audit.findings import Finding
from wardround.training.private.audit.noise import Noise, judged


def noise_of_sums(noise: RingNoise, sources: Mapping[str, RandomSource], *, central: bool) -> list[Finding]:
    """Deviation and mean of what each source gives, and its independence from the others'.

    Args:
        noise: Of the plan.
        sources: Name of a site and round → its words.
        central: Whether the server adds it to the opened sum, and not each site to its contribution.
    """
    found = []
    for name, source in sources.items():
        values = (_central if central else _share)(noise, source) / noise.variance**0.5
        squares = {"ring": (float(np.square(values).sum()), len(values))}
        found.append(Noise(values, squares, float(values.sum()), len(values), name))
    return judged(found, shape=False)  # integers have steps that a test of a continuous shape would see


def _share(noise: RingNoise, source: RandomSource) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    word, half = word_of(noise.signal.bits), 1 << (noise.signal.bits - 1)
    words = noise.added_to(np.zeros(noise.coordinates, word), source).astype(np.uint64)
    ring = np.uint64(2 * half - 1)
    return ((words + np.uint64(half)) & ring).astype(np.float64) - half


def _central(noise: RingNoise, source: RandomSource) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    nothing = Sum(np.zeros(noise.coordinates, np.int64), np.zeros(0, np.int64), (), ())
    return noise.added_to_sum(nothing, source).coordinates.astype(np.float64)
