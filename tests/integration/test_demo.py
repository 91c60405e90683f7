"""The demo as `make demo` runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from wardround.core.errors import ConfigError
from wardround.runtime.events import Notice
from wardround.simulations.command import config_of
from wardround.simulations.demo.demo import (
    MARKER,
    Marks,
    asked,
    composed_demo,
    make_room,
    run_demo,
)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_shows_what_federation_buys(tmp_path: Path) -> None:
    """Federated beats the mean local-only on everybody's patients; the merged model is there and agrees."""
    result = run_demo(tmp_path / "demo", seed=0)
    federated = result.federated.test["test"].values
    local = [bound.test["test"].values for name, bound in result.bounds.items() if name.startswith("local/")]
    assert len(local) == 4
    for metric in ("accuracy", "macro_f1", "auroc"):
        assert federated[metric] > sum(values[metric] for values in local) / 4
    assert (tmp_path / "demo" / "merged" / "model.safetensors").stat().st_size > 80_000_000
    assert (tmp_path / "demo" / MARKER).is_file()
    card = (tmp_path / "demo" / "README.md").read_text()
    assert "CC BY 4.0. Janosi" in card
    assert "0: no heart disease; 1: heart disease" in card
    assert (tmp_path / "demo" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_replaces_only_its_own_former_run(tmp_path: Path) -> None:
    """A person's own run goes nowhere, also where it is called demo; the message names another folder."""
    for name in ("demo", "thesis"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps({"name": name}))
        (folder / "config.yaml").write_text(yaml.safe_dump({"name": name, "data": {"description": None}}))
        with pytest.raises(ConfigError, match=r"(?s)did not make.*--output"):
            make_room(folder)
        assert (folder / "plan.json").is_file()
    Marks(tmp_path / "demo").emit(Notice("federated", "info", "begins"))
    make_room(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    make_room(tmp_path / "nowhere")


def test_a_demo_that_was_killed_before_its_first_event_is_replaced(tmp_path: Path) -> None:
    """Its configuration says that it is the demo's, and there is no result to lose."""
    values = {"name": "demo", "evaluation": {"sample_texts": True}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values, allow_unicode=True))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="did not make"):
        make_room(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    make_room(tmp_path)
    assert not tmp_path.exists()


def test_the_demo_says_what_its_rows_are(tmp_path: Path) -> None:
    """Description, licence with its citation, and what the labels mean; so does every run on these rows."""
    composed: Any = OmegaConf.to_container(composed_demo(tmp_path, 3), resolve=True)
    config = config_of(composed)
    assert config.seed == 3
    with initialize_config_module("wardround.conf", version_base="1.3"):
        other: Any = OmegaConf.to_container(compose("config", ["experiment=heart_head", "output=x"]))
    assert config_of(other).data.licence == config.data.licence
    assert config.data.licence is not None
    assert config.data.licence.startswith("CC BY 4.0. Janosi")
    assert set(config.data.label_meanings) == set(config.data.labels)
    assert "four hospitals" in str(config.data.description)


def test_an_answer_belongs_to_the_patient_whose_id_it_bears() -> None:
    """Whatever the order of the answers: a table of patients is no place for a mix-up."""
    patients = {"b": {"id": "b-1", "label": "1"}, "a": {"id": "a-7", "label": "0"}}
    answers = [{"id": "b-1", "probabilities": {"1": 0.9}}, {"id": "a-7", "probabilities": {"1": 0.2}}]
    for order in (answers, answers[::-1]):
        assert asked(patients, order) == [(patients["a"], 0.2), (patients["b"], 0.9)]
