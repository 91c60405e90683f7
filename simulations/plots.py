"""Curves of a run as one picture: the score by round of every arm, and the sites' own test scores.

Reads events and computes nothing but the mean over the local-only runs, which it names (`comparison.py`).
Colours are Okabe and Ito's, which colour-blind readers tell apart; marks and line styles differ as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from wardround.runtime.event_log import read_events, without_repetitions
from wardround.runtime.events import (
    Evaluated,
    Event,
    Improved,
    PrivacyReported,
    PrivacySpent,
    RoundFolded,
    RoundTimed,
    RunFinished,
    RunStarted,
)
from wardround.runtime.files import write_atomic
from wardround.runtime.sizes import seconds_text
from wardround.simulations.arm_names import CENTRALISED, FEDERATED
from wardround.simulations.comparison import EVERYBODY, LOCAL, local_site, mean_where_all, site_of

BLUE, ORANGE, GREEN, GREY, VIOLET = "#0072B2", "#D55E00", "#009E73", "#8c8c8c", "#CC79A7"
LABELS = {
    "macro_f1": "macro-F1", "weighted_f1": "weighted F1", "auroc": "AUROC", "ece": "calibration error",
    "bits_per_byte": "bits per byte", "rouge_l": "ROUGE-L", "loss": "loss (nats)",
}  # fmt: skip
PREFERRED = ("macro_f1", "accuracy", "bits_per_byte", "loss")
TRAIN_LOSS = "train_loss"
LONGEST_TEXT = 70
MOST_MOMENTS = 5
"""Of virtual time, above the curves."""


@dataclass
class Curves:
    """What the picture shows.

    Attributes:
        name: The run's name.
        metric: Metric of both panels.
        part: What the curves were scored on: `validation`, `test` or `train_loss`.
        by_round: Arm → round → value.
        best: Arm → its released round.
        by_site: Arm kind (`federated`, `centralised`, `local/`) → site → score on the site's test rows.
        sites: Sites in their order.
        reserved: Round → the largest ε that the federation's sites had reserved, where it trained privately.
        spent: The largest ε that a site has spent in the end, by privacy losses where they give less.
        claim: What these mean: δ and unit.
        clock: Round → virtual time at its end, of the federation.
    """

    name: str = ""
    metric: str = ""
    part: str = "validation"
    by_round: dict[str, dict[int, float]] = field(default_factory=dict)
    best: dict[str, int] = field(default_factory=dict)
    by_site: dict[str, dict[str, float]] = field(default_factory=dict)
    sites: list[str] = field(default_factory=list)
    reserved: dict[int, float] = field(default_factory=dict)
    spent: float | None = None
    claim: str = ""
    clock: dict[int, float] = field(default_factory=dict)


def plot_run(events: Path | Iterable[Event], out: Path, *, metric: str | None = None) -> None:
    """Draw a run into a PNG.

    Args:
        events: The events, or the file that `JsonlSink` wrote.
        out: PNG to write.
        metric: Metric to draw; None takes the one that chose the released round.

    Raises:
        StorageError: The events could not be read, or the picture not be written.
    """
    told = read_events(events) if isinstance(events, Path) else without_repetitions(events)
    picture = io.BytesIO()
    canvas = FigureCanvasAgg(draw(curves_of(told, metric)))
    canvas.print_figure(picture, format="png")
    write_atomic(out, picture.getvalue())


def curves_of(events: Sequence[Event], metric: str | None = None) -> Curves:
    """Sort events into what is drawn; figures that are missing are left out."""
    scored = [event for event in events if isinstance(event, Evaluated)]
    curves = Curves(metric=metric or _metric_of(events, scored))
    for event in events:
        if isinstance(event, RunStarted) and event.arm == FEDERATED:
            curves.name, curves.sites = event.name, sorted(event.sites)
        elif isinstance(event, RunFinished):
            curves.best[event.arm] = event.best_round
        elif isinstance(event, PrivacySpent) and event.arm == FEDERATED:
            curves.reserved[event.round] = max(event.sites.values(), default=0.0)
            curves.claim = f"at δ = {event.delta:g} per {event.unit}"
        elif isinstance(event, RoundTimed) and event.arm == FEDERATED:
            curves.clock[event.round] = event.since_start_s
        elif isinstance(event, PrivacyReported) and event.arm == FEDERATED:
            curves.spent = max((figures["spent"] for figures in event.sites.values()), default=0.0)
    for event in scored:
        value, site = event.values.get(curves.metric), site_of(event.part)
        if value is None or site is None:
            continue
        if (alone := local_site(event.arm)) is not None:
            if alone == site:
                curves.by_site.setdefault(LOCAL, {})[site] = value
        else:
            curves.by_site.setdefault(event.arm, {})[site] = value  # the last one is of the released round
    for part in ("validation", EVERYBODY, TRAIN_LOSS):
        curves.part, curves.by_round = part, _by_round(events, part, curves.metric)
        if curves.by_round:
            break
    return curves


def draw(curves: Curves) -> Figure:
    """The picture: curves on the left and, where sites were tested, bars on the right."""
    shown = [site for site in curves.sites if any(site in scores for scores in curves.by_site.values())]
    width = min(24.0, 3.2 + 0.55 * len(shown)) if shown else 0.0
    figure = Figure(figsize=(6.4 + max(width, 4.8 if shown else 0.0), 4.4), dpi=150, layout="constrained")
    ratios = [6.4, max(width, 4.8)] if shown else [1.0]
    panels: Any = figure.subfigures(1, len(ratios), width_ratios=ratios, squeeze=False)
    _draw_rounds(panels[0][0].subplots(), curves)
    if shown:
        _draw_sites(panels[0][1].subplots(), curves, shown)
    for panel in panels[0]:
        _finish(panel)
    figure.suptitle(_plain(curves.name or "run"), fontsize=13, fontweight="bold", x=0.01, ha="left")
    return figure


def _draw_rounds(axes: Axes, curves: Curves) -> None:
    local = {arm: points for arm, points in curves.by_round.items() if local_site(arm) is not None}
    for index, points in enumerate(local.values()):
        label = "local-only, each site" if index == 0 else None
        axes.plot(list(points), list(points.values()), color=GREY, linewidth=0.8, alpha=0.55, label=label)
    if len(local) > 1:
        mean = mean_where_all(local.values())
        axes.plot(
            list(mean), list(mean.values()), color=GREEN, linestyle=":", linewidth=2, label="local-only, mean"
        )
    styles = ((CENTRALISED, ORANGE, "--", "s"), (FEDERATED, BLUE, "-", "o"))
    for arm, colour, line, mark in styles:
        points = curves.by_round.get(arm, {})
        if not points:
            continue
        axes.plot(
            list(points), list(points.values()), color=colour, linestyle=line, marker=mark, markersize=3.5,
            linewidth=2, label=arm,
        )  # fmt: skip
        best = curves.best.get(arm)
        if arm == FEDERATED and best in points and curves.part != TRAIN_LOSS:
            axes.plot(
                [best], [points[best]], marker="*", markersize=15, color=colour, markeredgecolor="white",
                linestyle="none", label=f"released: round {best}",
            )  # fmt: skip
    metric = "training loss (nats)" if curves.part == TRAIN_LOSS else label_of(curves.metric)
    axes.set_title(metric if curves.part == TRAIN_LOSS else f"{metric} on {_PARTS[curves.part]}", fontsize=11)
    axes.set_xlabel("rounds folded")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if curves.reserved:
        _draw_epsilon(axes, curves)
    if curves.clock:
        _draw_clock(axes, curves)


def _draw_clock(axes: Axes, curves: Curves) -> None:
    """Virtual time at the end of some rounds, along the upper edge."""
    shown = set(curves.by_round.get(FEDERATED, {}))
    rounds = [round for round in sorted(curves.clock) if round in shown] or sorted(curves.clock)
    step = -(-len(rounds) // MOST_MOMENTS)
    marked = rounds[::-1][::step][::-1]
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    top.set_xticks(marked, [seconds_text(curves.clock[round]) for round in marked], fontsize=8.5)
    top.set_xlabel("virtual time", fontsize=8.5)
    for spine in top.spines.values():
        spine.set_visible(False)


def _draw_epsilon(axes: Axes, curves: Curves) -> None:
    """ε by round as it was reserved, on an axis of its own from zero on; at its end what was spent."""
    right = axes.twinx()
    points = {0: 0.0, **curves.reserved}
    last = list(points.values())[-1]
    right.plot(
        list(points), list(points.values()), color=VIOLET, linestyle="-.", linewidth=1.4,
        label=f"ε reserved: {last:.3g} {curves.claim}",
    )  # fmt: skip
    if curves.spent is not None:
        right.plot(
            [list(points)[-1]], [curves.spent], color=VIOLET, marker="D", markersize=5, linestyle="none",
            label=f"ε spent: {curves.spent:.3g}",
        )  # fmt: skip
    right.set_ylabel("ε")
    right.set_ylim(0, max(last, curves.spent or 0.0, 1e-9) * 1.15)
    right.spines["top"].set_visible(False)


def _draw_sites(axes: Axes, curves: Curves, sites: Sequence[str]) -> None:
    styles = {
        FEDERATED: ("federated", BLUE, ""),
        LOCAL: ("local-only", "#B8B8B8", "//"),
        CENTRALISED: ("centralised", ORANGE, ""),
    }
    kinds = [kind for kind in styles if curves.by_site.get(kind)]
    width = 0.8 / len(kinds)
    for index, kind in enumerate(kinds):
        name, colour, hatch = styles[kind]
        there = [(place, site) for place, site in enumerate(sites) if site in curves.by_site[kind]]
        axes.bar(
            [place + (index - (len(kinds) - 1) / 2) * width for place, _ in there],
            [curves.by_site[kind][site] for _, site in there],
            width * 0.92, color=colour, hatch=hatch, edgecolor="white", label=name,
        )  # fmt: skip
    long = len(sites) > 6 or max(len(site) for site in sites) > 9  # noqa: PLR2004 - what fits side by side
    axes.set_xticks(
        range(len(sites)), [_plain(site) for site in sites], rotation=40 if long else 0,
        ha="right" if long else "center", rotation_mode="anchor",
    )  # fmt: skip
    axes.set_title(f"{label_of(curves.metric)} on each site's test rows", fontsize=11)
    axes.set_ylabel(label_of(curves.metric))
    axes.set_xlim(-0.6, len(sites) - 0.4)
    axes.tick_params(axis="x", length=0)


_PARTS = {"validation": "the sites' validation rows", EVERYBODY: "everybody's test rows"}


def _finish(panel: SubFigure) -> None:
    """Grid, frame and, below the panel, a legend that begins with the federation."""
    axes = panel.axes[0]
    axes.grid(visible=True, axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    found = [drawn.get_legend_handles_labels() for drawn in panel.axes]
    handles = [handle for some, _ in found for handle in some]
    labels = [label for _, some in found for label in some]
    if not handles:
        axes.text(0.5, 0.5, "nothing was scored", ha="center", transform=axes.transAxes, color=GREY)
        return
    order = sorted(
        range(len(labels)), key=lambda index: _LEGEND.index(labels[index].split(":")[0].split(",")[0])
    )
    panel.legend(
        [handles[index] for index in order], [labels[index] for index in order],
        loc="outside lower center", ncols=min(len(labels), 3), fontsize=8.5, frameon=False, handlelength=2.4,
    )  # fmt: skip


_LEGEND = (FEDERATED, "released", CENTRALISED, "local-only", "ε reserved", "ε spent")


def label_of(metric: str) -> str:
    """A metric's name for people."""
    return LABELS.get(metric, metric.replace("_", " "))


def _metric_of(events: Sequence[Event], scored: Sequence[Evaluated]) -> str:
    for event in events:
        if isinstance(event, Improved):
            return event.metric
    known = {name for event in scored for name in event.values}
    return next((name for name in PREFERRED if name in known), min(known, default="loss"))


def _by_round(events: Sequence[Event], part: str, metric: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for event in events:
        value: float | None = None
        if isinstance(event, Evaluated) and event.part == part:
            value = event.values.get(metric)
        elif isinstance(event, RoundFolded) and part == TRAIN_LOSS:
            value = event.train_loss
        if value is not None and isinstance(event, Evaluated | RoundFolded):
            found.setdefault(event.arm, {})[event.round] = value
    return {arm: dict(sorted(points.items())) for arm, points in found.items()}


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics, shortened."""
    short = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
    return short.replace("$", r"\$")
