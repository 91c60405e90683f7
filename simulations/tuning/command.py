"""`wardround tune`: checks the whole study before its first trial, runs what is missing, shows the best."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from omegaconf import DictConfig
from rich.console import Console

from wardround.core.errors import ConfigError, StorageError, unknown_name
from wardround.runtime.files import write_json
from wardround.runtime.sinks import RichSink
from wardround.simulations.command import SETTINGS
from wardround.simulations.config import BoundsConfig, RunConfig
from wardround.simulations.first_checks import check_first
from wardround.simulations.hydra_main import plain_values, run_hydra
from wardround.simulations.own_modules import own_modules
from wardround.simulations.privacy_record import TUNING
from wardround.simulations.study import flat
from wardround.simulations.tuning.space import Tuned, split

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from wardround.simulations.tuning.trials import Pruner, Trials

STUDY: Final = "study.json"
JUDGED: Final = ("seed", "task", "partition", "release", "data")
"""What says on which rows and by which figure a trial is judged: the same in all trials of a study."""
FREE: Final = ("data.max_length", "data.packing", "data.template")
"""Of these, what changes how rows are read and not which ones."""
PLACES: Final = ("output", "resume")
MOST_NAMED: Final = 5


@dataclass(frozen=True)
class Study:
    """A study as its command describes it.

    Attributes:
        tuned: Its settings.
        arguments: Every other argument, as Hydra takes it.
        metric: That judges; None: the configuration's `release.metric`.
        scores_test: Whether trials score the test rows as well; nothing reads those scores.
    """

    tuned: Sequence[Tuned]
    arguments: Sequence[str]
    metric: str | None = None
    scores_test: bool = False

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The tuned settings with these values, to be pasted behind a command."""
        return [one.override(values[one.name]) for one in self.tuned]

    def config(self, values: Mapping[str, Any], output: Path | None = None) -> RunConfig | None:
        """What a trial with these values runs; None where a flag had Hydra show something instead.

        Raises:
            ConfigError: Hydra cannot compose it, it is no configuration, or the metric is unknown.
        """
        composed: list[dict[str, Any]] = []

        def take(found: DictConfig) -> None:
            composed.append(plain_values(found))

        arguments = [*self.arguments, *self.overrides(values)]
        run_hydra(arguments, take, program="wardround tune", config="config", settings=SETTINGS)
        if not composed:
            return None
        config = RunConfig.parse(composed[0])
        changes: dict[str, Any] = {"bounds": BoundsConfig()}
        if output is not None:
            changes["output"] = str(output)
        if not self.scores_test:
            changes["data"] = config.data.model_copy(update={"test": None, "site_tests": {}})
        if self.metric is not None:
            rule = {"metric": self.metric, "direction": _direction(config, self.metric)}
            changes["release"] = config.release.model_copy(update=rule)
        return config.model_copy(update=changes)

    def probes(self) -> Iterator[dict[str, Any]]:
        """Values with which every choice, and every end of an interval, is in at least one configuration."""
        lists = {one.name: one.probes() for one in self.tuned}
        for index in range(max(map(len, lists.values()))):
            yield {name: values[index % len(values)] for name, values in lists.items()}


def tune(
    arguments: Sequence[str],
    *,
    trials: int,
    metric: str | None = None,
    pruner: Pruner = "median",
    output: Path | None = None,
    scores_test: bool = False,
    console: Console | None = None,
) -> FrozenTrial | None:
    """Run a study until so many of its trials have settled; one that is there goes on.

    Args:
        arguments: Hydra's, distributions among them.
        trials: Of the study in all.
        metric: That judges; None: `release.metric`.
        pruner: Which trials end before their last round.
        output: Folder; None: `runs/NAME/tune`.
        scores_test: Whether trials score the test rows as well.
        console: Where to show progress and result.

    Returns:
        The best trial; None where none has finished, or Hydra only showed something.

    Raises:
        ConfigError: What is wrong with the study or a trial's configuration.
        StorageError: The folder cannot be written.
    """
    own_modules()
    study, console = Study(*split(arguments), metric, scores_test), console or Console()
    configs = checked(study)
    if not configs:
        return None
    base = configs[0]
    folder = output or Path("runs") / base.name / "tune"
    # Only now, since torch comes with them: what is wrong so far is told without waiting for it.
    from wardround.simulations.result_folder import alone_in
    from wardround.simulations.tuning.report import best_of, print_study, write_tables
    from wardround.simulations.tuning.trials import Trials, open_study
    from wardround.training.plan_making import choices_of

    for config in configs:
        choices_of(config, allow_dotted=True)

    def config_of(values: Mapping[str, Any], place: Path) -> RunConfig:
        config = study.config(values, place)
        if config is None:
            raise ConfigError("Hydra composed nothing", found=" ".join(study.arguments))
        return config

    with alone_in(folder):
        _keep(folder, study, base)
        found = open_study(folder, base.release.direction, pruner, trials)
        run = Trials(
            found, folder, base.seed, base.release.metric,
            {one.name: one.distribution for one in study.tuned}, config_of, lambda: (RichSink(console),),
        )  # fmt: skip
        for notice in notices(base, scores_test=scores_test):
            console.print(notice, soft_wrap=True, highlight=False)
        try:
            run.recover()
            _run(run, study, trials, console)
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on", highlight=False)
            raise
        finally:
            write_tables(run)
    print_study(run, study, console)
    return best_of(run)


