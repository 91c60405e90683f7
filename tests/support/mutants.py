"""Private steps broken on purpose: whoever guards against one of these faults has to notice it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from wardround.training.private import gradient, summing
from wardround.training.private.clipping import Flat
from wardround.training.private.units import ClippedSum


def no_clip(patch: pytest.MonkeyPatch) -> None:
    """The factor is forgotten."""
    patch.setattr(Flat, "factors", lambda _, norms: torch.ones_like(norms))


def clip_by_example(patch: pytest.MonkeyPatch) -> None:
    """Each row by itself: a unit of three moves the sum by up to 3 C."""

    def fold(total: ClippedSum, gradients: torch.Tensor, units: Sequence[int]) -> None:
        total.add(gradients, [(unit, row, len(total._norms)) for row, unit in enumerate(units)])

    patch.setattr(summing, "fold_piece", fold)


def noise_times(factor: float) -> Callable[[pytest.MonkeyPatch], None]:
    """So many times the noise."""

    def patched(patch: pytest.MonkeyPatch) -> None:
        plain = gradient.add_noise
        patch.setattr(
            gradient, "add_noise", lambda total, deviation, source: plain(total, factor * deviation, source)
        )

    return patched
