"""Notices that a run's rows are others than when the site accepted it: a source grows, shrinks, is mended.

The run goes on with what there is now, and privacy is reserved for whoever is in it now: every reservation
charges the units of the moment. A local round that was left at a checkpoint begins anew (`checkpoints.py`).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Final

from pydantic import Field

from wardround.core.checked import Frozen
from wardround.privacy.secagg.hashing import derive
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.files import write_atomic
from wardround.runtime.small_files import read_value, value_bytes
from wardround.training.site_rows import SiteRows

LOG = logging.getLogger(__name__)
FILE: Final = "rows.json"
_SALT: Final = b"wardround rows of a run 1"


class Rows(Frozen):
    """What a run was accepted with.

    Attributes:
        mark: Of all of them, under a key of the site: by itself it tells nothing of a row.
        training: How many it trained on.
        units: Whose they were, patients or rows.
    """

    mark: str = Field(pattern="^[0-9a-f]{64}$")
    training: int = Field(ge=0)
    units: int = Field(ge=0)


def mark_of(storage: Secret, rows: SiteRows) -> str:
    """What tells these rows from others, to whoever has the site's storage key alone; 64 digits."""
    key = derive(storage, _SALT, "mark")
    return hmac.new(key.reveal(), rows.digest.encode(), hashlib.sha256).hexdigest()


def note_rows(folder: Path, storage: Secret, rows: SiteRows) -> bool:
    """Say in the site's log that the rows have changed, once for each change.

    Args:
        folder: Of the run.
        storage: The site's storage key.
        rows: As they were read now.

    Returns:
        Whether they are others than the last time.

    Raises:
        StorageError: The note cannot be read or written.
    """
    path = folder / FILE
    now = Rows(mark=mark_of(storage, rows), training=len(rows.training), units=len(set(rows.units)))
    before = read_value(path, Rows, remedy="remove it: the rows of now are noted") if path.exists() else now
    if before == now and path.exists():
        return False
    write_atomic(path, value_bytes(now), private=True)
    if before == now:
        return False
    LOG.warning(
        "run %s: this site's rows have changed since it was accepted, or since the last change: %d rows of "
        "%d units to train on then, %d of %d now. The run goes on with these; a round that was left begins "
        "anew",
        folder.name, before.training, before.units, now.training, now.units,
    )  # fmt: skip
    return True
