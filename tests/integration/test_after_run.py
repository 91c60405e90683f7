"""Merge, evaluate and predict on what a run left, and on what was done to it since."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wardround.core.errors import ConfigError, DataError, ModelError
from wardround.simulations.after_run import evaluate_file, merge_run, parity_lines, predict_file
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import run_simulation
from wardround.training.merge import Difference, MergeReport

WEIGHTS = "adapter/adapter_model.safetensors"


def rows(path: Path, count: int) -> Path:
    """Notes of two kinds in two wards."""
    path.write_text(
        "".join(
            json.dumps(
                {"note": f"{'slow' if n % 2 else 'sharp'} {n}", "kind": str(n % 2), "ward": n % 4 // 2}
            )
            + "\n"
            for n in range(count)
        )
    )
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A run of one round, its rows beside it, over a base of its own."""
    folder = tmp_path_factory.mktemp("finished")
    base = shutil.copytree(tiny_bert, folder / "base")
    config = RunConfig.parse(
        {
            "name": "notes", "output": str(folder / "run"), "model": {"path": str(base)},
            "task": {"name": "sequence_classification"},
            "data": {
                "source": {"path": str(rows(folder / "rows.jsonl", 24))},
                "columns": {"text": "note", "label": "kind"}, "site_column": "ward", "max_length": 32,
            },
            "adapter": {"options": {"r": 2, "alpha": 4}},
            "local": {"steps": 1, "learning_rate": 1e-2}, "rounds": {"rounds": 1},
            "machine": {"device": "cpu"}, "secure": {"mode": "off"},
        }
    )  # fmt: skip
    run_simulation(config)
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(finished, tmp_path / "place")


def cut(path: Path) -> None:
    """Only the first hundred bytes are left."""
    path.write_bytes(path.read_bytes()[:100])


