"""A study on disk and its trials: asked, run, judged on validation parts, pruned by round, gone on with.

What decides a trial's values is the study's seed, how many trials have settled, and what they gave: a
study that was killed and went on ends as one that never was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from wardround.core.errors import ConfigError, StorageError, WardroundError
from wardround.core.seeds import Purpose, seed_for
from wardround.runtime.events import Evaluated, Event, EventSink
from wardround.runtime.files import storing, write_atomic, write_json
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation

JOURNAL: Final = "study.journal"
RECORD: Final = "trial.json"
SUMMARY: Final = "summary.json"
ERROR, SAME_AS, ROUND = "error", "same_as", "round"
STARTUP: Final = 5
"""The median is of at least so many finished trials; of a quarter of a study that has fewer than 20."""

Pruner: TypeAlias = Literal["median", "hyperband", "none"]
Params: TypeAlias = Mapping[str, Any]


class RoundReporter:
    """Tells a trial each round's score on the validation parts, and ends its run where the pruner says so.

    What it is not told of the stream: test rows choose nothing.
    """

    def __init__(self, trial: Trial, metric: str, rounds: int) -> None:
        self._trial, self._metric, self._rounds = trial, metric, rounds
        self._told: set[int] = set()

    def emit(self, event: Event) -> None:
        """Report a score.

        Raises:
            TrialPruned: The run is not worth its other rounds.
        """
        if not isinstance(event, Evaluated) or (event.arm, event.part) != (FEDERATED, "validation"):
            return
        value = event.values.get(self._metric)
        if value is None or event.round == 0 or event.round in self._told:
            return
        self._told.add(event.round)
        self._trial.report(value, event.round)
        if event.round < self._rounds and self._trial.should_prune():
            raise optuna.TrialPruned

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Trials:
    """The trials of one study.

    Attributes:
        study: Optuna's.
        folder: Of the study; a trial's run is below.
        seed: Of the configuration.
        metric: What is compared.
        space: Setting → distribution.
        config_of: What a trial with these values runs.
        sinks: More readers of every trial's stream.
    """

    study: optuna.Study
    folder: Path
    seed: int
    metric: str
    space: Mapping[str, BaseDistribution]
    config_of: Callable[[Params, Path], RunConfig]
    sinks: Callable[[], tuple[EventSink, ...]] = tuple

    @property
    def settled(self) -> list[FrozenTrial]:
        """Trials that are not run again: finished, pruned, or failed by themselves."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if is_settled(trial)]

    def recover(self) -> None:
        """Settle what a killed process left running: its run had ended, or its values are tried again."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state != TrialState.RUNNING:
                continue
            place = self.place(trial.number)
            ended = _ended(place)
            if ended is not None:
                self._settle(Trial(self.study, trial._trial_id), place, TrialState.COMPLETE, *ended)  # noqa: SLF001 - Optuna has no public way to a trial of another process
                continue
            if set(trial.params) == set(self.space):
                self.study.enqueue_trial(trial.params)
            self.study.tell(trial.number, state=TrialState.FAIL)
            if place.is_dir():
                write_json(place / RECORD, {"trial": trial.number, "state": "interrupted", **_of(trial)})

    def place(self, number: int) -> Path:
        """Folder of a trial's run."""
        return self.folder / f"trial_{number:04d}"

    def run_next(self, begins: Callable[[int, Params], None]) -> FrozenTrial:
        """Ask for values, run them, and tell what came of it.

        Args:
            begins: Is told the trial's number and values before it runs.

        Raises:
            ConfigError: The run's configuration is refused, or nothing was scored on validation parts.
            StorageError: Something cannot be written.
        """
        root = seed_for(self.seed, Purpose.TUNING, round=len(self.settled))
        self.study.sampler = optuna.samplers.TPESampler(seed=root % 2**32)
        trial = self.study.ask(fixed_distributions=dict(self.space))
        if (twin := self._twin(trial)) is not None:
            return self._repeat(trial, twin)
        begins(trial.number, trial.params)
        place = self.place(trial.number)
        try:
            config = self.config_of(trial.params, place)
            reporter = RoundReporter(trial, self.metric, config.rounds.rounds)
            result = run_simulation(config, sinks=(*self.sinks(), reporter))
            best = self._judged(result, place)
        except optuna.TrialPruned:
            settled = self._settle(trial, place, TrialState.PRUNED)
        except (ConfigError, StorageError):
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        except WardroundError as error:  # such as a loss that is not finite: other values may do better
            trial.set_user_attr(ERROR, f"{type(error).__name__}: {error.what}")
            settled = self._settle(trial, place, TrialState.FAIL)
        else:
            settled = self._settle(trial, place, TrialState.COMPLETE, *best)
        return settled

    def _judged(self, result: SimulationResult, place: Path) -> tuple[int, float]:
        """Released round and its score."""
        best = result.federated.outcome.selection.best
        if best is None:
            raise ConfigError(
                "a trial has no score on validation parts, and nothing else may judge it",
                found=f"no {self.metric} in {place}",
                expected="sites with enough rows that data.validation_fraction holds some back",
            )
        return best

    def _twin(self, trial: Trial) -> FrozenTrial | None:
        """A settled trial with the same values: a run is the same with every repetition."""
        return next((other for other in self.settled if other.params == trial.params), None)

    def _repeat(self, trial: Trial, twin: FrozenTrial) -> FrozenTrial:
        trial.set_user_attr(SAME_AS, twin.user_attrs.get(SAME_AS, twin.number))
        for name in (ERROR, ROUND):
            if name in twin.user_attrs:
                trial.set_user_attr(name, twin.user_attrs[name])
        for round, value in twin.intermediate_values.items():
            trial.report(value, round)
        finished = twin.state == TrialState.COMPLETE
        return self.study.tell(trial, twin.value if finished else None, state=twin.state)

    def _settle(
        self,
        trial: Trial,
        place: Path,
        state: TrialState,
        round: int | None = None,
        value: float | None = None,
    ) -> FrozenTrial:
        """Write into the run's folder what became of it, then tell the study."""
        if round is not None:
            trial.set_user_attr(ROUND, round)
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        if place.is_dir():
            record = {"trial": trial.number, "state": _NAMES[state], "value": value, **_of(frozen)}
            write_json(place / RECORD, record)
        return self.study.tell(trial, value, state=state)


