"""Bytes as people read them."""

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
