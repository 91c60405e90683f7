"""What a test of the audit found. Figures over many rows, never a row: no text, no id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

RARE: Final = 1e-6
"""Each kind of test raises a false alarm so often, however many comparisons it makes."""


@dataclass(frozen=True)
class Finding:
    """One test's.

    Attributes:
        test: Its name.
        found: What it measured.
        least: Smallest value that is allowed.
        most: Largest one.
        note: What stands behind the figure.
    """

    test: str
    found: float
    least: float
    most: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """What is not a number passes nothing."""
        return self.least <= self.found <= self.most


def all_pass(findings: Iterable[Finding]) -> bool:
    """Whether every test found what is allowed; no test at all shows nothing."""
    verdicts = [finding.passed for finding in findings]
    return bool(verdicts) and all(verdicts)
