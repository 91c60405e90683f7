"""Several finished runs as one study: what they differ in, what each scored, and means over seeds.

Pure but for reading: `study_report.py` writes tables, pictures and the page.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from scipy.stats import t as student

from wardround.core.errors import ConfigError
from wardround.runtime.event_log import read_events, without_repetitions
from wardround.runtime.events import Evaluated
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.comparison import EVERYBODY, OWN_ROWS

SUMMARY: Final = "summary.json"
CONFIG: Final = "config.json"
EVENTS: Final = "metrics.jsonl"
DEEPEST: Final = 3
"""So many folders below the one that was named are looked into for runs."""
SEED: Final = "seed"
NOT_COMPARED: Final = ("output", "resume", "evaluation", "machine", "simulation.lanes")
"""Where a run lies and how it was carried out: no part of what it is."""
COMPARED: Final = ("machine.precision",)
CONFIDENCE: Final = 0.95

Value = str | float | int | bool | None


@dataclass(frozen=True)
class StudyRun:
    """One finished run.

    Attributes:
        folder: Where it lies.
        seed: Root of its seed tree.
        settings: Dotted name → value, of everything that says what the run is but the seed.
        scores: Arm → metric → value on everybody's test rows, of the released adapter; of a run without test
            rows that of the federation on the validation parts.
        scored_on: `test`, or `validation`.
        curve: Round → metric → value on the validation parts, of the federation.
        bytes_up: A site's mean bytes up a round; None where no run counted them.
        bytes_down: Likewise down.
        wall_s: Seconds of the federated arm.
        metric: That chose the released round.
        virtual_s: Virtual seconds of it; None of a run without a virtual clock.
    """

    folder: Path
    seed: int
    settings: Mapping[str, Value]
    scores: Mapping[str, Mapping[str, float]]
    scored_on: str
    curve: Mapping[int, Mapping[str, float]]
    bytes_up: int | None
    bytes_down: int | None
    wall_s: float
    metric: str
    virtual_s: float | None = None


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes:
        mean: Of the values.
        low: Lower end of Student's 95 % interval of the mean; NaN with one value.
        high: Upper end.
        values: By seed, ascending.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> Interval:
        """Of at least one value."""
        mean, n = statistics.fmean(values), len(values)
        if n == 1:
            return Interval(mean, math.nan, math.nan, tuple(values))
        half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
        return Interval(mean, mean - half, mean + half, tuple(values))


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seed.

    Attributes:
        named: What tells it from the others: dotted name → value; empty where there are no others.
        runs: By seed.
    """

    named: Mapping[str, Value]
    runs: tuple[StudyRun, ...]

    @property
    def label(self) -> str:
        """For tables and legends: the last words of the names where they tell them apart."""
        short = _short(self.named)
        return ", ".join(f"{short[name]}={_text(value)}" for name, value in self.named.items()) or "all runs"

    def arms(self) -> list[str]:
        """Arms that every run has, the federation first."""
        first = [arm for arm in self.runs[0].scores if all(arm in run.scores for run in self.runs)]
        return sorted(first, key=lambda arm: (arm != FEDERATED, arm))

    def interval(self, arm: str, metric: str) -> Interval | None:
        """A metric of an arm; None where a run lacks it."""
        values = [run.scores.get(arm, {}).get(metric) for run in self.runs]
        found = [value for value in values if value is not None]
        return Interval.of(found) if len(found) == len(values) else None


def find_runs(places: Iterable[Path]) -> list[Path]:
    """Folders of finished runs: those named, and those that lie below, as a sweep leaves them.

    Raises:
        ConfigError: A place is not there, or has no finished run.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"{place} is not there", expected="the folder of a run or of a sweep")
        own = sorted(
            path.parent
            for depth in range(DEEPEST + 1)
            for path in place.glob("/".join(["*"] * depth + [SUMMARY]))
        )
        if not own:
            raise ConfigError(
                f"{place} holds no finished run", expected=f"a {SUMMARY} in it, or at most {DEEPEST} below",
                remedy="name the folders of finished runs, or of the sweep that they are in",
            )  # fmt: skip
        found |= dict.fromkeys(path.resolve() for path in own)
    return list(found)


def read_run(folder: Path) -> StudyRun:
    """What a finished run says of itself.

    Raises:
        ConfigError: A file is missing or not what a run leaves.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        arms, traffic = summary["arms"], summary.get("traffic") or {}
        curve = _curve(folder / EVENTS)
        tested = {arm: _tested(found["test"]) for arm, found in arms.items() if _tested(found["test"])}
        held_out = {FEDERATED: dict(curve.get(arms[FEDERATED]["released_round"], {}))}
        return StudyRun(
            folder,
            int(config[SEED]),
            {name: value for name, value in flat(config) if _compared(name)},
            tested or held_out,
            EVERYBODY if tested else "validation",
            curve,
            traffic.get("bytes_up_a_site"),
            traffic.get("bytes_down_a_site"),
            float(arms[FEDERATED]["wall_s"]),
            config["release"]["metric"],
            summary.get("virtual", {}).get("seconds"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder} is not the folder of a finished run", found=f"{type(error).__name__}: {error}",
            expected=f"{SUMMARY}, {CONFIG} and {EVENTS} as `wardround simulate` leaves them",
        ) from error  # fmt: skip


