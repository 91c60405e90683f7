"""`wardround compare`: finished runs, or the runs of a sweep, as one study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from wardround.core.errors import unknown_name
from wardround.simulations.study import Variant, find_runs, metrics_of, read_run, variants_of
from wardround.simulations.study_report import terminal_table, write_report


def compare_runs(places: Sequence[Path], out: Path, metric: str | None = None) -> list[Variant]:
    """Read, print and write.

    Args:
        places: Folders of runs, or of sweeps.
        out: Folder for the report.
        metric: That comes first; None: the one that chose the first run's released round.

    Raises:
        ConfigError: No run is there, one is not finished, two are the same, or none has the metric.
        StorageError: The report cannot be written.
    """
    variants = variants_of([read_run(folder) for folder in find_runs(places)])
    known = metrics_of(variants)
    if metric is not None and metric not in known:
        raise unknown_name("metric", metric, known)
    chosen = metric or (known[0] if known else variants[0].runs[0].metric)
    console = Console()
    console.print(terminal_table(variants, chosen))
    for path in write_report(variants, out, chosen):
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)
    return variants
