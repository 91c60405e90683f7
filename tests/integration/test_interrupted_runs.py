"""Runs that are stopped where it hurts: while the folder is opened, with rare participation, after an end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import ConfigError, DataError, StorageError
from wardround.runtime.events import Event, Notice, RoundFolded, SiteReplied
from wardround.simulations import result_folder
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation


@pytest.fixture
def settings(notes: Callable[..., Any], tmp_path: Path) -> Callable[..., RunConfig]:
    """Four wards, two rounds, tested on their own rows."""
    return notes(rows=48, wards=4, rounds=2, test={"path": str(tmp_path / "rows.jsonl")})


Undisturbed = Callable[[RunConfig], SimulationResult]


class Stop:
    """Ends the run at an event, as a kill does."""

    def __init__(self, at: Callable[[Event], bool]) -> None:
        self.at = at

    def emit(self, event: Event) -> None:
        if self.at(event):
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to flush."""


def resumed(config: RunConfig) -> SimulationResult:
    """Go on with a run."""
    return run_simulation(config.model_copy(update={"resume": config.output}))


def digests(result: SimulationResult) -> dict[str, str]:
    """Last adapter of each arm."""
    arms = {"federated": result.federated, **result.bounds}
    return {name: arm.outcome.last.adapter.digest for name, arm in arms.items()}


@pytest.mark.parametrize("lost", ["config.json", "run.json"])
def test_a_run_that_was_killed_while_its_folder_was_opened_can_be_resumed(
    settings: Callable[..., RunConfig],
    undisturbed: Undisturbed,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    """Whatever file came last; the message of a new run in that folder says how."""
    config, whole = settings("cut"), undisturbed(settings("whole"))

    def dying(write: Callable[..., None]) -> Callable[..., None]:
        def until(path: Path, *rest: Any) -> None:
            if path.name == lost:
                path.with_name(f".{path.name}.0123456789ab.part").write_bytes(b"half")
                raise KeyboardInterrupt
            write(path, *rest)

        return until

    with monkeypatch.context() as patch:
        for name in ("write_json", "write_atomic"):
            patch.setattr(result_folder, name, dying(getattr(result_folder, name)))
        with pytest.raises(KeyboardInterrupt):
            run_simulation(config)
    with pytest.raises(ConfigError, match=f"resume={config.output}"):
        run_simulation(config)
    assert digests(resumed(config)) == digests(whole)
    assert not list(Path(config.output).rglob(".*"))


def test_what_a_kill_left_under_temporary_names_is_gone_after_a_resume(
    settings: Callable[..., RunConfig],
) -> None:
    """Half files and half folders, in every folder of the run."""
    config = settings("cut")
    with pytest.raises(KeyboardInterrupt):
        run_simulation(
            config, sinks=(Stop(lambda event: isinstance(event, RoundFolded) and event.round > 1),)
        )
    folder = Path(config.output)
    (folder / ".adapter.0123456789ab.part").mkdir()
    (folder / ".adapter.0123456789ab.part" / "x").write_bytes(b"half")
    (folder / "arms/federated/journal/.state-00002.safetensors.0123456789ab.part").write_bytes(b"half")
    resumed(config)
    assert not list(folder.rglob(".*"))


def test_the_optimisers_state_survives_a_kill_with_rare_participation(
    settings: Callable[..., RunConfig],
) -> None:
    """A site that last trained rounds ago, and that was asked again, starts from what it kept then."""
    rare = {"rounds": {"rounds": 6, "participation": 0.5}, "local": {"optimiser_state": "keep"}}
    whole = digests(run_simulation(settings("whole", **rare)))
    for round in (3, 5):
        config = settings(f"cut{round}", **rare)
        answered = []

        def last_answer(event: Event, round: int = round, answered: list[str] = answered) -> bool:
            trained = isinstance(event, SiteReplied) and event.round == round and "train.loss" in event.local
            answered.extend([event.site] if trained and isinstance(event, SiteReplied) else [])
            return len(answered) == 2  # both of the cohort have trained, nothing is folded yet

        with pytest.raises(KeyboardInterrupt):
            run_simulation(config, sinks=(Stop(last_answer),))
        assert digests(resumed(config)) == whole


def test_a_finished_run_can_be_resumed_and_says_nothing_twice(settings: Callable[..., RunConfig]) -> None:
    """The kill came while the report was written: all arms end as they did, each line stands once."""
    config = settings("run", bounds={"local_only": True}, evaluation={"every": 1})
    whole = run_simulation(config)
    path = whole.folder / "metrics.jsonl"
    before = said(path)
    assert len(before) == len(set(before))
    assert digests(resumed(config)) == digests(whole)
    assert sorted(said(path)) == sorted(before)


def said(path: Path) -> list[str]:
    """Lines without times; the starts aside."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record.get("local", {}).pop("seconds", None)
    volatile = {"time_s", "wall_s"}
    return [
        json.dumps({key: value for key, value in record.items() if key not in volatile})
        for record in records
        if record["event"] != "RunStarted"
    ]


@pytest.mark.parametrize("edited", ["training", "test"])
def test_rows_that_have_changed_since_are_not_resumed_with(
    settings: Callable[..., RunConfig], tmp_path: Path, edited: str
) -> None:
    """One word of one row, its label as before: the plan is the same, and two data sets would be mixed."""
    rows, test = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    test.write_bytes(rows.read_bytes())
    config = settings("cut", data={"test": {"path": str(test)}})
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Stop(lambda event: isinstance(event, RoundFolded)),))
    path = rows if edited == "training" else test
    before = path.read_text()
    path.write_text(before.replace('"sharp 0"', '"SECRET 0"'))
    with pytest.raises(DataError, match=r"(?s)rows are not those.*digest.*start a new run") as caught:
        resumed(config)
    assert "SECRET" not in str(caught.value)
    path.write_text(before)
    assert resumed(config).federated.outcome.last.round == 2


def test_versions_that_have_changed_since_are_told(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on with a warning that names old and new; with equal versions nothing is said."""
    config = settings("cut")
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Stop(lambda event: isinstance(event, RoundFolded)),))
    now = result_folder.environment()
    monkeypatch.setattr(result_folder, "environment", lambda: {**now, "torch": "99.0"})
    heard: list[Event] = []

    class Recorder:
        def emit(self, event: Event) -> None:
            heard.append(event)

        def close(self) -> None:
            """Nothing to flush."""

    run_simulation(config.model_copy(update={"resume": config.output}), sinks=(Recorder(),))
    (notice,) = [event for event in heard if isinstance(event, Notice) and "versions" in event.text]
    assert notice.level == "warning"
    assert f"torch {now['torch']} → 99.0" in notice.text
    assert "numpy" not in notice.text
    noted = Path(config.output) / "environment.json"
    noted.write_text(json.dumps(result_folder.environment()))
    assert result_folder.changed_versions(noted) == []
    noted.write_text("[1")
    assert "were not compared" in result_folder.changed_versions(noted)[0]


