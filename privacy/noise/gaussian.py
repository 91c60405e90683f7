"""Gaussian noise on a vector of float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wardround.privacy.noise.source import RandomSource


def noised(
    total: NDArray[np.float64], standard_deviation: float, source: RandomSource
) -> NDArray[np.float64]:
    """`total` + N(0, standard_deviation²), by Box and Muller."""
    words = source.words(2 * total.size)
    radius, angle = ((words >> np.uint64(11)) + 0.5).reshape(2, -1) * 2.0**-53
    normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
    return np.asarray(total + standard_deviation * normal.reshape(total.shape), dtype=np.float64)
