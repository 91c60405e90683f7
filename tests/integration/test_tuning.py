"""`wardround tune` on a tiny model: trials judged on validation parts, pruned, gone on with, refused."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import warm
from optuna.trial import FrozenTrial
from rich.console import Console

from wardround.core.errors import ConfigError, QuorumError
from wardround.simulations import rows as row_reading
from wardround.simulations.command import config_of
from wardround.simulations.compare import compare_runs
from wardround.simulations.tuning import trials as trial_running
from wardround.simulations.tuning.command import Study, notices, tune
from wardround.simulations.tuning.space import split

pytestmark = pytest.mark.usefixtures("without_curves", "without_syncs")

RATES = "local.learning_rate=choice(0.01,1e-12)"


@pytest.fixture
def settings(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Rows of two wards, test rows that nobody can read, and what reads them; in the working folder."""
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(48):
            kind = "slow" if number % 2 else "sharp"
            row = {"note": f"{kind} {number}", "kind": kind, "ward": f"ward_{number % 4 // 2}"}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "test.jsonl").write_text("these are no rows\n")
    return (
        "data=own", "model=own", f"model.path={tiny_bert}", "data.source={path: rows.jsonl}", "name=notes",
        "data.test={path: test.jsonl}", "+data.columns.text=note", "+data.columns.label=kind",
        "data.site_column=ward", "partition.kind=natural", "data.max_length=32",
        "data.validation_fraction=0.3", "rounds.rounds=3", "local.batch_size=8", "local.steps=2",
        "local.epochs=null",
        "machine.threads=1", "machine.device=cpu", "release.metric=loss", "release.direction=min",
        "secure.mode=off",
    )  # fmt: skip


def study(*arguments: str, trials: int = 3, **options: Any) -> tuple[FrozenTrial | None, str]:
    """Run a study in `study`; the best trial, and what was said."""
    console = Console(file=io.StringIO(), width=200)
    best = tune(arguments, trials=trials, output=Path("study"), console=console, **options)
    said: Any = console.file
    return best, str(said.getvalue())


def table() -> list[dict[str, str]]:
    """What `study/trials.csv` says."""
    return list(csv.DictReader(Path("study/trials.csv").read_text().splitlines()))


def record(number: int) -> dict[str, Any]:
    """What a trial's folder says became of it."""
    found: dict[str, Any] = json.loads(Path(f"study/trial_{number:04d}/trial.json").read_text())
    return found


def counted(monkeypatch: pytest.MonkeyPatch, fails: Mapping[int, Exception] | None = None) -> list[str]:
    """The folders of runs, as they begin; the ones of these numbers fail once they have ended."""
    begun: list[str] = []
    real = trial_running.run_simulation

    def run(config: Any, **options: Any) -> Any:
        begun.append(Path(config.output).name)
        result = real(config, **options)
        if error := (fails or {}).get(len(begun) - 1):
            raise error
        return result

    monkeypatch.setattr(trial_running, "run_simulation", run)
    return begun


def test_a_study_finds_the_better_value_and_never_reads_test_rows(settings: tuple[str, ...]) -> None:
    """The test source is no file of rows: whoever opened it would fail. Equal values are run once."""
    best, said = study(*settings, RATES, trials=5, pruner="none")
    assert best is not None
    assert best.params == {"local.learning_rate": "0.01"}
    runs = sorted(place.name for place in Path("study").glob("trial_*"))
    assert len(runs) == 2
    rows = table()
    assert [row["trial"] for row in rows] == list("01234")
    assert sum(bool(row["same_as"]) for row in rows) == 3
    assert {row["folder"] for row in rows} - {""} == set(runs)
    assert "test rows are not read" in said
    assert "local.learning_rate=0.01" in said.partition("best: wardround simulate")[2]
    summary = json.loads(Path("study", f"trial_{best.number:04d}", "summary.json").read_text())
    arm = summary["arms"]["federated"]
    assert best.value == dict(arm["validation"])[arm["released_round"]]
    assert arm["test"] == {}
    assert record(best.number)["state"] == "finished"
    variants = compare_runs([Path("study")], Path("comparison"))
    assert {variant.label for variant in variants} == {"learning_rate=0.01", "learning_rate=1e-12"}


