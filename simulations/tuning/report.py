"""What a study tells people: a line a trial, the best values to paste, and a table for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from wardround.runtime.files import write_atomic
from wardround.simulations.study import Value
from wardround.simulations.study_report import csv_bytes, parquet_bytes
from wardround.simulations.tuning.trials import ERROR, ROUND, SAME_AS, Trials, state_of

if TYPE_CHECKING:
    from wardround.simulations.tuning.command import Study

CSV: Final = "trials.csv"
PARQUET: Final = "trials.parquet"
MOST_SHOWN: Final = 5
"""Best trials in the closing table; the file has all."""


def best_of(run: Trials) -> FrozenTrial | None:
    """The best trial; None where none has finished."""
    return next(iter(_ranked(run)), None)


def _ranked(run: Trials) -> list[FrozenTrial]:
    """Finished trials that were run, the best first, of equals the earlier."""
    sign = -1 if run.study.direction.name == "MAXIMIZE" else 1
    finished = [
        trial
        for trial in run.settled
        if trial.state == TrialState.COMPLETE and SAME_AS not in trial.user_attrs
    ]
    return sorted(finished, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def told(trial: FrozenTrial, metric: str) -> str:
    """One line on a settled trial."""
    again = f" (the same values as trial {trial.user_attrs[SAME_AS]})" if SAME_AS in trial.user_attrs else ""
    rounds = max(trial.intermediate_values, default=0)
    if trial.state == TrialState.COMPLETE:
        found = f"{metric} {trial.value:.4f} in round {trial.user_attrs.get(ROUND)}"
    elif trial.state == TrialState.PRUNED:
        found = f"pruned after round {rounds}"
    else:
        found = f"failed: {trial.user_attrs.get(ERROR)}"
    return f"trial {trial.number}: {found}{again}"


def write_tables(run: Trials) -> None:
    """One row a trial, as CSV and Parquet.

    Raises:
        StorageError: They cannot be written.
    """
    rows: list[dict[str, Value]] = []
    for trial in run.study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        place = run.place(trial.number)
        rows.append(
            {
                "trial": trial.number, "state": state_of(trial),
                run.metric: trial.value if trial.state == TrialState.COMPLETE else None,
                "round": trial.user_attrs.get(ROUND), **{name: trial.params.get(name) for name in run.space},
                "rounds_scored": len(trial.intermediate_values), "same_as": trial.user_attrs.get(SAME_AS),
                "error": trial.user_attrs.get(ERROR), "folder": place.name if place.is_dir() else None,
            }
        )  # fmt: skip
    if rows:
        write_atomic(run.folder / CSV, csv_bytes(rows))
        write_atomic(run.folder / PARQUET, parquet_bytes(rows))


def print_study(run: Trials, study: Study, console: Console) -> None:
    """The closing table."""
    from wardround.simulations.tuning.command import pasted

    settled, ranked = run.settled, _ranked(run)
    counts = {
        "finished": len(ranked),
        "pruned": sum(trial.state == TrialState.PRUNED for trial in settled),
        "failed": sum(trial.state == TrialState.FAIL for trial in settled),
        "with values of an earlier one": sum(SAME_AS in trial.user_attrs for trial in settled),
    }
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    table = Table(title=f"{len(settled)} trials: {text}")
    for name in ("trial", run.metric, "round", *run.space):
        table.add_column(name, justify="right", overflow="fold")
    for trial in ranked[:MOST_SHOWN]:
        values = [_shown(trial.params[name]) for name in run.space]
        table.add_row(str(trial.number), f"{trial.value:.4f}", str(trial.user_attrs.get(ROUND)), *values)
    if ranked:
        console.print(table)
        best = pasted([*study.arguments, *study.overrides(ranked[0].params)])
        console.print(f"best: wardround simulate {best}", soft_wrap=True, highlight=False, markup=False)
    else:
        console.print(f"no trial has finished, of {len(settled)}: {text}", soft_wrap=True, highlight=False)
    console.print(f"wrote {run.folder / CSV} and {run.folder / PARQUET}", soft_wrap=True, highlight=False)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
