"""How well scores tell members from others: AUC with an interval, and the hits at few false alarms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wardround.core.errors import DataError

_LEAST: Final = 2
_TAIL: Final = 0.025

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Hits:
    """Members that are found where so few others are taken for one.

    Attributes:
        false_alarms: Share of the others that may be taken for members.
        rate: Share of the members that is found.
        found: How many that is.
        allowed: Others that may be taken for members; 0 says that there are too few of them for such a rate.
    """

    false_alarms: float
    rate: float
    found: int
    allowed: int


@dataclass(frozen=True)
class Separation:
    """Members against others.

    Attributes:
        auc: P[score of a member > score of another one], ties by half.
        low: Of its 95 % interval.
        high: Likewise.
        members: How many.
        others: How many.
        hits: At 1 % and at 0.1 % false alarms.
    """

    auc: float
    low: float
    high: float
    members: int
    others: int
    hits: tuple[Hits, ...]


def separation(members: Scores, others: Scores, rates: tuple[float, ...] = (0.01, 0.001)) -> Separation:
    """AUC with DeLong's interval (DeLong, DeLong & Clarke-Pearson 1988), and rates of hits.

    A score that separates completely has no variance there: then the interval is that of as many independent
    pairs as can be made, all in order (Clopper & Pearson).

    Args:
        members: (m,), higher for what looks like a member.
        others: (n,).
        rates: Shares of false alarms.

    Raises:
        DataError: Fewer than two on a side, or a score that is not a number.
    """
    if min(len(members), len(others)) < _LEAST or np.isnan(members).any() or np.isnan(others).any():
        raise DataError(
            "too few scores to tell members from others", found=f"{len(members)} and {len(others)}",
            expected="two of each at least, all of them numbers",
        )  # fmt: skip
    m, n = len(members), len(others)
    joint = stats.rankdata(np.concatenate([members, others]))
    beaten = (joint[:m] - stats.rankdata(members)) / n  # by each member: its share of the others
    beating = 1 - (joint[m:] - stats.rankdata(others)) / m
    auc = float(beaten.mean())
    variance = float(beaten.var(ddof=1)) / m + float(beating.var(ddof=1)) / n
    low, high = _interval(auc, variance, min(m, n))
    return Separation(auc, low, high, m, n, tuple(_hits(members, others, rate) for rate in rates))


def _interval(auc: float, variance: float, pairs: int) -> tuple[float, float]:
    half = float(stats.norm.isf(_TAIL)) * math.sqrt(variance)
    if half > 0:
        return max(0.0, auc - half), min(1.0, auc + half)
    reach = 1 - _TAIL ** (1 / pairs)
    return max(0.0, auc - reach), min(1.0, auc + reach)


def _hits(members: Scores, others: Scores, rate: float) -> Hits:
    allowed = math.floor(rate * len(others))
    threshold = np.sort(others)[::-1][allowed]  # as many others are above it, at most
    found = int((members > threshold).sum())
    return Hits(rate, found / len(members), found, allowed)
