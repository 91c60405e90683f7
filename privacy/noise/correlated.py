"""Noise that is correlated over the steps of a run (`accounting/banded.py`), drawn as exactly as any other.

With c as there, step t releases, for its clipped sum x_t,

    y_t = rounded(x_t − Σ_(0 < i < b) c_i w_(t−i) + σ Z_t)        w_s = y_s − x_s

by `gaussian.noised`: given all that was released before, it is a Gaussian mechanism on the reals, rounded to
a grid that depends on σ alone. What it is asked at step t is (C x)_t − Σ c_i y_(t−i), a function of the data
and of earlier releases; so w may be kept as float64 has it, and nothing is charged for arithmetic.

The state is secret: whoever has w and y has x. It is durable before what it belongs to may leave, and no step
is released twice (`client/noise_file.py`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from wardround.core.errors import ConfigError, InternalError
from wardround.core.packed import Array
from wardround.privacy.accounting.banded import coefficients, variances
from wardround.privacy.noise.gaussian import noised
from wardround.privacy.noise.source import RandomSource

KEY_BYTES: Final = 32


@dataclass(frozen=True, repr=False, eq=False)
class NoiseState:
    """Where a run's noise stands between two steps. Secret, like what it hides.

    Attributes:
        key: Of the run: decides who is in which block.
        done: Steps that it has noised.
        kept: w of the last steps, the newest first, (min(done, b − 1), P) float64.
    """

    key: bytes
    done: int
    kept: Array

    @staticmethod
    def begin(source: RandomSource) -> NoiseState:
        """Before the first step of a run, under a fresh key."""
        key = np.ascontiguousarray(source.words(KEY_BYTES // 8)).tobytes()
        return NoiseState(key, 0, np.zeros((0, 0)))


@final
class CorrelatedNoise:
    """Adds a run's noise, step by step.

    Args:
        bands: b.
        steps: n, of the whole run.
        state: Where it stands.

    Raises:
        InternalError: The state is none of such a run.
    """

    def __init__(self, bands: int, steps: int, state: NoiseState) -> None:
        held = state.kept
        if not 0 <= state.done <= steps or len(held) != min(state.done, bands - 1):
            raise InternalError(
                "the state of correlated noise is of another run", found=f"{held.shape} after {state.done}",
                expected=f"{min(state.done, bands - 1)} steps, of a run of {steps}",
            )  # fmt: skip
        self._bands, self._steps, self._key, self._done = bands, steps, state.key, state.done
        self._kept = deque((np.array(row, dtype=np.float64) for row in held), maxlen=bands - 1)

    @property
    def done(self) -> int:
        """Steps that were noised; the next one has this number, counted from 0."""
        return self._done

    @property
    def key(self) -> bytes:
        """Of the run's blocks."""
        return self._key

    @property
    def state(self) -> NoiseState:
        """To go on from."""
        kept = np.stack(list(self._kept)) if self._kept else np.zeros((0, 0))
        return NoiseState(self._key, self._done, kept)

    @property
    def variance(self) -> float:
        """Of the next step's noise, over that of z."""
        return float(variances(self._bands, self._steps)[min(self._done, self._steps - 1)])

    def add(self, total: Array, standard_deviation: float, source: RandomSource) -> Array:
        """The sum of the next step, with its noise.

        Args:
            total: (P,) float64: a sum of clipped contributions, of the step's block.
            standard_deviation: Of z: σ times the clip norm, the same in all steps.
            source: Random words.

        Returns:
            (P,) float64; the input is left as it is.

        Raises:
            ConfigError: It has other coordinates than the steps before.
            InternalError: The run has no such step, or as `noised`.
        """
        if self._done >= self._steps:
            raise InternalError(
                "more steps are noised than the run has", found=self._done + 1, expected=self._steps
            )
        if self._kept and self._kept[0].shape != total.shape:
            raise ConfigError(
                "correlated noise is for the same parameters in every step",
                found=f"{total.size} coordinates", expected=f"{self._kept[0].size}, as in the steps before",
                remedy="set privacy.mechanism to poisson, or take a strategy that trains the same tensors in "
                "every round",
            )  # fmt: skip
        centre = np.array(total, dtype=np.float64)
        for coefficient, earlier in zip(coefficients(self._bands)[1:], self._kept, strict=False):
            centre -= coefficient * earlier
        released = noised(centre, standard_deviation, source)
        self._kept.appendleft(released - total)
        self._done += 1
        return released
