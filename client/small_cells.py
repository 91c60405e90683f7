"""The secret chance by which a site rounds its counts (`core/cells.py`)."""

from __future__ import annotations

from typing import Final

from wardround.core.cells import Cells
from wardround.privacy.secagg.hashing import derive
from wardround.privacy.secagg.secret import Secret

_SALT: Final = b"wardround small cells 1"


def site_cells(storage: Secret, smallest: int) -> Cells:
    """The same at every start, in every run: asked again, a site gives the same answer.

    Args:
        storage: The site's storage key.
        smallest: Rows; every count leaves as a multiple of so many.
    """
    drawn = int.from_bytes(derive(storage, _SALT, "offset").reveal(), "big")
    return Cells(smallest, drawn % smallest)
