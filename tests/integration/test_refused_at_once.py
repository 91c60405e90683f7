"""What can be refused without torch is refused before it is imported: no command keeps a person waiting."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "flwr", "datasets", "pyarrow", "matplotlib")

# One process for all: each line that it writes is a command's exit code and what it has imported by then.
EACH = """
import contextlib, io, json, sys
from wardround.cli import main
ended = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(arguments)
            code = 0
        except SystemExit as end:
            code = end.code or 0
    ended.append((code, said.getvalue(), [name for name in json.loads(sys.argv[2]) if name in sys.modules]))
print(json.dumps(ended))
"""

OWN = ("data=own", "model=own", "model.path=org/model", "data.source={path: rows.jsonl}")

COMMANDS: dict[str, tuple[list[str], int, str]] = {
    "help": (["--help"], 0, "merge"),
    "help of simulate": (["simulate", "--help"], 0, "Config"),
    "a configuration shown": (["simulate", *OWN, "--cfg", "job"], 0, "learning_rate"),
    "a starter": (["init", "study"], 0, "wardround.yaml"),
    "a starter again": (["init", "study"], 2, "there already"),
    "an open setting": (["simulate", "--config-dir", "study"], 2, "still to be filled in"),
    "an unknown setting": (["simulate", *OWN, "rounds.round=3"], 2, "did you mean 'rounds'"),
    "an unknown strategy": (["simulate", *OWN, "strategy.name=fedavgg"], 2, "did you mean 'fedavg'"),
    "an option of the strategy": (["simulate", *OWN, "strategy=fedprox", "strategy.options.muu=1"], 2, "muu"),
    "an unknown task": (["simulate", *OWN, "task.name=causal_ml"], 2, "did you mean 'causal_lm'"),
    "an unknown adapter": (["simulate", *OWN, "adapter.method=lorra"], 2, "did you mean 'lora'"),
    "an unknown partition": (["simulate", *OWN, "partition.kind=iidd"], 2, "did you mean 'iid'"),
    "a setting without effect": (["simulate", *OWN, "local.momentum=0.5"], 2, "local.momentum has no effect"),
    "absent rows": (["simulate", *OWN, "data.source.path=row.jsonl"], 2, "did you mean 'rows.jsonl'"),
    "a test source": (["simulate", *OWN, "data.test={path: gone.jsonl}"], 2, "gone.jsonl does not exist"),
    "a site's rows": (
        ["simulate", *OWN, "data.source=null", "data.sites={a: {path: gone.jsonl}}"], 2, "gone.jsonl",
    ),
    "an absent model": (["simulate", *OWN, "model.path=./gone"], 2, "base model './gone' is not there"),
    "a folder that is taken": (["simulate", *OWN, "output=taken"], 2, "taken is not empty"),
    "a run that is not there": (["simulate", "resume=gone"], 2, "no run to resume in gone"),
    "the demo's folder": (["demo", "--output", "taken"], 2, "that the demo did not make"),
    "no run to merge": (["merge", "gone"], 2, "gone is not the folder of a run"),
    "no tolerance": (["merge", "gone", "--tolerance", "nan"], 2, "--tolerance is nan"),
    "no model to score": (["evaluate", "gone", "rows.jsonl"], 2, "no folder gone"),
    "no run beside it": (["evaluate", "taken", "rows.jsonl"], 2, "is not beside it"),
    "answers over rows": (["predict", "gone", "rows.jsonl", "--output", "rows.jsonl"], 2, "there already"),
    "a column without a role": (["data", "check", "rows.jsonl", "--column", "note"], 2, "role and a column"),
    "no rows to check": (["data", "check", "gone.jsonl", "--text", "a", "--tokenizer", "x"], 2, "gone.jsonl"),
    "no such format": (["data", "check", "rows.jsonl", "--format", "alpacca"], 2, "did you mean 'alpaca'"),
    "rows to check": (["data", "check", "rows.jsonl", "--label", "kind", "--json"], 0, "rows"),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Every command's exit code, what it said, and the heavy packages that were imported by its end."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "rows.jsonl").write_text('{"note": "slow", "kind": "0"}\n', encoding="utf-8")
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("mine", encoding="utf-8")
    arguments = json.dumps([command for command, _code, _said in COMMANDS.values()])
    done = subprocess.run(
        [sys.executable, "-c", EACH, arguments, json.dumps(HEAVY)],
        cwd=folder, capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["rows.jsonl", "study", "taken"]
    assert (folder / "taken" / "thesis.txt").read_text(encoding="utf-8") == "mine"
    return dict(zip(COMMANDS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_told_before_torch_is_imported(ended: dict[str, tuple[int, str, list[str]]], name: str) -> None:
    """The right message and exit code; up to it in the list, no command has imported anything heavy."""
    _command, code, text = COMMANDS[name]
    found, said, imported = ended[name]
    assert imported == []
    assert text in " ".join(said.split()), said
    assert found == code
    assert "Traceback" not in said
