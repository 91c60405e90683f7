"""A run of the round loop, put into virtual time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from wardround.runtime.events import EventStream
from wardround.server.run import Run
from wardround.simulations.site_work import site_batches
from wardround.simulations.virtual.clock import VirtualClock
from wardround.simulations.virtual.settings import Realism
from wardround.simulations.virtual.sites import VirtualSites, work_of
from wardround.simulations.virtual.telling import FILE, Timekeeper
from wardround.training.site_rows import SiteRows


@contextmanager
def timed(
    run: Run,
    settings: Realism,
    rows: Mapping[str, SiteRows],
    least_cohort: int,
    folder: Path,
) -> Iterator[Run]:
    """The run with its deadlines, its answers and what is told of it by the virtual clock.

    Args:
        run: As it would go without one.
        settings: Checked.
        rows: Site → its rows.
        least_cohort: What the sites' policy asks for.
        folder: Of the arm; it keeps there what it needs to go on.

    Raises:
        ConfigError: As `VirtualSites.of`.
    """
    work = {
        name: work_of(settings, run.plan, own.training, own.validation, site_batches(run.plan, own))
        for name, own in rows.items()
    }
    clock = VirtualClock(run.transport, VirtualSites.of(settings, run.plan, work, least_cohort))
    following: set[str] = set()
    keeper = Timekeeper(clock, run.events, folder / FILE, following)
    with clock:
        yield replace(
            run,
            transport=clock,
            events=EventStream((keeper,)),
            clock=clock.clock,
            grace_s=settings.grace_s,
            following=following,
            poll_s=math.inf,  # the next answer comes when it comes
            away=clock.away,
        )
