"""How `wardround simulate` hands its arguments to Hydra, and what it says where Hydra cannot compose."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from wardround.core.errors import ConfigError, WardroundError
from wardround.simulations import simulate
from wardround.simulations.command import SETTINGS, config_of, main, refuse_changes, run_composed
from wardround.simulations.config import RunConfig
from wardround.simulations.hydra_main import for_hydra


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("local.learning_rate=1", "++local.learning_rate=1"),
        ("+data.columns.text=note", "++data.columns.text=note"),
        ("partition.options={sites: 3}", "++partition.options={sites: 3}"),
        ("seed=0,1", "++seed=0,1"),
        ("strategy=fedavg,fedadam", "strategy=fedavg,fedadam"),
        ("+experiment=demo", "+experiment=demo"),
        ("mine=x.y", "mine=x.y"),
        ("hydra.verbose=true", "hydra.verbose=true"),
        ("model@other=own", "model@other=own"),
        ("~data.test=null", "~data.test=null"),
    ],
)
def test_settings_are_forced_and_choices_are_not(given: str, taken: str) -> None:
    """A setting goes in with `++`, so that our own check sees it; what chooses a file stays as it is."""
    assert for_hydra([given], SETTINGS) == [taken]


def test_flags_come_first_and_the_file_of_init_is_named() -> None:
    """Hydra's parser wants flags before overrides."""
    assert for_hydra(["seed=1", "--config-dir=study", "-m"], SETTINGS) == [
        "--config-name", "wardround", "--config-dir=study", "-m", "++seed=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["strategy=fedagv"], "did you mean 'fedavg'"),
        (["model=storeis"], "did you mean 'stories'"),
        (["local.learning_rte=1"], "did you mean 'learning_rate'"),
        (["local.schedule.shpae=cosine"], "did you mean 'shape'"),
        (["rouns.rounds=3"], "did you mean 'rounds'"),
        (["rounds={round: 3}"], "did you mean 'rounds'"),
        (["sed=1"], "did you mean 'seed'"),
        (["data.source={path: x.jsonl, kidn: csv}"], "did you mean 'kind'"),
        (["=3"], "no name"),
        (["data.source.path=???"], "still to be filled in"),
        (["--config-name=nothing"], "no file nothing.yaml"),
    ],
)
def test_what_cannot_be_composed_names_the_nearest(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """An error of ours, whoever found it; Hydra adds no list of overrides."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WardroundError, match=text.replace("?", "[?]")) as caught:
        main(arguments)
    assert caught.value.exit_code == 2
    assert "Error executing job" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"name: [a\n", b'name: "\xff"\n', b"name: a\nname: b\n", b"- a\n"])
def test_a_broken_file_of_settings_is_a_message(tmp_path: Path, content: bytes) -> None:
    """Torn YAML, bytes that are no text, a key twice, a list."""
    (tmp_path / "wardround.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be composed"):
        main(["--config-dir", str(tmp_path), "--cfg", "job"])


@pytest.mark.parametrize("content", [None, b"", b"name: [a", b"\xff", b"- a\n"])
def test_a_torn_configuration_cannot_be_resumed(tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty, torn, no text, a list: each names the folder."""
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        config_of({"resume": str(tmp_path)})


def test_every_open_setting_is_named_at_once() -> None:
    """What `wardround init` leaves open is named before anything is read."""
    with pytest.raises(ConfigError, match=r"data\.source\.path: \?\?\?, model\.path: \?\?\?"):
        run_composed(OmegaConf.create({"model": {"path": "???"}, "data": {"source": {"path": "???"}}}))


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: the command that resumes, once there is something to resume."""
    values = {
        "name": "x", "output": str(tmp_path), "model": {"path": "none"}, "local": {"steps": 1},
        "task": {"name": "causal_lm"}, "data": {}, "rounds": {"rounds": 1},
    }  # fmt: skip
    console = Console(record=True, file=io.StringIO())

    def interrupted(*_: object, **__: object) -> None:
        if began:
            (tmp_path / "run.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "run_simulation", interrupted)
    for began in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run_composed(OmegaConf.create(values), console=console)
        assert (f"resume={tmp_path}" in console.export_text()) is began


def test_a_resumed_run_takes_no_other_settings() -> None:
    """They would be passed over in silence."""
    refuse_changes(["++resume=runs/x"])
    with pytest.raises(ConfigError, match=r"rounds\.rounds=20"):
        refuse_changes(["++resume=runs/x", "++rounds.rounds=20"])


def test_a_key_under_a_name_that_a_person_chose_gets_its_proposal() -> None:
    """`data.sites.NAME` has the keys of a source."""
    values = {
        "name": "x", "model": {"path": "none"}, "local": {"steps": 1}, "task": {"name": "causal_lm"},
        "data": {"sites": {"ward": {"path": "rows.jsonl", "knd": "csv"}}}, "rounds": {"rounds": 1},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="did you mean 'kind' instead of 'knd'"):
        RunConfig.parse(values)


def test_off_in_a_file_of_settings_is_the_mode_off() -> None:
    """YAML reads a bare `off` as false; a person who writes what the comments show means the mode."""
    composed = OmegaConf.create(
        "{name: x, model: {path: none}, local: {steps: 1}, task: {name: causal_lm}, data: {}, "
        "rounds: {rounds: 1}, secure: {mode: off, policy: {modes: [real, off]}}}"
    )
    values: Any = OmegaConf.to_container(composed)
    config = RunConfig.parse(values)
    assert config.secure.mode == "off"
    assert config.secure.policy.modes == ("real", "off")
