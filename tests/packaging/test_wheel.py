"""What ships is what runs: sdist → wheel → an empty environment → the user's own data and model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "privacy", "strategies", "runtime", "training", "client", "server", "simulations", "conf")

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "OMP_NUM_THREADS": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "COLUMNS": "120",
}

FOREIGN_CHECK = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
run, base = sys.argv[1:]
rows = AutoTokenizer.from_pretrained(base)(["short cough", "a long fever"], return_tensors="pt", padding=True)
found = {}
for name in ("adapter", "adapter_last"):
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(plain, f"{run}/{name}").eval()
    with torch.inference_mode():
        finite = bool(model(**rows).logits.isfinite().all())
    trained = any(bool(value.any()) for key, value in model.state_dict().items() if "lora_B" in key)
    found[name] = {"finite": finite, "trained": trained}
print("RESULT" + json.dumps({"wardround": "wardround" in sys.modules, **found}))
"""


@dataclass(frozen=True)
class Environment:
    """An environment that holds the wheel; third-party packages are borrowed from this one."""

    folder: Path

    @property
    def scripts(self) -> Path:
        """Where its commands lie."""
        return self.folder / "bin"

    def run(self, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run one of its commands; neither PYTHONPATH nor this checkout shows through."""
        keep = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "WARDROUND"))
        }
        return subprocess.run(
            [self.scripts / command[0], *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=240,
            env=keep | OFFLINE,
        )


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    """Its standard output; a failure shows both streams."""
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("dist")
    succeed(
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
            check=False,
            capture_output=True,
            text=True,
            timeout=240,
        )
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The one wheel."""
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A new environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    succeed(
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", folder],
            check=False,
            capture_output=True,
            text=True,
        )
    )
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    # A .pth file only adds folders to the path: .pth files inside them, such as the one of an
    # editable install, are not read.
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet")
    succeed(
        subprocess.run(
            [*pip, "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | OFFLINE,
        )
    )
    return Environment(folder)


def test_wheel_holds_the_rooms_and_nothing_else(wheel: Path) -> None:
    """Every tracked kind of file of every room is in the wheel under one import name; tests are not."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        notes = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
    expected = {
        f"wardround/{path.relative_to(ROOT).as_posix()}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {f"wardround/{path.name}" for path in (ROOT / "src" / "wardround").iterdir() if path.is_file()}
    assert shipped == expected
    assert {"licenses/LICENSE", "METADATA", "entry_points.txt"} <= notes
    assert any(name.startswith("wardround/conf/") and name.endswith(".yaml") for name in shipped)
    assert {"wardround/simulations/demo/heart.csv", "wardround/simulations/demo/LICENSE.heart.md"} <= shipped


def test_sdist_holds_tests_docs_and_the_tested_set(built: Path) -> None:
    """The source archive is enough to build, test and read; no link is in it."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        members = sdist.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert {"LICENSE", "CHANGELOG.md", "README.md", "Makefile", "constraints.txt", "pyproject.toml"} <= names
    assert {"tests/conftest.py", "docs/architecture.md", "src/wardround/__init__.py"} <= names


def test_the_command_runs_from_the_wheel(environment: Environment, tmp_path: Path) -> None:
    """`wardround --help` works, and it is the wheel's code and metadata that answer."""
    assert "simulate" in succeed(environment.run("wardround", "--help", cwd=tmp_path))
    code = (
        "import importlib.metadata as m, wardround as w, wardround.core.plan as p; "
        "print(w.__file__, p.__file__, m.distribution('wardround').locate_file(''), w.__version__)"
    )
    *places, version = succeed(environment.run("python", "-c", code, cwd=tmp_path)).split()
    assert len(places) == 3
    assert all(place.startswith(str(environment.folder)) for place in places), places
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version == project["version"]


def change(settings: dict[str, Any], place: str, value: object) -> None:
    """Set a dotted key that has to be there already: the test then also holds what `init` writes."""
    *outer, last = place.split(".")
    for key in outer:
        settings = settings[key]
    assert last in settings, f"{place} is not in what `wardround init` writes; there: {sorted(settings)}"
    settings[last] = value


def own_settings(rows: Path, model: Path) -> dict[str, object]:
    """What a user changes in the YAML that `init` wrote."""
    return {
        "model.path": str(model),
        "data.source.path": str(rows),
        "data.columns": {"text": "note", "label": "grade"},
        "data.labels": ["mild", "severe"],
        "data.id_column": "nr",
        "data.unit_column": "nr",
        "data.site_column": "clinic",
        "partition": {"kind": "natural", "options": {}},
        "local.batch_size": 4,
        "rounds.rounds": 2,
    }


@pytest.fixture
def own_rows(tmp_path: Path) -> Path:
    """A user's own JSONL, with column names of its own."""
    path = tmp_path / "notes.jsonl"
    words = [
        ("short cough", "mild"),
        ("a long fever", "severe"),
        ("a small ache", "mild"),
        ("sepsis", "severe"),
    ]
    lines = [
        json.dumps({"nr": str(i), "clinic": f"clinic {i % 3}", "note": f"{text} {i}", "grade": grade})
        for i, (text, grade) in enumerate(words * 12)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_study(environment: Environment, work: Path, settings: dict[str, object]) -> None:
    """`wardround init study`, then edit what it wrote as a user would."""
    work.mkdir()
    succeed(environment.run("wardround", "init", "study", cwd=work))
    (config,) = (work / "study").glob("*.yaml")
    text = config.read_text(encoding="utf-8")
    assert text.count("#") >= 10, "the YAML that init writes is meant to explain itself"
    written = yaml.safe_load(text)
    for place, value in settings.items():
        change(written, place, value)
    config.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")


@pytest.mark.slow
def test_life_outside_the_clone(
    environment: Environment, own_rows: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """From the wheel, in an empty folder: init, edit, simulate; the adapter then loads with plain PEFT."""
    work = tmp_path / "work"
    write_study(environment, work, own_settings(own_rows, tiny_bert))

    succeed(environment.run("wardround", "simulate", "--config-dir", "study", "secure.mode=off", cwd=work))

    (weights,) = [path for path in work.rglob("adapter_model.safetensors") if path.parent.name == "adapter"]
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").partition("## The result folder")[2]
    promised = re.findall(r"^\| `([\w./-]+)` \|", page.partition("\n## ")[0], flags=re.MULTILINE)
    assert len(promised) > 5
    assert not [name for name in promised if not (weights.parents[1] / name).exists()]
    check = environment.run("python", "-c", FOREIGN_CHECK, weights.parents[1], tiny_bert, cwd=tmp_path)
    result = json.loads(succeed(check).partition("RESULT")[2])
    assert result["wardround"] is False
    assert result["adapter"]["finite"]
    # The released round may be the untrained one, where no later round scored better; the last is not.
    assert result["adapter_last"] == {"finite": True, "trained": True}


def test_a_fault_is_a_message_and_an_exit_code(
    environment: Environment, own_rows: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """A wrong file, an unknown key: exit code 2, what to do, no traceback, and no half-written run.

    A wrong column, which is found once torch is there, is in tests/integration/test_commands.py.
    """
    work = tmp_path / "work"
    wrong = {"data.source.path": str(own_rows.with_name("note.jsonl"))}
    write_study(environment, work, own_settings(own_rows, tiny_bert) | wrong)
    right = f"data.source.path={own_rows}"
    for arguments, remedy in (((), "notes.jsonl"), ((right, "+rounds.round=3"), "rounds")):
        done = environment.run("wardround", "simulate", "--config-dir", "study", *arguments, cwd=work)
        assert done.returncode == 2, (done.returncode, done.stderr[-2000:])
        assert "Traceback" not in done.stderr
        assert remedy in done.stderr
    assert not (work / "runs").exists()