def test_an_output_that_is_a_file_is_refused(settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    """By name; it stays as it was."""
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        run_simulation(settings("taken"))
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"run_id": "x", "plan_digest": "y"}',
        '{"run_id": "x", "plan_digest": "y", "rows_digest": "z"}',
    ],
)
def test_a_run_record_that_is_none_is_an_error(
    settings: Callable[..., RunConfig], undisturbed: Undisturbed, content: str
) -> None:
    """Torn, a list, without its keys, or another plan's."""
    config = settings("run")
    shutil.copytree(undisturbed(config).folder, config.output)
    (Path(config.output) / "run.json").write_text(content)
    with pytest.raises((ConfigError, StorageError), match="resume"):
        resumed(config)


def test_a_folder_that_another_process_works_in_is_refused(
    settings: Callable[..., RunConfig], undisturbed: Undisturbed
) -> None:
    """Two resumes of one run at once would mix their rounds; once the other has ended, it goes on."""
    config = settings("busy")
    first = undisturbed(config)
    shutil.copytree(first.folder, config.output)
    resumed = config.model_copy(update={"resume": config.output})
    with result_folder.alone_in(Path(config.output)), pytest.raises(ConfigError, match="another process"):
        run_simulation(resumed)
    assert (
        run_simulation(resumed).federated.outcome.released.digest == first.federated.outcome.released.digest
    )


def test_an_unusable_output_is_refused_before_the_model_is_loaded(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the way, or no run to resume: said at once, and nothing is made."""
    from wardround.simulations import simulate

    def never(*_: object) -> None:
        pytest.fail("the run was prepared")

    monkeypatch.setattr(simulate, "prepare", never)
    config = settings("taken")
    Path(config.output).write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        run_simulation(config)
    nowhere = Path(config.output).parent / "nowhere"
    with pytest.raises(ConfigError, match="no run to resume"):
        run_simulation(config.model_copy(update={"resume": str(nowhere)}))
    assert not nowhere.exists()


def test_contradicting_sources_are_refused(settings: Callable[..., RunConfig]) -> None:
    """What would be passed over in silence is a fault."""
    with pytest.raises(ConfigError, match=r"data\.source, or data\.sites"):
        settings("both", data={"sites": {"ward": {"path": "rows.jsonl"}}})
    with pytest.raises(ConfigError, match=r"data\.limit"):
        settings("limit", data={"source": None, "sites": {"ward": {"path": "rows.jsonl"}}, "limit": 5})