def variants_of(runs: Sequence[StudyRun]) -> list[Variant]:
    """The runs in groups that differ in nothing but seeds, in the order of their first ones.

    Raises:
        ConfigError: Two runs are the same to the seed.
    """
    names = [name for name in _names(runs) if len({_key(run.settings.get(name)) for run in runs}) > 1]
    if len(names) > 1:  # people name sweeps' runs after what they sweep
        names = [name for name in names if name != "name"] or names
    for name in [name for name in names if any(name not in run.settings for run in runs)]:
        others = [other for other in names if other != name]
        if len(_apart(runs, others)) == len(_apart(runs, names)):  # an option of one strategy, which is named
            names = others
    found = []
    for group in _apart(runs, names).values():
        group.sort(key=lambda run: run.seed)
        for one, other in pairwise(group):
            if one.seed == other.seed:
                raise ConfigError(
                    "two runs are the same, to the seed", found=f"{one.folder} and {other.folder}",
                    remedy="leave one of them out",
                )  # fmt: skip
        found.append(Variant({name: group[0].settings.get(name) for name in names}, tuple(group)))
    return found


def metrics_of(variants: Sequence[Variant]) -> list[str]:
    """Metrics that every run's federation has, the one that chose its released round first."""
    runs = [run for variant in variants for run in variant.runs]
    shared = [
        name for name in runs[0].scores.get(FEDERATED, {})
        if all(name in run.scores.get(FEDERATED, {}) for run in runs)
    ]  # fmt: skip
    first = runs[0].metric
    return sorted(shared, key=lambda name: name != first)


def mean_curve(variant: Variant, metric: str) -> dict[int, Interval]:
    """Round → the metric over the runs that were scored then: all of them, or the round is left out."""
    rounds = [
        round for round in sorted(variant.runs[0].curve)
        if all(metric in run.curve.get(round, {}) for run in variant.runs)
    ]  # fmt: skip
    return {round: Interval.of([run.curve[round][metric] for run in variant.runs]) for round in rounds}


def rows_of(variants: Sequence[Variant]) -> list[dict[str, Value]]:
    """One row a run and arm, for a table that a program reads."""
    rows: list[dict[str, Value]] = []
    for variant in variants:
        for run in variant.runs:
            for arm, scores in run.scores.items():
                federated = arm == FEDERATED
                rows.append(
                    {
                        "variant": variant.label, **{name: _plain(v) for name, v in variant.named.items()},
                        SEED: run.seed, "arm": arm, "scored_on": run.scored_on, **scores,
                        "bytes_up_a_site_and_round": run.bytes_up if federated else None,
                        "bytes_down_a_site_and_round": run.bytes_down if federated else None,
                        "wall_s": run.wall_s if federated else None,
                        **({"virtual_s": run.virtual_s} if federated and run.virtual_s is not None else {}),
                        "folder": str(run.folder),
                    }
                )  # fmt: skip
    return rows


def _compared(name: str) -> bool:
    if name in (*COMPARED, SEED):
        return name != SEED
    return not any(name == part or name.startswith(f"{part}.") for part in NOT_COMPARED)


def _apart(runs: Sequence[StudyRun], names: Sequence[str]) -> dict[tuple[str, ...], list[StudyRun]]:
    """Runs by their values of these settings."""
    found: dict[tuple[str, ...], list[StudyRun]] = {}
    for run in runs:
        found.setdefault(tuple(_key(run.settings.get(name)) for name in names), []).append(run)
    return found


def _tested(parts: Mapping[str, Any]) -> dict[str, float]:
    """The scores on everybody's test rows; those of each site's own adapter where there is no other."""
    found = parts.get(EVERYBODY) or parts.get(OWN_ROWS) or {}
    return {name: float(value) for name, value in found.get("values", {}).items()}


def _curve(events: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for event in without_repetitions(read_events(events)):
        if isinstance(event, Evaluated) and (event.arm, event.part) == (FEDERATED, "validation"):
            found[event.round] = dict(event.values)
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Value]]:
    """Dotted name and value of everything in a tree of settings."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _names(runs: Sequence[StudyRun]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.settings))


def _key(value: Value) -> str:
    return json.dumps(value, sort_keys=True)


def _plain(value: Any) -> Value:
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(_plain(value))


def _short(named: Mapping[str, Value]) -> dict[str, str]:
    """Dotted name → as few of its last words as tell it from the others; `strategy` for `strategy.name`."""
    found: dict[str, str] = {}
    for name in named:
        words = name.removesuffix(".name").split(".")
        found[name] = next(
            ".".join(words[-count:])
            for count in range(1, len(words) + 1)
            if count == len(words)
            or not any(
                other != name and f".{other}".endswith("." + ".".join(words[-count:])) for other in named
            )
        )
    return found
