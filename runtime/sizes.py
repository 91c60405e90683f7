"""Bytes and seconds as people read them."""

from __future__ import annotations

KILO = 1000.0
MOST = 10**18


def size_text(size_bytes: float) -> str:
    """Such as `12 B`, `4.5 kB`, `1.2 GB`."""
    amount, unit = float(min(size_bytes, MOST)), "B"  # an integer may be too large for a float
    for larger in ("kB", "MB", "GB"):
        if amount < KILO:
            break
        amount, unit = amount / KILO, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """Such as `0.3 s`, `12.0 min`, `5.5 h`, `2.1 d`."""
    amount, unit = seconds, "s"
    for larger, many in (("min", 60.0), ("h", 60.0), ("d", 24.0)):
        if amount < 2 * many:
            break
        amount, unit = amount / many, larger
    return f"{amount:.1f} {unit}"