def test_test_rows_are_read_where_somebody_asks_for_them(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--test`: the same source is opened then, and is no file of rows. Without it nobody opens it."""
    opened: list[str] = []
    real = row_reading.read_examples

    def read(source: Any, *others: Any, **options: Any) -> Any:
        opened.append(Path(source.path).name)
        return real(source, *others, **options)

    monkeypatch.setattr(row_reading, "read_examples", read)
    study(*settings, "local.learning_rate=choice(0.01)", trials=1)
    assert set(opened) == {"rows.jsonl"}
    Path("test.jsonl").write_text(Path("rows.jsonl").read_text())
    tune(
        [*settings, "local.learning_rate=choice(0.01)"], trials=1, output=Path("tested"), scores_test=True,
        console=Console(file=io.StringIO()),
    )  # fmt: skip
    assert "test.jsonl" in opened


def test_a_bad_trial_ends_early_and_its_folder_says_so(settings: tuple[str, ...]) -> None:
    """An absurd learning rate is pruned before its last round; its run can be looked at and gone on with."""
    best, said = study(  # by this seed the good rate comes first: there has to be something to be worse than
        *settings, "seed=1", "rounds.rounds=6", "local.learning_rate=choice(1.0,0.002)", trials=4
    )
    rows = [row for row in table() if not row["same_as"]]
    states = {row["local.learning_rate"]: row["state"] for row in rows}
    assert states == {"0.002": "finished", "1.0": "pruned"}
    pruned = next(row for row in rows if row["state"] == "pruned")
    place = Path("study") / pruned["folder"]
    folded = [line for line in (place / "metrics.jsonl").read_text().splitlines() if '"RoundFolded"' in line]
    assert 1 <= len(folded) < 6
    assert not (place / "summary.json").exists()
    found = record(int(pruned["trial"]))
    assert found["state"] == "pruned"
    assert found["validation"]
    assert best is not None
    assert "1 pruned" in said
    gone_on = trial_running.run_simulation(config_of({"resume": str(place)}))
    assert gone_on.federated.outcome.last.round == 6


def test_an_interrupted_study_goes_on_with_what_is_missing(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second trial: the first is not run again, the second is, and all values are as ever."""
    space = "local.learning_rate=range(0.001,0.02,0.001)"
    settings = (*settings, "rounds.rounds=1")
    with monkeypatch.context() as patch:
        counted(patch, {1: KeyboardInterrupt()})  # type: ignore[dict-item] - no Exception, as a kill is none
        with pytest.raises(KeyboardInterrupt):
            study(*settings, space, pruner="none")
    (Path("study") / "trial_0001" / "summary.json").unlink()  # as if it had been in the middle
    with Path("study/study.journal").open("a") as journal:
        journal.write('{"op_code":5,"torn')
    Path("study/study.journal.lock").symlink_to("study.journal")
    with monkeypatch.context() as patch:
        begun = counted(patch)
        best, _ = study(*settings, space, pruner="none")
    assert begun == ["trial_0002", "trial_0003"]
    assert record(1)["state"] == "interrupted"
    assert [row["state"] for row in table()] == ["finished", "interrupted", "finished", "finished"]
    gone_on = [row[name] for row in table() if row["state"] == "finished" for name in ("loss", space[:19])]
    Path("study").rename("former")
    again, _ = study(*settings, space, pruner="none")
    assert [row[name] for row in table() for name in ("loss", space[:19])] == gone_on
    assert best is not None
    assert again is not None
    assert best.params == again.params


def test_a_killed_study_goes_on(settings: tuple[str, ...], tmp_path: Path) -> None:
    """SIGKILL in the second trial: the same command runs that one again, and the first one stays."""
    asked = (*settings, "rounds.rounds=8", "local.learning_rate=range(0.001,0.02,0.001)")
    code = "import sys; from wardround.cli import main; main(sys.argv[1:])"
    options = ("--trials", "2", "--pruner", "none", "--output", "study")
    process = warm.start(code, ("tune", *asked, *options), tmp_path, tmp_path / "killed.txt")
    metrics = tmp_path / "study" / "trial_0001" / "metrics.jsonl"
    for _ in range(2400):
        if metrics.exists() and "RoundFolded" in metrics.read_text():
            break
        time.sleep(0.02)
    process.kill()
    assert warm.ended(process) == -signal.SIGKILL
    first = Path("study/trial_0000/summary.json").stat().st_mtime_ns
    study(*asked, trials=2, pruner="none")
    states = [(row["trial"], row["state"]) for row in table()]
    assert states == [("0", "finished"), ("1", "interrupted"), ("2", "finished")]
    assert Path("study/trial_0000/summary.json").stat().st_mtime_ns == first
    assert record(1)["values"] == record(2)["values"]


def test_a_run_that_had_ended_is_not_run_again(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a run's end and the study's note of it; more trials may be asked for later."""
    with monkeypatch.context() as patch:
        counted(patch, {0: KeyboardInterrupt()})  # type: ignore[dict-item] - as above
        with pytest.raises(KeyboardInterrupt):
            study(*settings, "local.learning_rate=range(0.001,0.02,0.001)", "rounds.rounds=1")
    begun = counted(monkeypatch)
    study(*settings, "local.learning_rate=range(0.001,0.02,0.001)", "rounds.rounds=1", trials=2)
    assert begun == ["trial_0001"]
    assert [row["state"] for row in table()] == ["finished", "finished"]
    with pytest.raises(ConfigError, match="holds another study"):
        study(*settings, "local.learning_rate=range(0.001,0.03,0.001)", trials=2)


def test_a_trial_that_fails_is_one_trial(settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose rounds cannot count ends, and not its study; it is told, and not run again."""
    begun = counted(monkeypatch, {0: QuorumError("too few sites answered")})
    _, said = study(*settings, "local.learning_rate=range(0.001,0.02,0.001)", "rounds.rounds=1", trials=2)
    assert "failed: QuorumError: too few sites answered" in said
    assert [row["state"] for row in table()] == ["failed", "finished"]
    study(*settings, "local.learning_rate=range(0.001,0.02,0.001)", "rounds.rounds=1", trials=2)
    assert len(begun) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=0,1"], "tuned: seed"),
        (["data.validation_fraction=interval(0.1,0.3)"], "tuned: data.validation_fraction"),
        ([RATES, "data.validation_fraction=0"], "nothing would judge the trials"),
        (["local.steps=interval(1,9)"], "local.steps"),
        (["local.learning_ratio=0.1,0.2"], "learning_rate"),
        (["strategy.name=fedavg,fedovg"], "fedovg"),
        (["adapter.options.rang=choice(2,4)"], "rang"),
    ],
)
def test_a_wrong_study_is_refused_before_its_first_trial(
    settings: tuple[str, ...], arguments: list[str], said: str
) -> None:
    """Every choice is read first: other rows to be judged on, no judge, fractions of a step, names."""
    with pytest.raises(ConfigError) as refused:
        study(*settings, *arguments)
    assert said in str(refused.value)
    assert not Path("study").exists()


def test_a_private_study_says_that_its_epsilon_leaves_tuning_out(settings: tuple[str, ...]) -> None:
    """And that every trial would be charged at real sites; without privacy nothing is said of it."""
    private = ("privacy=patient", "privacy.epsilon=8", "+data.unit_column=ward", "data.labels=[sharp,slow]")
    for others, said in ((private, True), ((), False)):
        study = Study(*split([*settings, *others, RATES]))
        config = study.config({"local.learning_rate": "0.01"})
        assert config is not None
        text = " ".join(notices(config, scores_test=False))
        assert ("Excluding tuning" in text) == said
        assert ("charged to their ledgers" in text) == said


def test_the_command_line(
    settings: tuple[str, ...], tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Options between overrides; `--metric` knows its direction; a wrong pruner or metric is refused."""
    done = command_line(
        tmp_path, "tune", RATES, "--trials", "1", *settings, "--metric", "accuracy", "rounds.rounds=1",
        "--pruner", "hyperband",
    )  # fmt: skip
    assert "judged by accuracy (largest is best)" in done.stdout
    assert (tmp_path / "runs" / "notes" / "tune" / "trials.parquet").exists()
    refused = command_line(tmp_path, "tune", RATES, *settings, "--pruner", "median_", code=2)
    assert "hyperband" in refused.stderr
    unknown = command_line(tmp_path, "tune", RATES, *settings, "--metric", "acuracy", code=2)
    assert "accuracy" in unknown.stderr
