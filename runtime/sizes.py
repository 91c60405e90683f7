"""Bytes as people read them."""

from __future__ import annotations

KILO = 1000.0


def size_text(size_bytes: float) -> str:
    """Such as `12 B`, `4.5 kB`, `1.2 GB`."""
    amount, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < KILO:
            break
        amount, unit = amount / KILO, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
