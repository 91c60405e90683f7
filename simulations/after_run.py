"""Commands on a finished run: merge, evaluate, predict. Each is a function that a program may call.

torch, which takes seconds, is imported once what was named is there.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from wardround.core.errors import ConfigError, DataError, ModelError
from wardround.core.metrics.contract import Scores
from wardround.runtime.files import write_atomic
from wardround.runtime.locations import locate
from wardround.simulations.finished_run import (
    SITES,
    FinishedRun,
    adapter_in,
    finished_run,
    is_at_site,
    run_of,
)
from wardround.training.commands import read_processor
from wardround.training.examples import Example
from wardround.training.merge_places import check_places
from wardround.training.settings import resolve
from wardround.training.source_spec import SourceSpec, named_source, source_of

if TYPE_CHECKING:
    from wardround.training.merge import MergeReport

MERGE_SAMPLES = 16


def merge_run(
    run: Path,
    output: Path | None = None,
    model: str | None = None,
    tolerance: float | None = None,
    rows: str | None = None,
) -> MergeReport:
    """`wardround merge`: write the merged model and print how well it kept the adapter.

    Args:
        run: Folder of a finished run, or `sites/NAME` of one whose sites have their own adapters; at a site
            of a consortium SITE/runs/RUN, once its result was fetched and its adapter is there for PEFT.
        output: Folder to make; `merged` in that folder without it.
        model: The base model, where it lies elsewhere now.
        tolerance: On the relative difference of logits; by the base's dtype without it.
        rows: What both models are asked, where the run's own rows lie elsewhere now.

    Raises:
        ConfigError: The tolerance is none, the run is not there, it has no adapter for everybody, or the
            folder to make is taken.
        DataError: There is no row to ask.
        ModelError: The logits differ by more than the tolerance, or merging changed nothing, or the base is
            not the one that the adapter was trained on; nothing is left.
    """
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"--tolerance is {tolerance}", expected="a number, at least 0")
    of_site = run.resolve().parent.name == SITES and not (run / "plan.json").exists()
    of_site = of_site or is_at_site(run.resolve().parent)
    finished = FinishedRun.open(run_of(run) if of_site else run)
    adapter = adapter_in(run)
    base, out = finished.model_config(model), output or run / "merged"
    check_places(adapter, out)
    resolve(base)
    asked = _rows_to_ask(finished, rows)
    from wardround.training.merge import merge_adapter

    processor = read_processor(finished.task.processor, base.path, base.revision, remedy="correct --model")
    # Each sample alone: the two models are asked in the plain way, without the mask of packed rows.
    alone = finished.plan.data.model_copy(update={"packing": False})
    samples = finished.task.encode(asked[:MERGE_SAMPLES], processor, alone, finished.plan.task)
    report = merge_adapter(
        adapter,
        base,
        finished.adapter_method,
        finished.task,
        finished.plan.data,
        out,
        samples=samples,
        tolerance=tolerance,
    )
    if not report.passed:
        raise ModelError(
            "the merged model is not the adapter on its base; nothing was written",
            found=report.reason,
            expected=f"logits within {report.tolerance:.3g}, relative to the largest",
        )
    for line in parity_lines(report):
        Console().print(line)
    return report


def _rows_to_ask(finished: FinishedRun, rows: str | None) -> list[Example]:
    """Rows of the run, or those that a person names instead."""
    if rows is not None:
        return _usable(finished, _source(rows), labelled=False)
    data = finished.config.data
    source = data.test or data.source or next(iter(data.sites.values()))
    try:
        if source.kind is None:
            source_of(locate(source.path))
        return finished.examples(source)
    except DataError as error:
        raise DataError(
            f"the run's own rows cannot be read: {error.what}", found=error.found, expected=error.expected,
            remedy="name rows of the same columns with --rows: both models are asked about them",
        ) from error  # fmt: skip


def parity_lines(report: MergeReport) -> list[str]:
    """What a merge did, for people."""
    lines = [
        f"merged into {report.base}: {report.folder}",
        (
            f"parity on {report.samples} samples, re-read from disk: logits differ by at most "
            f"{report.parity.largest:.2e}, {report.parity.relative:.2e} of the largest "
            f"(tolerance {report.tolerance:.0e})"
        ),
    ]
    if report.quantisation != "none":
        lines.insert(
            1,
            f"the adapter was trained on this base quantised to {report.quantisation}; merged was the "
            "unquantised checkpoint, since a quantised one would round the adapter away",
        )
    if (quantised := report.against_quantised) is not None:
        lines.append(
            "merged against the adapter on the quantised base that it was trained on: logits differ by at "
            f"most {quantised.largest:.2e}, {quantised.relative:.2e} of the largest"
        )
    return lines


def evaluate_file(
    model: Path, source: str, run: Path | None, *, as_json: bool, base: str | None = None
) -> Scores:
    """`wardround evaluate`: print the scores. `base` as in `open_model`.

    Raises:
        DataError: No usable row.
        ConfigError, ModelError: As `open_model`.
    """
    examples = _usable(finished_run(model, run), _source(source), labelled=True)
    from wardround.simulations.comparison import support_unit
    from wardround.simulations.open_model import open_model, scored
    from wardround.simulations.result_folder import scores_record

    opened = open_model(model, run, base)
    found = scored(opened, examples)
    console = Console()
    if as_json:
        console.print_json(data=scores_record(found))
        return found
    table = Table(title=str(model), title_justify="left")
    for column in ("metric", "value", "support"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric, value in found.values.items():
        unit = support_unit(opened.run.plan.task.metrics, metric)
        table.add_row(metric, f"{value:.4f}", f"{found.support.get(metric, 0):,} {unit}".rstrip())
    console.print(table)
    return found


def predict_file(
    model: Path, source: str, output: Path | None, run: Path | None, base: str | None = None
) -> None:
    """`wardround predict`: one JSON line a row, to a file or to the terminal. `base` as in `open_model`.

    Raises:
        DataError: No usable row.
        ConfigError: The output is there already, or as `open_model`.
        ModelError: As `open_model`.
    """
    if output is not None and output.exists():
        raise ConfigError(
            f"{output} is there already", expected="a new file", remedy="choose another --output"
        )
    examples = _usable(finished_run(model, run), _source(source), labelled=False)
    from wardround.simulations.open_model import answered, open_model

    answers = answered(open_model(model, run, base), examples)
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if output is None:
        Console().out(lines, end="", highlight=False)
    else:
        write_atomic(output, lines.encode())


def _source(path: str) -> SourceSpec:
    """The source that a person names; one that is not there is refused at once."""
    source = named_source(path)
    source_of(locate(source.path))
    return source


def _usable(run: FinishedRun, source: SourceSpec, *, labelled: bool) -> list[Example]:
    """The rows to score or answer; what is left out is told on the error stream, never silent."""
    found = run.read(source, labelled=labelled)
    left_out = ", ".join(f"{count} × {reason}" for reason, count in found.quarantine_counts().items())
    if not found.examples:
        raise DataError(
            f"{source.path} has no usable row", found=left_out or "no row",
            remedy="run `wardround data check` on it",
        )  # fmt: skip
    if left_out:
        sys.stderr.write(
            f"wardround: {len(found.quarantined)} of {found.rows_read} rows left out ({left_out})\n"
        )
    return list(found.examples)
