"""What came of a run: the record that the server signs, and that sites check an adapter by."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from wardround.core.checked import Frozen
from wardround.runtime.signed import Hex32

KIND: Final = "result"
LARGEST: Final = 2**22
"""Bytes of a signed record, at the most."""


class ResultRecord(Frozen):
    """The end of one run.

    Attributes:
        run_id: Of the run.
        plan: Digest of the signed plan.
        roster: Digest of the members' keys that it went by.
        sites: That took part, sorted.
        missing: Round, and the sites that were asked in it and are not in its sum; others are not told.
        reason: `completed` or `early_stop`.
        metric: By which the released round was chosen.
        scores: Round and value, as far as it was scored.
        released_round: Whose adapter is released.
        released: Digest of that adapter.
        last_round: The last one.
        last: Digest of its adapter.
    """

    run_id: str = Field(min_length=1, max_length=200)
    plan: Hex32
    roster: Hex32
    sites: tuple[str, ...]
    missing: tuple[tuple[int, tuple[str, ...]], ...] = ()
    reason: str
    metric: str
    scores: tuple[tuple[int, float], ...]
    released_round: int = Field(ge=0)
    released: Hex32
    last_round: int = Field(ge=0)
    last: Hex32