def change(path: Path, made: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Rewrite an adapter's weights."""
    tensors = load_file(path)
    made(tensors)
    save_file(tensors, path)


def first(tensors: dict[str, np.ndarray]) -> str:
    """Name of a weight of the adapter."""
    return next(name for name in sorted(tensors) if "lora_A" in name)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "torn weights": (lambda run: cut(run / WEIGHTS), "no adapter can be read"),
    "no weights": (lambda run: (run / WEIGHTS).unlink(), "no adapter"),
    "torn settings": (lambda run: cut(run / "adapter/adapter_config.json"), "does not fit"),
    "a weight is gone": (
        lambda run: change(run / WEIGHTS, lambda t: t.__delitem__(first(t))), "does not fit",
    ),
    "a weight is NaN": (
        lambda run: change(run / WEIGHTS, lambda t: t.update({first(t): t[first(t)] * np.nan})), "not finite",
    ),
    "torn configuration": (lambda run: cut(run / "config.json"), "not the folder of a run"),
    "torn plan": (lambda run: cut(run / "plan.json"), "faults in the training plan"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_damaged_run_is_refused_by_every_command(place: Path, kind: str) -> None:
    """An error of ours; nothing is scored with half an adapter, nothing is written."""
    damage, text = DAMAGE[kind]
    damage(place / "run")
    before = sorted(place.rglob("*"))
    with pytest.raises(ConfigError, match=text):
        merge_run(place / "run", None, None, None)
    with pytest.raises(ConfigError, match=text):
        evaluate_file(place / "run", str(place / "rows.jsonl"), None, as_json=False)
    with pytest.raises(ConfigError, match=text):
        predict_file(place / "run", str(place / "rows.jsonl"), place / "answers.jsonl", None)
    assert sorted(place.rglob("*")) == before


def test_another_base_is_refused(place: Path, finished: Path) -> None:
    """The same architecture with other weights would take the adapter, and give other answers."""
    other = place / "base"
    weights = other / "model.safetensors"
    changed = {name: tensor * 1.1 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not the expected ones"):
        merge_run(place / "run", None, str(other), None)
    assert not (place / "run" / "merged").exists()
    config = json.loads((place / "run" / "config.json").read_text())
    config["model"]["path"] = str(other)  # as if the folder had changed since the run
    (place / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="not the expected ones"):
        evaluate_file(place / "run", str(place / "rows.jsonl"), None, as_json=False)
    assert merge_run(place / "run", None, str(finished / "base"), None).passed


def test_a_bare_base_is_no_merged_model(finished: Path) -> None:
    """Its head would be drawn anew, and its scores mean nothing."""
    with pytest.raises(ModelError, match=r"(?s)not a merged model.*classifier"):
        evaluate_file(finished / "base", str(finished / "rows.jsonl"), finished / "run", as_json=False)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(finished: Path, tolerance: float) -> None:
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match="--tolerance"):
        merge_run(finished / "run", None, None, tolerance)


def test_a_merge_beyond_the_tolerance_leaves_nothing(place: Path) -> None:
    """The folder beside the run is as it was."""
    before = sorted(place.rglob("*"))
    with pytest.raises(ModelError, match="nothing was written"):
        merge_run(place / "run", None, None, 0.0)
    assert sorted(place.rglob("*")) == before


def test_answers_never_take_the_place_of_a_file(place: Path) -> None:
    """Least of all of the rows themselves."""
    source = place / "rows.jsonl"
    before = source.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        predict_file(place / "run", str(source), source, None)
    assert source.read_bytes() == before


def test_rows_that_are_left_out_are_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the error stream, by reason and without their text; with none left it is an error."""
    source = place / "rows.jsonl"
    with source.open("a") as file:
        file.write('{"note": "SECRET", "kind"\n{"note": " ", "kind": "1"}\n')
    predict_file(place / "run", str(source), place / "answers.jsonl", None)
    told = capsys.readouterr().err
    assert "2 of 26 rows left out (1 × not_json, 1 × empty:text)" in told
    assert "SECRET" not in told
    assert len((place / "answers.jsonl").read_text().splitlines()) == 24
    (place / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="no usable row"):
        evaluate_file(place / "run", str(place / "none.jsonl"), None, as_json=False)


def test_an_empty_model_path_is_refused(finished: Path) -> None:
    """It would be the folder that one stands in."""
    with pytest.raises(ModelError, match="no model is named"):
        merge_run(finished / "run", None, "", None)


def test_a_run_on_packed_rows_is_merged_on_samples_that_stand_alone(tmp_path: Path, tiny_llama: Path) -> None:
    """A causal LM with eager attention: a sample with several rows in it would need the mask of training."""
    config = RunConfig.parse(
        {
            "name": "notes", "output": str(tmp_path / "run"),
            "model": {"path": str(tiny_llama), "attention": "eager"},
            "task": {"name": "causal_lm", "options": {"format": "text"}},
            "data": {
                "source": {"path": str(rows(tmp_path / "rows.jsonl", 24))},
                "columns": {"text": "note"}, "site_column": "ward", "max_length": 48, "packing": True,
            },
            "adapter": {"options": {"r": 2, "alpha": 4}},
            "local": {"steps": 1, "learning_rate": 1e-2}, "rounds": {"rounds": 1},
            "machine": {"device": "cpu"}, "secure": {"mode": "off"},
        }
    )  # fmt: skip
    run_simulation(config)
    report = merge_run(tmp_path / "run", None, None, None)
    assert report.samples == 16
    assert report.parity.relative < 1e-4


def test_a_run_whose_rows_have_moved_is_merged_on_others(place: Path) -> None:
    """The message says how; the rows need no labels."""
    moved = place / "moved.jsonl"
    for name in ("config.json", "plan.json"):
        text = (place / "run" / name).read_text()
        (place / "run" / name).write_text(text.replace("rows.jsonl", "gone.jsonl"))
    with pytest.raises(DataError, match="--rows"):
        merge_run(place / "run")
    moved.write_text("".join(json.dumps({"note": f"slow {n}"}) + "\n" for n in range(3)))
    report = merge_run(place / "run", rows=str(moved))
    assert report.passed
    assert report.samples == 3


def test_an_adapter_whose_base_has_moved_is_scored_and_asked(
    place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--model` says where it lies now; other weights are refused, and a merged model takes none."""
    path = place / "run" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["path"] = str(place / "gone")
    path.write_text(json.dumps(config))
    run, source, base = place / "run", str(place / "rows.jsonl"), str(finished / "base")
    with pytest.raises(ModelError, match="gone"):
        evaluate_file(run, source, None, as_json=False)
    scored = evaluate_file(run, source, None, as_json=False, base=base)
    assert scored == evaluate_file(finished / "run", source, None, as_json=True)
    assert "24 rows" in capsys.readouterr().out
    predict_file(run, source, place / "answers.jsonl", None, base)
    assert len((place / "answers.jsonl").read_text().splitlines()) == 24
    with pytest.raises(ModelError, match="no model is named"):
        evaluate_file(run, source, None, as_json=False, base="")
    merge_run(run, model=base)
    with pytest.raises(ConfigError, match="needs no base"):
        evaluate_file(run / "merged", source, run, as_json=False, base=base)


def test_a_merge_on_a_quantised_base_says_which_base_was_merged(tmp_path: Path) -> None:
    """Unquantised, why, and both differences."""
    report = MergeReport(
        folder=tmp_path, passed=True, reason="", base="llama", parity=Difference(1e-6, 1e-7), tolerance=1e-4,
        against_quantised=Difference(0.5, 0.04), samples=4, adapted_modules=2, changed_modules=2,
        quantisation="4bit",
    )  # fmt: skip
    said = " ".join(parity_lines(report))
    for text in ("quantised to 4bit", "unquantised checkpoint", "1.00e-06", "5.00e-01", "4.00e-02"):
        assert text in said, text
    plain = replace(report, quantisation="none", against_quantised=None)
    assert "checkpoint" not in " ".join(parity_lines(plain))


OWN_TASK = """
from wardround.training.tasks.sequence_classification import TASK as builtin


class Ours(type(builtin)):
    name = "ours"


TASK = Ours()
"""


def test_commands_find_the_task_and_the_adapter_beside_them(
    place: Path, command_line: Callable[..., object]
) -> None:
    """A run with `module:attribute` is merged, scored and asked in the folder of that module.

    Python itself does not look there, neither for these tests nor for the installed `wardround`.
    """
    assert str(place) not in sys.path
    (place / "mine.py").write_text(OWN_TASK)
    (place / "ours.py").write_text("from wardround.training.adapters.lora import ADAPTER\n")
    for name, changes in (
        ("plan.json", {"task": "mine:TASK", "adapter": "ours:ADAPTER"}),
        ("config.json", {"task": "mine:TASK", "adapter": "ours:ADAPTER"}),
    ):
        path = place / "run" / name
        values = json.loads(path.read_text())
        values["task"]["name"], values["adapter"]["method"] = changes["task"], changes["adapter"]
        path.write_text(json.dumps(values))
    for command in (
        ["merge", "run"],
        ["predict", "run", "rows.jsonl", "--output", "answers.jsonl", "--model", "base"],
        ["evaluate", "run", "rows.jsonl", "--model", "base"],
    ):  # fmt: skip
        command_line(place, *command)
