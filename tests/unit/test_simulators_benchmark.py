"""The benchmark of simulators: its work is ours, and what it says of a run is what happened."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from wardround.core.plan import DataContract
from wardround.training.encoded_text import EncodedText
from wardround.training.tasks.causal_lm import CausalLM
from wardround.training.tasks.sequence_classification import SequenceClassification

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = ("simulators", "_simulators_case", "_simulators_environments", "_simulators_plain",
           "_simulators_running", "_simulators_table")  # fmt: skip
SENTENCES = ("The patient has chest pain.", "We measured the heart rate.", "Thirst, hunger and tiredness.")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; none runs anything by being imported."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(FOLDER)  # as for a script that is run
        yield {name: importlib.import_module(name) for name in MODULES}


def texts(*lengths: int, targets: bool = False) -> list[EncodedText]:
    """Rows of so many tokens."""
    rng = np.random.default_rng(0)
    rows = []
    for length in lengths:
        tokens = rng.integers(5, 50, length).astype(np.int32)
        under_loss = np.where(np.arange(length) < 2, -100, tokens).astype(np.int32)
        rows.append(EncodedText(tokens, under_loss if targets else np.empty(0, np.int32), label=length % 3))
    return rows


@pytest.mark.parametrize("causal", [False, True])
def test_a_minibatch_of_the_work_is_the_one_that_our_task_makes(
    scripts: dict[str, ModuleType], tmp_path: Path, causal: bool
) -> None:
    """Same tensors, whatever wrote them, from the file that peers read; the same targets under loss."""
    rows = texts(7, 3, 9, 5, targets=causal)
    scripts["_simulators_case"]._packed(rows).write(tmp_path / "rows.npz")
    read = scripts["_simulators_plain"].Rows.read(tmp_path / "rows.npz")
    order = np.array([2, 1, 3])
    task = CausalLM() if causal else SequenceClassification()
    ours = task.collate([rows[index] for index in order], DataContract(columns={}, pad_token_id=0))
    theirs = read.batch(order, 0)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_the_bare_loop_ends_where_wardround_simulate_does(
    scripts: dict[str, ModuleType], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of three sites on a tiny model: one adapter, of two programs that share no training."""
    case_module, plain = scripts["_simulators_case"], scripts["_simulators_plain"]
    settings = [
        f"model.path={tiny_bert}", "model.digest=null", "data=pqa_sections",
        "adapter.options.targets=[query,value]", "machine.threads=1",
    ]  # fmt: skip
    labels = ("background", "objective", "methods")
    rows = [
        {"id": f"{n}", "pmid": f"{n}", "label": labels[n % 3], "text": " ".join(SENTENCES[: 1 + n % 3])}
        for n in range(12)
    ]
    monkeypatch.setattr(case_module, "MODELS", {"tiny": settings})
    monkeypatch.setattr(case_module, "SETS", {"tiny": "tiny"})
    monkeypatch.setattr(case_module, "ROWS", 3)
    monkeypatch.setattr(case_module, "HELD", 3)
    monkeypatch.setattr(case_module, "_lines", lambda *_: iter([dict(row) for row in rows]))
    case = case_module.Case("tiny", 2, "ragged", 3, 2)
    work = case.write(tmp_path / "work")
    assert work.batches.shape == (2, 3, 10, 2)
    out = tmp_path / "bare"
    out.mkdir()
    plain.bare(work, out, rank=0, processes=1, bf16=False)
    assert len(scripts["_simulators_running"].marks_of(out)) == 3

    keeping = scripts["_simulators_running"].Keeping(tmp_path)
    keeping.begin()
    config = case_module.parsed([*case.settings(tmp_path / "work"), f"output={tmp_path}/run"])
    from wardround.simulations.simulate import run_simulation

    run_simulation(config)
    keeping.end()
    marks = scripts["_simulators_running"].marks_of_run(tmp_path)
    assert len(marks) == 3
    assert marks == sorted(marks)
    comparison = scripts["simulators"].Comparison(case, work)
    files = {round: out / f"adapter-{round}.safetensors" for round in (1, 2)}
    states = {round: tmp_path / f"state-{round}.safetensors" for round in (1, 2)}
    ran = scripts["_simulators_running"].Ran
    bare = comparison.line("bare", ran(3.0, 1.0, [1.0, 0.5], 1 << 20, files))
    ours = comparison.line("ours", ran(3.0, 1.0, [1.0, 0.5], 1 << 20, states))
    assert bare["apart"] == [0.0, 0.0]
    assert max(ours["apart"]) < 1e-4
    assert ours["held_out_loss"] == pytest.approx(bare["held_out_loss"], abs=1e-4)
    assert (ours["pace"], ours["pace_whole"]) == (6.0, 2.0)
    other = {name: tensor + 0.1 for name, tensor in comparison.initial.items()}
    save_file(other, tmp_path / "other.safetensors")
    files = dict.fromkeys((1, 2), tmp_path / "other.safetensors")
    assert not comparison.line("pfl", ran(3.0, 1.0, [1.0, 0.5], 1, files))["same"]


def test_a_peer_s_file_of_the_work_asks_for_nothing_of_ours() -> None:
    """It runs in environments where there is no Wardround."""
    blind = "import sys; sys.path[:0] = sys.argv[1:]; sys.modules['wardround'] = None"
    code = f"{blind}\nimport _simulators_plain"
    done = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_peers_are_no_dependencies_of_ours(scripts: dict[str, ModuleType]) -> None:
    """Neither in pyproject nor in the constraints."""
    root = FOLDER.parent
    written = (root / "pyproject.toml").read_text() + (root / "constraints.txt").read_text()
    for name, wanted in scripts["_simulators_environments"].PACKAGES.items():
        assert wanted.startswith(f"{name}==")
        assert f'"{name}' not in written
        assert f"\n{name}=" not in written


