"""What a metric family is: which counters a site fills, and what they say once summed.

A global metric is computed once from summed counts, never as a mean of the sites' scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from wardround.core.cells import Cells
from wardround.core.packed import Counters, Layout

LOSS_UNIT = 2.0**-20
"""One step of a fixed-point loss counter, in nats."""
LARGEST_LOSS = 1e6
"""Nats; a row's loss is counted as no more, so that a model gone astray cannot overflow the sum."""


@dataclass(frozen=True)
class Scores:
    """Figures computed from counters.

    Attributes:
        values: Metric name → value; a metric whose support is zero is absent, never 0 or NaN.
        support: Metric name → how many examples (or tokens) stand behind it.
        directions: Metric name → "min" or "max", whichever is better.
        by_class: Label → its own figures (precision, recall, f1, auroc) with `support`.
    """

    values: dict[str, float]
    support: dict[str, int]
    directions: dict[str, str]
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)


class MetricFamily(Protocol):
    """One family of metrics. Stateless."""

    directions: dict[str, str]
    """Every metric that `compute` may give → "min" or "max"."""

    def left_out(self, options: dict[str, Any]) -> dict[str, str]:
        """Metric of `directions` that is never computed under these task options → what would make it so."""

    def layout(self, labels: tuple[str, ...], options: dict[str, Any]) -> Layout:
        """Counters, role `counter`, int64; sums over examples, so that sites add up."""

    def coarse(self, counters: Counters, cells: Cells, rows: int) -> Counters:
        """One site's counters as they may leave it: no count of fewer rows than the smallest cell in them.

        Args:
            counters: Of the layout.
            cells: Of the site.
            rows: That were counted, of the source.
        """

    def compute(self, counters: Counters, labels: tuple[str, ...], options: dict[str, Any]) -> Scores:
        """Figures from the summed counters."""
