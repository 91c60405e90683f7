"""What one line of `wardround site check` says, and all lines that there are, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

from wardround.core.errors import ConfigError, WardroundError

Status: TypeAlias = Literal["passes", "warns", "fails"]

CHECKS: Final[Mapping[str, str]] = {
    "keys": "the site's keys: there, closed to others, those of the roster, not about to end",
    "settings": "site.yaml can be read, and the ledger's policy",
    "ledger": "the privacy ledger: every row and signature",
    "disk": "free space for what a run keeps",
    "device": "the device of site.yaml, and its memory",
    "plan": "the plan: signed, sound, allowed by this site's policy",
    "models": "each base model of site.yaml",
    "data": "the rows of site.yaml",
    "dns": "the name of the server, or of the proxy",
    "proxy": "which proxy the connection takes, and that the loopback takes none",
    "tcp": "a connection to the server, or to the proxy",
    "tls": "whose certificate the server shows",
    "clock": "this machine's clock against the server's",
    "versions": "what both sides speak",
    "admitted": "that the server admits this site, and under which roster",
    "round trip": "how long a question and its answer take",
    "bandwidth": "how fast bytes go up and down",
    "dry step": "one training step on the longest batch that the plan allows",
    "estimate": "time and memory of a round",
}
"""Check → what it looks at. docs/site-check.md lists each with its limits and remedy."""
OF_A_PLAN: Final = ("plan", "dry step", "estimate")
"""Left out where no plan is named."""


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        check: One of `CHECKS`.
        status: Whether the site can take part as far as this goes.
        found: What was there; no data value, no secret.
        remedy: What to do; empty where it passes.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""


def passes(check: str, found: str) -> Finding:
    """A line that is as it should be."""
    return Finding(check, "passes", found)


def warns(check: str, found: str, remedy: str) -> Finding:
    """A line that will do, or that could not be looked at."""
    return Finding(check, "warns", found, remedy)


def fails(check: str, found: str, remedy: str) -> Finding:
    """A line that has to change before this site can take part."""
    return Finding(check, "fails", found, remedy)


def unseen(check: str, because: str) -> Finding:
    """A line that could not be looked at since another one fails.

    Args:
        check: This one.
        because: The other.
    """
    return warns(check, f"not looked at: {because!r} comes first", f"settle {because!r}, and check again")


def of_error(check: str, error: Exception) -> Finding:
    """The line of a look that ended in an error. A foreign one may hold data: its kind alone is told."""
    if not isinstance(error, WardroundError):
        return fails(check, f"unexpected: {type(error).__name__}", "report it; the other lines still count")
    found = error.what if error.found is None else f"{error.what}: {error.found}"
    expected = "" if error.expected is None else f"expected: {error.expected}"
    return fails(check, found, error.remedy or expected or "correct it, and check again")


def worst(check: str, findings: Iterable[Finding]) -> Finding:
    """Several findings of one check as one line: the worst status, what led to it first."""
    order = ("fails", "warns", "passes")
    sorted_ = sorted(findings, key=lambda finding: order.index(finding.status))
    if not sorted_:
        raise ConfigError("a check found nothing at all", found=check)
    remedies = dict.fromkeys(finding.remedy for finding in sorted_ if finding.remedy)
    return Finding(
        check, sorted_[0].status, "; ".join(finding.found for finding in sorted_), "; ".join(remedies)
    )


def exit_code(findings: Iterable[Finding]) -> int:
    """0 where nothing fails, else 1."""
    return int(any(finding.status == "fails" for finding in findings))


def as_values(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """For JSON."""
    return [asdict(finding) for finding in findings]