def test_peers_have_our_torch_and_otherwise_what_they_like(scripts: dict[str, ModuleType]) -> None:
    """Of our constraints those lines alone that decide how fast a model trains."""
    text = "# torch==1\nabsl-py==2.5.1\ntorch==2.13.0\nnumpy==2.4.6\ntorchvision==1\npeft==0.21.2 ; x\n"
    assert scripts["_simulators_environments"].pinned(text) == [
        "torch==2.13.0",
        "numpy==2.4.6",
        "peft==0.21.2",
    ]


def test_an_environment_is_made_once(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made anew where its packages are others, or where its making was broken off; pip's fault is told."""
    module = scripts["_simulators_environments"]
    asked: list[list[str]] = []
    code = [0]

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, code[0], "", "no such thing")

    monkeypatch.setattr(module.subprocess, "run", pip)
    monkeypatch.setattr(
        module.venv.EnvBuilder, "create", lambda _, place: place.mkdir(parents=True, exist_ok=True)
    )
    python = module.python_of("pfl", tmp_path)
    assert module.python_of("pfl", tmp_path) == python == tmp_path / "pfl" / "bin" / "python"
    assert len(asked) == 1
    assert asked[0][-6:] == ["pfl==0.6.0", *module.NEEDED]
    (tmp_path / "pfl" / module.DONE).write_text("pfl==0.5.0")
    code[0] = 1
    with pytest.raises(RuntimeError, match="no such thing"):
        module.python_of("pfl", tmp_path)


def test_memory_and_processes_of_a_contender_are_counted(scripts: dict[str, ModuleType]) -> None:
    """A child of a child as well."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=sys.stdin)"
    running = scripts["_simulators_running"]
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        for _ in range(200):
            if len(running.processes(child.pid)) == 2:
                break
            time.sleep(0.05)
        assert len(running.processes(child.pid)) == 2
        assert running.memory(os.getpid()) > 5 << 20
        with running.Sampling() as sampling:
            for _ in range(100):
                if sampling.peak_bytes:
                    break
                time.sleep(0.05)
        assert sampling.peak_bytes > 5 << 20
        assert child.stdin is not None
        child.stdin.close()


STAND_IN = """
import pathlib, subprocess, sys, time
sys.path.insert(0, {folder!r})
import _simulators_plain as plain
work, out = sys.argv[1], pathlib.Path(sys.argv[2])
subprocess.Popen(["sleep", "600"], start_new_session=True)
print("said", flush=True)
if "fails" in sys.argv:
    sys.exit(3)
plain.mark(out, plain.BEGAN)
for round in (1, 2):
    plain.keep(out, round, dict())
"""
RUNNING = """
import os, pathlib, sys, json
sys.path.insert(0, {folder!r})
from _simulators_running import Contender, Environments, processes, run
from _simulators_case import Case
here, case, said = pathlib.Path({here!r}), Case("minilm", 1, "ragged", 2, 2), []
for arguments in ((), ("fails",)):
    try:
        contender, out = Contender("It", str(here / "it.py"), arguments), here / f"out{{len(said)}}"
        ran = run(contender, case, here, out, Environments(), 60)
        small = ran.peak_bytes < 1 << 20
        said.append([len(ran.rounds_s), sorted(ran.adapters), ran.start_s < ran.whole_s, small])
    except RuntimeError as error:
        said.append(str(error))
print(json.dumps([said, len(processes(os.getpid()))]))
"""


def test_a_contender_is_run_to_its_end_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its rounds and memory; of one that fails its last words. What it began in its own session ends."""
    names = {"folder": str(FOLDER), "here": str(tmp_path)}
    (tmp_path / "it.py").write_text(STAND_IN.format(**names))
    script = tmp_path / "run.py"
    script.write_text(RUNNING.format(**names))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (ran, failed), left = json.loads(done.stdout.splitlines()[-1])
    assert ran == [2, [1, 2], True, False]
    assert "It has failed" in failed
    assert "said" in failed
    assert left == 1


def line(contender: str, pace: float, **other: Any) -> dict[str, Any]:
    """Of results."""
    return {
        "case": {"model": "minilm", "batch": 4, "lengths": "ragged", "sites": 10, "rounds": 2},
        "contender": contender, "name": contender.title(), "same": True, "pace": pace, "pace_whole": pace / 2,
        "whole_s": 10.0, "peak_mib": 500, "flops": 1e12, "held_out_loss": 1.5,
        "peak_gflops": {"float32": 200.0, "bfloat16": 1000.0}, **other,
    }  # fmt: skip


def test_the_table_has_medians_multiples_and_marks(scripts: dict[str, ModuleType]) -> None:
    """Over the faster bare loop; of several runs the median; who rounded too much is marked."""
    shown = scripts["_simulators_table"].table(
        json.loads(json.dumps([
            line("bare", 1.0), line("bare_processes", 2.0), line("ours", 2.0), line("ours", 6.0),
            line("ours", 4.0), line("bare_bf16", 3.0, same=False, held_out_loss=1.7),
        ]))
    )  # fmt: skip
    assert "**minilm, rows as long as they are**" in shown
    rows = {row.split(" | ")[1]: row for row in shown.splitlines() if row.startswith("| 4, 10 |")}
    assert rows["Ours"] == "| 4, 10 | Ours | 4.00 | 2.00 | 2.00 | 10.0 | 500 | 200 % | 40 % | 1.5000 |"
    assert "| 0.50 |" in rows["Bare"]
    assert "1.7000†" in rows["Bare_Bf16"]
