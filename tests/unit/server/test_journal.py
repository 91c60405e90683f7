"""The journal of one arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wardround.core.packed import Packed
from wardround.server.journal import Journal
from wardround.server.selection import Selection
from wardround.strategies.contract import ServerState


def test_a_state_that_a_killed_server_left_without_its_line_is_replaced(bench: Any, tmp_path: Path) -> None:
    """The round is run again and may end elsewhere (another site is late): the new state counts."""
    plan = bench.plan_of()
    journal = Journal(tmp_path, plan)
    none = Selection(plan.release)

    def state(round: int, value: float) -> ServerState:
        vector = np.full(bench.initial.layout.size, value, dtype=np.float32)
        return ServerState(round, Packed(bench.initial.layout, vector), {})

    journal.commit(state(1, 0.5), none)
    journal.keep(state(2, 0.25))  # killed before the line
    resumed = journal.resume()
    assert resumed is not None
    assert resumed[0].round == 1
    journal.commit(state(2, 0.75), none)
    again = journal.resume()
    assert again is not None
    assert again[0].adapter.digest == state(2, 0.75).adapter.digest
