"""A ledger whose backup is put back."""

from __future__ import annotations

import shutil
from pathlib import Path

from wardround.client.ledger.heads import Head
from wardround.client.ledger.reading import verify

IDS = [f"patient {i}" for i in range(20)]
SIGNED = {"who": "Dr Test", "why": "the disk broke"}


def restore(folder: Path, backup: Path) -> None:
    """Put the backup back."""
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)


def last(folder: Path) -> Head:
    """The head of a ledger."""
    return verify(folder).head
