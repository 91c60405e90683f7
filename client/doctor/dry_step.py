"""The main of a dry step's process: base models, then one training step, measured; a line of JSON for each.

    python -m wardround.client.doctor.dry_step     settings on standard input, as dry_process.py writes them

It is a process of its own so that its peak of memory is the step's, and so that a machine that is too small
kills it and not the check. It writes no file and asks no ledger; the adapter ends with it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from wardround.client.doctor.judge_plan import LESS, FoundModel, Measured, Tried
from wardround.client.doctor.longest_rows import longest_rows
from wardround.client.local_data import open_bench
from wardround.client.own_rank import own_rank, start_of
from wardround.client.site_settings import ModelPlace, SiteSettings
from wardround.core.checked import Frozen
from wardround.core.enrolment import SignedPlan
from wardround.core.errors import InternalError, UnreadyError, WardroundError
from wardround.core.plan import TrainingPlan
from wardround.privacy.accounting.of_plan import RoundCost
from wardround.privacy.noise.source import SystemSource
from wardround.strategies.contract import LocalRules
from wardround.training.device_memory import out_of_memory
from wardround.training.local_round import LocalJob, train_locally
from wardround.training.plan_strategy import bind_strategy
from wardround.training.private.local import PrivateRound
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench

STATES: Final = {"model_absent": "absent", "model_differs": "differs"}
DRY_SIGMA: Final = 1.0
"""Of the noise, which is thrown away: its size costs nothing."""


class Dry(Frozen):
    """What the process is started with.

    Attributes:
        site: Name of the site.
        settings: Its own, paths in full.
        plan: The document.
    """

    site: str
    settings: SiteSettings
    plan: SignedPlan


def try_out(dry: Dry, tell: Callable[[Tried], None]) -> Tried:
    """Look at every base model, and take one step with the first that is the plan's.

    Args:
        dry: What to try.
        tell: Is told after each part: the process may be killed in the next one.
    """
    plan, tried, bench = dry.plan.plan, Tried(), None
    for place in dry.settings.models:
        found, opened = _look(dry, place)
        bench = bench or opened
        del opened  # of two that are the plan's, one is in memory
        tried = tried.model_copy(update={"models": (*tried.models, found)})
        tell(tried)
    if bench is None:
        return tried
    try:
        rows, made_up = longest_rows(plan, bench, dry.settings, dry.site)
        rank = own_rank(dry.settings, plan)
        step = measure_step(plan, bench, rows, dry.site, rank, made_up=made_up)
        tried = tried.model_copy(update={"step": step})
    except WardroundError as error:
        tried = tried.model_copy(
            update={"why": ": ".join(filter(None, (error.what, error.found))), "remedy": error.remedy or ""}
        )
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        tried = tried.model_copy(update={"why": "the device has not enough memory", "remedy": LESS})
    tell(tried)
    return tried


def _look(dry: Dry, place: ModelPlace) -> tuple[FoundModel, Workbench | None]:
    wanted = dry.plan.plan.base.digest
    if place.digest not in (None, wanted):
        return FoundModel(path=place.path, state="other", found=f"digest {place.digest[:12]}"), None
    try:
        bench = open_bench(dry.settings.model_copy(update={"models": (place,)}), dry.plan.plan)
    except UnreadyError as error:
        state = STATES.get(error.code, "unfit")
        if state == "differs" and place.digest is not None:
            state = "wrong"
        found = FoundModel.model_validate(
            {"path": place.path, "state": state, "found": ": ".join(filter(None, (error.what, error.found))),
             "remedy": error.remedy or ""}
        )  # fmt: skip
        return found, None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return FoundModel(
            path=place.path, state="unfit", found="not enough memory to load it", remedy=LESS
        ), None
    return FoundModel(path=place.path, state="plans", found=f"digest {bench.base.digest[:12]}"), bench


def measure_step(
    plan: TrainingPlan, bench: Workbench, rows: list[Encoded], site: str, rank: int | None, *, made_up: bool
) -> Measured:
    """One step of the local round over all these rows, after one over a single row to warm up."""
    _step(plan, bench, rows[:1], site, rank)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    started = time.perf_counter()
    _step(plan, bench, rows, site, rank)
    seconds = time.perf_counter() - started  # the step's loss was read: the device has finished
    on_cuda = bench.device.type == "cuda"
    return Measured(
        seconds=seconds,
        peak_bytes=torch.cuda.max_memory_reserved(bench.device) if on_cuda else peak_bytes(),
        device=str(bench.device), rows=len(rows), tokens=max(row.length for row in rows), made_up=made_up,
        private=plan.privacy is not None and plan.privacy.trains_privately, at_once=bench.fit.most,
    )  # fmt: skip


def _step(plan: TrainingPlan, bench: Workbench, rows: list[Encoded], site: str, rank: int | None) -> None:
    """One step of one local round, by the very loop that trains; the adapter is as it was afterwards."""
    work = plan.local.model_copy(update={"epochs": None, "steps": 1, "batch_size": len(rows)})
    before = bench.initial_adapter()
    start = start_of(bind_strategy(plan), before, rank, plan, site, round=1)
    try:
        train_locally(
            bench,
            LocalJob(
                rows,
                start.trained,
                work,
                LocalRules(),
                round=1,
                rounds=1,
                seed_root=plan.seed,
                site=site,
                private=_private(plan, len(rows)),
                rest=start.rest,
            ),
        )
    finally:
        bench.load_adapter(before)


def _private(plan: TrainingPlan, rows: int) -> PrivateRound | None:
    """The plan's clipping with noise that protects nobody: there is nobody in these rows, and nothing leaves.

    Every row is its own unit and in the batch, so that the batch has its full size.
    """
    rules = plan.privacy
    if rules is None or not rules.trains_privately:
        return None
    cost = RoundCost(
        rows,
        1.0,
        rules.sigma or DRY_SIGMA,
        1,
        1,
        rules.delta,
        "example" if rules.unit == "example" else "patient",
    )
    return PrivateRound(
        rules, cost, float(plan.local.batch_size), [str(row) for row in range(rows)], rules.clip_norm,
        SystemSource("a dry step's batch"), SystemSource("a dry step's noise"),
    )  # fmt: skip


def peak_bytes() -> int:
    """Most memory that this process has held at once.

    Raises:
        InternalError: The system does not say.
    """
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone, where `getrusage` remembers the one that started it
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if most <= 0:
        raise InternalError("the system does not say how much memory a process took")
    return most if sys.platform == "darwin" else 1024 * most


@contextmanager
def _only_lines() -> Iterator[Callable[[str], None]]:
    """Standard output for our lines; what libraries print goes to the error stream."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as ours:
        os.dup2(2, 1)

        def line(text: str) -> None:
            ours.write(text + "\n")
            ours.flush()

        yield line


def main() -> int:
    """Read settings, try, tell; gives the exit code."""
    dry = Dry.model_validate_json(sys.stdin.buffer.read())
    with _only_lines() as line:
        try_out(dry, lambda tried: line(tried.model_dump_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
