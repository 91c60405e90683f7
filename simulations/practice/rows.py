"""Rows for practice sites: the demo's four hospitals, the largest of them as two, one file a site."""

from __future__ import annotations

import csv
import io
from importlib import resources
from typing import Final

LARGEST: Final = "cleveland"
FILE: Final = "rows.csv"


def practice_rows() -> dict[str, bytes]:
    """Site → a CSV file of its own rows; the training rows of `simulations/demo/heart.csv`."""
    text = (resources.files("wardround.simulations.demo") / "heart.csv").read_text(encoding="utf-8")
    reader = csv.DictReader(io.StringIO(text))
    sites: dict[str, list[dict[str, str]]] = {}
    for row in reader:
        if row["split"] == "train":
            sites.setdefault(row["site"], []).append(row)
    largest = sites.pop(LARGEST)
    sites |= {f"{LARGEST}-east": largest[::2], f"{LARGEST}-west": largest[1::2]}
    fields = list(reader.fieldnames or ())
    return {name: _csv(rows, fields) for name, rows in sorted(sites.items())}


def _csv(rows: list[dict[str, str]], fields: list[str]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
