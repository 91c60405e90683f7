"""What a site may tell of itself alone beside its sums: by kind, as its policy names them."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

from wardround.core.messages import SPENT, is_duration

Figures: TypeAlias = Literal["training", "validation", "clipping"]
FIGURES: Final[dict[Figures, tuple[str, ...]]] = {
    "training": ("train.",),
    "validation": ("validation.",),
    "clipping": ("clipped", "shortened_by"),
}
"""What a site may tell of itself alone → how the names of such figures begin."""
LEAST_TIME_S: Final = 1.0
"""The finest that a site says of a time; twice, four times, … as much is what else it says."""
LAST: Final = (0.75, 0.85, 0.95)
"""Of a round's deadline: the last places; the rest is for the way back and for the sums."""


def leaving_figures(policy: tuple[Figures, ...], figures: dict[str, float]) -> dict[str, float]:
    """Of a site's own figures what may leave: what the policy names, the ε spent, and times on a grid."""
    told = tuple(start for kind in policy for start in FIGURES[kind])
    times = {name: on_grid(value) for name, value in figures.items() if is_duration(name)}
    return times | {name: value for name, value in figures.items() if name == SPENT or name.startswith(told)}


def on_grid(seconds: float) -> float:
    """The least power of two times `LEAST_TIME_S` that is no less.

    A step takes the longer the more rows its Poisson batch holds: an exact time would tell their number.
    """
    return LEAST_TIME_S * 2.0 ** max(0, math.ceil(math.log2(max(seconds, LEAST_TIME_S) / LEAST_TIME_S)))


def answer_after(seconds: float, deadline_s: float) -> float:
    """When an answer leaves that is ready after so long: at the next place of the grid.

    The grid's own places up to the first of `LAST`, then these; what is ready after all of them leaves at
    once, and comes too late to count.
    """
    last = [share * deadline_s for share in LAST]
    places = [on_grid(seconds)] if on_grid(seconds) < last[0] else last
    return min((place for place in places if place >= seconds), default=seconds)
