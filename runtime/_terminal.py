"""The run on a terminal: a bar over the rounds with the sites' states, and one table row a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from wardround.runtime.events import (
    Evaluated,
    Event,
    Improved,
    Notice,
    PlanAnswered,
    PrivacySpent,
    RoundBurnt,
    RoundFolded,
    RoundStarted,
    RoundTimed,
    RunFinished,
    RunStarted,
    SiteReplied,
)
from wardround.runtime.sizes import seconds_text, size_text

PREFERRED = ("macro_f1", "accuracy", "auroc", "bits_per_byte", "loss", "perplexity")
"""Metrics shown where the caller names none, as far as the run has them."""
_LANGUAGE_UNITS = {
    "bits_per_byte": "bytes", "token_accuracy": "tokens", "exact_match": "answers", "rouge_l": "answers",
}  # fmt: skip
"""What the support of a language model's metrics counts; its others count tokens, a classifier's rows."""
MOST_METRICS = 3
MOST_SITES = 8
_MARKS = {"waiting": ("…", "dim"), "ok": ("✓", "green"), "late": ("late", "yellow")}
_BAD = ("✗", "bold red")


@dataclass
class _Arm:
    """What is known of one arm while it runs."""

    rounds: int
    quiet: bool = False
    states: dict[str, str] = field(default_factory=dict)
    folded: RoundFolded | None = None
    scores: dict[int, Mapping[str, float]] = field(default_factory=dict)
    metric: str = ""
    best: int | None = None
    start_waits: bool = False
    headed: bool = False
    spent: dict[int, float] = field(default_factory=dict)
    timed: dict[int, float] = field(default_factory=dict)


class RichSink:
    """Shows the stream on a console; where that is no terminal, the same lines without bar and colour.

    The row of a round is printed when the score of its adapter is known, that is while the next round
    runs: the validation score in row r is of the adapter after r rounds. An arm `local/SITE` has no rows,
    only its closing line: there are as many of them as sites.

    Args:
        console: Where to print.
        metrics: Columns to show; none given: the metric that chooses the released round, and two more.
    """

    def __init__(self, console: Console | None = None, metrics: Sequence[str] = ()) -> None:
        self._console = console or Console()
        self._metrics = tuple(metrics)
        self._arms: dict[str, _Arm] = {}
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._running = ""

    def emit(self, event: Event) -> None:
        """Show the event."""
        arm = self._arms.setdefault(event.arm, _Arm(0))
        match event:
            case PlanAnswered():
                self._print(_answer(event))
            case RunStarted():
                self._start(event)
            case RoundStarted():
                arm.states = dict.fromkeys(event.cohort, "waiting")
                self._refresh(event.arm, event.round)
            case SiteReplied():
                self._reply(arm, event)
            case Evaluated():
                self._evaluated(arm, event)
            case Improved():
                arm.best, arm.metric = event.round, event.metric
            case RoundFolded():
                self._row(arm)
                arm.folded = event
                self._refresh(event.arm, event.round, completed=event.round)
            case PrivacySpent():
                arm.spent[event.round] = max(event.sites.values(), default=0.0)
            case RoundTimed():
                arm.timed[event.round] = event.virtual_s
            case RoundBurnt():
                self._print(Text(f"  round {event.round} is lost: {event.reason}", style="bold red"))
                self._refresh(event.arm, event.round, completed=event.round)
            case Notice():
                style = "yellow" if event.level == "warning" else "dim"
                self._print(Text(f"{event.level}: {event.text}", style=style))
            case RunFinished():
                self._finish(arm, event)

    def close(self) -> None:
        """Show the rows that are still held, and take the bar away."""
        for arm in self._arms.values():
            self._row(arm)
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _start(self, event: RunStarted) -> None:
        arm = self._arms[event.arm] = _Arm(event.rounds, quiet=event.arm.startswith("local/"))
        self._running = event.arm
        if not arm.quiet:
            sites = "1 site" if len(event.sites) == 1 else f"{len(event.sites)} sites"
            resumed = f", goes on after round {event.resumed_from}" if event.resumed_from else ""
            title = f"  {event.name}, {sites}, {event.rounds} rounds{resumed}"
            self._print(Text.assemble((event.arm, "bold cyan"), title))
        if not self._console.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TimeElapsedColumn(), TextColumn("{task.fields[sites]}"),
                console=self._console, transient=True,
            )  # fmt: skip
            self._progress.start()
        elif self._task is not None:
            self._progress.remove_task(self._task)
        name = Text(event.arm).markup
        self._task = self._progress.add_task(name, total=arm.rounds, completed=event.resumed_from, sites="")

    def _reply(self, arm: _Arm, event: SiteReplied) -> None:
        if event.site in arm.states or event.status != "ok":
            arm.states[event.site] = event.status
        if event.status != "ok":
            line = Text("  ")
            line.append(
                f"{event.site} {event.status} in round {event.round}",
                style="yellow" if event.status == "late" else "bold red",
            )
            line.append(f": {event.code}" + (f", {event.reason}" if event.reason else ""))
            self._print(line)
        self._refresh(event.arm, event.round)

    def _evaluated(self, arm: _Arm, event: Evaluated) -> None:
        if event.part == "validation":
            arm.scores[event.round] = event.values
            arm.start_waits = arm.start_waits or event.round == 0
            return
        names = self._metrics or _columns(event.values, arm.metric)
        figures = "  ".join(f"{name} {_figure(event.values.get(name))}" for name in names)
        behind = support_text(names, event.support)
        self._print(Text(f"  {event.arm}, {event.part} after round {event.round}: {figures}{behind}"))

    def _finish(self, arm: _Arm, event: RunFinished) -> None:
        self._row(arm)
        value = arm.scores.get(event.best_round, {}).get(arm.metric)
        score = "" if value is None else f" with {arm.metric} {_figure(value)} on validation"
        why = "stopped early" if event.reason == "early_stop" else event.reason
        best = f"best is round {event.best_round}{score}"
        if not event.adapter_digest:
            best = f"each site has its own adapter{score}"
        text = f"  {why} after round {event.last_round}, {best}, "
        self._print(Text.assemble((event.arm, "bold cyan"), text, f"{event.wall_s:.1f} s"))
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _row(self, arm: _Arm) -> None:
        if not arm.quiet and (arm.folded is not None or arm.start_waits):
            self._header(arm)
            if arm.start_waits:
                self._print(_line(arm, 0, None, self._metrics))
            if arm.folded is not None:
                self._print(_line(arm, arm.folded.round, arm.folded, self._metrics))
        arm.folded, arm.start_waits = None, False

    def _header(self, arm: _Arm) -> None:
        if arm.headed:
            return
        arm.headed = True
        if not self._metrics and arm.scores:
            self._metrics = _columns(next(iter(arm.scores.values())), arm.metric)
        names = "".join(f"{name:>15}" for name in self._metrics)
        epsilon = f"{'ε reserved':>12}" if arm.spent else ""
        virtual = f"{'virtual':>11}" if arm.timed else ""
        title = f"  {'round':>5}{'train loss':>12}{names}{epsilon}{'sites':>9}{'up':>11}{'time':>9}{virtual}"
        self._print(Text(title, style="bold"))

    def _refresh(self, name: str, round: int, completed: int | None = None) -> None:
        if self._progress is None or self._task is None or name != self._running:
            return
        arm = self._arms[name]
        self._progress.update(
            self._task,
            description=Text(f"{name} round {min(round, arm.rounds)}").markup,
            completed=completed,
            sites=_sites(arm.states).markup,
        )

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)


def support_text(names: Sequence[str], support: Mapping[str, int]) -> str:
    """What stands behind the metrics shown, such as `  (40 rows)` or `  (812 bytes, 190 tokens)`."""
    language = any(name in support for name in _LANGUAGE_UNITS)

    def unit(name: str) -> str:
        return _LANGUAGE_UNITS.get(name, "tokens") if language else "rows"

    amounts = dict.fromkeys(f"{support[name]:,} {unit(name)}" for name in names if name in support)
    return f"  ({', '.join(amounts)})" if amounts else ""


def _line(arm: _Arm, round: int, folded: RoundFolded | None, metrics: Sequence[str]) -> Text:
    """One row of the table."""
    scores = arm.scores.get(round, {})
    line = Text(f"  {round:>5}{_figure(folded.train_loss if folded else None):>12}")
    for name in metrics:
        line.append(f"{_figure(scores.get(name)):>15}")
    if arm.spent:
        line.append(f"{arm.spent.get(round, 0.0):>12.3f}")
    if folded is not None:
        asked = len(folded.survivors) + len(folded.missing)
        line.append(f"{len(folded.survivors):>5}/{asked:<3}", style="red" if folded.missing else "")
        line.append(f"{size_text(folded.bytes_up):>11}{folded.wall_s:>7.1f} s")
        if round in arm.timed:
            line.append(f"{seconds_text(arm.timed[round]):>11}")
    if arm.best == round:
        line.append("  ★ best so far", style="green")
    return line


def _sites(states: Mapping[str, str]) -> Text:
    """Each site with its mark, or counts where they are many."""
    line = Text()
    if len(states) > MOST_SITES:
        done = sum(1 for state in states.values() if state == "ok")
        bad = sum(1 for state in states.values() if state not in {"ok", "waiting"})
        line.append(f"{done}/{len(states)} sites ✓", style="green")
        if bad:
            line.append(f"  {bad} ✗", style="bold red")
        return line
    for name, state in states.items():
        mark, style = _MARKS.get(state, _BAD)
        line.append(f"{name} ")
        line.append(f"{mark}  ", style=style)
    return line


def _columns(values: Mapping[str, float], first: str) -> tuple[str, ...]:
    """The metric that decides, then those that people ask for first."""
    wanted = [name for name in (first, *PREFERRED, *values) if name in values]
    return tuple(dict.fromkeys(wanted))[:MOST_METRICS]


def _answer(event: PlanAnswered) -> Text:
    """One line of a site's answer to the offer of a plan."""
    text = Text(f"  {event.site}: {event.verdict}", style="" if event.verdict == "accepted" else "yellow")
    if event.rows != "unsaid":
        text.append(f", {event.rows.replace('_', ' ')} rows")
    if event.seconds_a_round is not None:
        text.append(f", about {event.seconds_a_round:g} s a round")
    for reason in event.reasons:
        text.append(f"; {reason}")
    return text


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