_NAMES: Final = {
    TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
}  # fmt: skip


def state_of(trial: FrozenTrial) -> str:
    """For people: `finished`, `pruned`, `failed` or `interrupted`."""
    return _NAMES[trial.state] if is_settled(trial) else "interrupted"


def is_settled(trial: FrozenTrial) -> bool:
    """Whether nobody runs it again; a failed one without a reason was interrupted."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (
        trial.state == TrialState.FAIL and ERROR in trial.user_attrs
    )


def open_study(folder: Path, direction: str, pruner: Pruner, trials: int) -> optuna.Study:
    """The study in a folder that this process holds; a new one where there is none.

    Raises:
        StorageError: It cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL
    _mend(path)
    with storing(path):
        try:
            return optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name="wardround",
                direction="maximize" if direction == "max" else "minimize",
                pruner=_pruner(pruner, trials),
                load_if_exists=True,
            )
        except (ValueError, KeyError) as error:
            raise StorageError(
                f"{path} does not hold a study", found=f"{type(error).__name__}: {error}",
                expected="Optuna's journal, as a study left it", remedy="begin anew in another --output",
            ) from error  # fmt: skip


def _mend(path: Path) -> None:
    """Take away what a kill leaves: Optuna's lock, and a last line that is not whole. The folder is ours."""
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_atomic(path, whole)


def _pruner(kind: Pruner, trials: int) -> optuna.pruners.BasePruner:
    if kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=max(1, min(STARTUP, trials // 4)))
    return optuna.pruners.HyperbandPruner() if kind == "hyperband" else optuna.pruners.NopPruner()


def _ended(place: Path) -> tuple[int, float] | None:
    """Released round and score of a run that had ended before its process was killed."""
    try:
        arm = json.loads((place / SUMMARY).read_text(encoding="utf-8"))["arms"][FEDERATED]
        scores: Sequence[tuple[int, float]] = arm["validation"]
        return int(arm["released_round"]), float(dict(scores)[arm["released_round"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of(trial: FrozenTrial) -> dict[str, Any]:
    """What a folder says of its trial: its values, and its scores by round."""
    scores = {str(round): value for round, value in sorted(trial.intermediate_values.items())}
    return {"values": trial.params, "validation": scores, **trial.user_attrs}
