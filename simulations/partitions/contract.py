"""What a partition is: every row in exactly one site, by the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from wardround.training.examples import Example


class Partition(Protocol):
    """One way of spreading rows. Stateless."""

    Options: ClassVar[type[BaseModel]]

    def split(self, examples: Sequence[Example], options: Any, *, seed: int) -> dict[str, list[int]]:
        """Spread rows over sites; equal arguments give equal sites on every machine.

        Args:
            examples: All rows.
            options: A checked value of `Options`.
            seed: Root of the seed tree; the purpose is PARTITION.

        Returns:
            Site name → indices of its rows, ascending; names sorted, every row in exactly one site.

        Raises:
            DataError: The rows cannot be spread as asked (too few, a column missing).
        """