def _run(run: Trials, study: Study, trials: int, console: Console) -> None:
    from wardround.simulations.tuning.report import told

    while (done := len(run.settled)) < trials:

        def begins(number: int, values: Mapping[str, Any], done: int = done) -> None:
            text = " ".join(study.overrides(values))
            console.print(f"trial {number} ({done + 1} of {trials}): {text}", soft_wrap=True, highlight=False)

        console.print(told(run.run_next(begins), run.metric), soft_wrap=True, highlight=False)


def checked(study: Study) -> list[RunConfig]:
    """Configurations in which every choice has been read; none where Hydra only showed something.

    Raises:
        ConfigError: A trial's configuration is refused, its trials would not be judged alike, or nothing
            would judge them.
    """
    found: list[RunConfig] = []
    for values in study.probes():
        config = study.config(values, Path("runs") / "never made")
        if config is None:
            return []
        found.append(config)
        check_first(config)
        _require_alike(found[0], config)
        if config.data.validation_fraction == 0:
            raise ConfigError(
                "nothing would judge the trials", found="data.validation_fraction=0",
                expected="rows that sites hold back for validation: test rows choose nothing",
                remedy="set data.validation_fraction, such as 0.1; privacy=client covers no scores of a "
                "site's rows, and cannot be tuned",
            )  # fmt: skip
    return found


def notices(config: RunConfig, *, scores_test: bool) -> list[str]:
    """What a person should know before the first trial."""
    rule = config.release
    better = "largest" if rule.direction == "max" else "smallest"
    test = "scored at the end of each trial, and choose nothing" if scores_test else "not read"
    judged = f"trials are judged by {rule.metric} ({better} is best) on the sites' validation parts"
    found = [f"{judged}; test rows are {test}"]
    if config.privacy is not None:
        found.append(
            f"Differential privacy: ε of a trial is that of its own run. {TUNING} At real sites every trial "
            "would be charged to their ledgers."
        )
    return found


def _direction(config: RunConfig, metric: str) -> str:
    from wardround.core.metrics import METRICS
    from wardround.training.tasks import TASKS

    task = TASKS.get(config.task.name, allow_dotted=True)
    directions = METRICS.get(task.metric_family).directions
    if metric not in directions:
        raise unknown_name("metric", metric, directions)
    return directions[metric]


def _require_alike(one: RunConfig, other: RunConfig) -> None:
    """Refuse a study whose trials would be judged on other rows, or by another figure.

    Raises:
        ConfigError: Names the settings.
    """
    parts: list[dict[str, Any]] = []
    for config in (one, other):
        values = dict(flat(config.model_dump(mode="json", include=set(JUDGED))))
        parts.append({name: value for name, value in values.items() if name not in FREE})
    if names := _differing(*parts):
        raise ConfigError(
            "trials would not be judged on the same rows by the same figure", found=f"tuned: {names}",
            expected="settings other than " + ", ".join(JUDGED) + f" (of data: {', '.join(FREE)} may be)",
            remedy="leave it out; `wardround simulate -m` and `wardround compare` show its effect",
        )  # fmt: skip


def _keep(folder: Path, study: Study, base: RunConfig) -> None:
    """Write what the study is, or hold it against what the folder says.

    Raises:
        ConfigError: The folder holds another study, or something else.
        StorageError: It cannot be read or written.
    """
    kept = folder / STUDY
    settings = {
        name: value for name, value in flat(base.model_dump(mode="json")) if name not in PLACES
    } | {f"tuned: {one.name}": one.text for one in study.tuned}  # fmt: skip
    wanted: dict[str, Any] = json.loads(json.dumps(settings))
    if not kept.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ConfigError(
                f"the folder {folder} is not empty, and holds no study", expected=f"a new folder, or {STUDY}",
                remedy="choose another with --output",
            )  # fmt: skip
        write_json(kept, wanted)
        return
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{kept} cannot be read", found=type(error).__name__) from error
    if names := _differing(before, wanted):
        raise ConfigError(
            f"{folder} holds another study", found=f"other values of {names}",
            expected="the command that began it; --trials and --pruner may change",
            remedy="begin this one in a folder of its own: --output",
        )  # fmt: skip


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    absent = object()
    names = [name for name in {**one, **other} if one.get(name, absent) != other.get(name, absent)]
    return ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")


def pasted(overrides: Sequence[str]) -> str:
    """Overrides as a shell takes them."""
    return shlex.join(overrides)
