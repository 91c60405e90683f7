"""The commands as a person runs them, on one finished run; in a process of its own where that matters."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import warm

pytestmark = pytest.mark.usefixtures("without_curves")

WORDS = {"calm": "slow breath even sleep rest easy", "acute": "sharp pain fever cough sudden chills"}


@dataclass(frozen=True)
class Place:
    """A folder with rows, the settings that read them, and a finished run in `run`."""

    folder: Path
    settings: tuple[str, ...]
    run: Callable[..., subprocess.CompletedProcess[str]]

    def wardround(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command here and hold its exit code."""
        return self.run(self.folder, *arguments, code=code)

    def start(self, *arguments: str, output: str) -> BaseProcess:
        """Run a command here in a process of its own; what it says goes to a file."""
        code = "import sys; from wardround.cli import main; main(sys.argv[1:])"
        return warm.start(code, arguments, self.folder, self.folder / output)

    def digest(self, name: str) -> str:
        """Digest of the released adapter of a run."""
        summary: dict[str, Any] = json.loads((self.folder / name / "summary.json").read_text())
        return str(summary["arms"]["federated"]["released_adapter"])


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bert: Path,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
) -> Place:
    """Two wards of made-up notes and one finished run, of a process of its own."""
    folder = tmp_path_factory.mktemp("commands")
    rng = random.Random(9)
    for name, count in (("rows", 48), ("test", 12)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                kind = rng.choice(sorted(WORDS))
                note = " ".join(rng.choices(WORDS[kind].split(), k=5))
                file.write(json.dumps({"note": note, "kind": kind, "ward": f"ward_{number % 2}"}) + "\n")
    settings = (
        "data=own", "model=own", f"model.path={tiny_bert}", "data.source={path: rows.jsonl}",
        "data.test={path: test.jsonl}", "+data.columns.text=note",
        "+data.columns.label=kind", "data.site_column=ward",
        "partition.kind=natural", "data.max_length=32", "rounds.rounds=2", "local.batch_size=8",
        "local.learning_rate=0.01", "machine.threads=1", "machine.device=cpu", "release.metric=loss",
        "release.direction=min", "secure.mode=off",
    )  # fmt: skip
    made = Place(folder, settings, command_line)
    assert warm.ended(made.start("simulate", *settings, "output=run", output="run.txt")) == 0
    return made


def test_a_run_says_what_it_did_and_where(place: Place) -> None:
    """The same settings print a table, the released round and the folder, and give the same adapter."""
    said = place.wardround("simulate", *place.settings, "output=again").stdout
    assert "released: round" in said
    assert "again" in said
    assert place.digest("again") == place.digest("run")


def test_a_killed_run_resumes_to_the_same_adapter(place: Place) -> None:
    """SIGKILL after the first folded round; `resume=` goes on and ends with the same bits."""
    metrics = place.folder / "killed" / "metrics.jsonl"
    process = place.start("simulate", *place.settings, "output=killed", output="killed.txt")
    for _ in range(2400):
        if metrics.exists() and "RoundFolded" in metrics.read_text():
            break
        time.sleep(0.05)
    process.kill()
    assert warm.ended(process) == -signal.SIGKILL
    assert not (place.folder / "killed" / "summary.json").exists()
    place.wardround("simulate", "resume=killed")
    assert place.digest("killed") == place.digest("run")


def test_an_interrupted_run_ends_at_once_and_says_how_to_go_on(place: Place) -> None:
    """Ctrl-C after the first round: exit code 130 within seconds, and the command that resumes."""
    metrics = place.folder / "interrupted" / "metrics.jsonl"
    said = place.folder / "interrupted.txt"
    asked = ("output=interrupted", "rounds.rounds=40")
    process = place.start("simulate", *place.settings, *asked, output=said.name)
    for _ in range(2400):
        if metrics.exists() and "RoundFolded" in metrics.read_text():
            break
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert warm.ended(process, 60) == 130, said.read_text()
    assert "resume=interrupted" in said.read_text()
    assert "Traceback" not in said.read_text()


def test_a_sweep_gives_each_job_a_folder_of_its_own(place: Place) -> None:
    """Two seeds: two finished runs with different adapters."""
    place.wardround("simulate", *place.settings, "name=sweep", "rounds.rounds=1", "-m", "seed=0,1")
    summaries = sorted((place.folder / "runs" / "sweep").rglob("summary.json"))
    assert len(summaries) == 2
    digests = {json.loads(path.read_text())["arms"]["federated"]["released_adapter"] for path in summaries}
    assert len(digests) == 2


def test_the_configuration_is_shown_without_a_run(place: Place) -> None:
    """`--cfg job` prints YAML and stops."""
    shown = place.wardround("simulate", *place.settings, "--cfg", "job", "output=never").stdout
    assert "learning_rate: 0.01" in shown
    assert not (place.folder / "never").exists()


@pytest.mark.parametrize(
    ("setting", "proposal"),
    [
        ("+local.learning_rte=1", "learning_rate"),
        ("strategy.name=fedavgg", "fedavg"),
        ("+rounds.round=3", "rounds"),
        ("data.columns.text=nott", "note"),
    ],
)
def test_a_wrong_setting_is_a_message_and_exit_code_2(place: Place, setting: str, proposal: str) -> None:
    """The nearest known name is proposed; no traceback, no folder."""
    done = place.wardround("simulate", *place.settings, "output=wrong", setting, code=2)
    assert f"did you mean '{proposal}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place.folder / "wrong").exists()


def test_the_result_can_be_merged_scored_and_asked(place: Place) -> None:
    """Merged and adapter-on-base score alike; the merged model answers without Wardround installed."""
    assert "tolerance" in place.wardround("merge", "run", "--output", "merged").stdout
    scored = [
        json.loads(place.wardround("evaluate", model, "test.jsonl", "--run", "run", "--json").stdout)
        for model in ("run", "merged")
    ]
    assert scored[0]["support"] == scored[1]["support"]
    assert scored[0]["values"]["loss"] == pytest.approx(scored[1]["values"]["loss"], rel=1e-4)
    summary = json.loads((place.folder / "run" / "summary.json").read_text())
    told = summary["arms"]["federated"]["test"]["test"]["values"]
    assert scored[0]["values"]["loss"] == pytest.approx(told["loss"], rel=1e-4)

    place.wardround("predict", "merged", "test.jsonl", "--run", "run", "--output", "answers.jsonl")
    answers = [
        json.loads(line)["label"] for line in (place.folder / "answers.jsonl").read_text().splitlines()
    ]
    plain = (
        "import json, sys, torch\n"
        "from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T\n"
        "model, tokenizer = M.from_pretrained('merged').eval(), T.from_pretrained('merged')\n"
        "for line in open('test.jsonl'):\n"
        "    batch = tokenizer(json.loads(line)['note'], truncation=True, max_length=32,"
        " return_tensors='pt')\n"
        "    print(model.config.id2label[int(model(**batch).logits.argmax())])\n"
        "assert 'wardround' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", plain], cwd=place.folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == answers
    assert len(answers) == 12


def test_a_merged_folder_is_never_overwritten(place: Place) -> None:
    """A folder with something in it is refused."""
    (place.folder / "taken").mkdir()
    (place.folder / "taken" / "thesis.txt").write_text("mine")
    place.wardround("merge", "run", "--output", "taken", code=2)
    assert (place.folder / "taken" / "thesis.txt").read_text() == "mine"


def test_data_check_reads_the_rows(place: Place) -> None:
    """Rows and labels as JSON."""
    report = json.loads(place.wardround("data", "check", "rows.jsonl", "--label", "kind", "--json").stdout)
    assert report["rows"] == 48


def test_data_check_measures_what_a_format_reads(place: Place, tiny_llama: Path, tiny_bert: Path) -> None:
    """--format and --column: the rows as a language model would read them; what does not suit is named."""
    check = ("data", "check", "rows.jsonl", "--format", "prompt_completion", "--tokenizer")
    columns = ("--column", "prompt=note", "--column", "completion=kind", "--max-length", "4", "--json")
    report = json.loads(place.wardround(*check, str(tiny_llama), *columns).stdout)
    assert report["tokens"]["cut"] == report["rows"] == 48
    refused = place.wardround(*check, str(tiny_llama), "--column", "prompt", code=2)
    assert "--column does not name a role and a column" in refused.stderr
    unfit = place.wardround(*check, str(tiny_bert), *columns, code=2)
    assert "end" in unfit.stderr


def test_a_source_beside_the_configuration_is_found_by_its_dotted_path(place: Place) -> None:
    """`kind: module:ATTRIBUTE` in a simulation; the run is the one of the same rows from a file."""
    (place.folder / "bars.py").write_text(
        "from pathlib import Path\n"
        "from typing import Any\n"
        "import json\n"
        "from wardround.training.sources.contract import Row\n"
        "class Bars:\n"
        "    suffixes = ('.bars',)\n"
        "    def read(self, path: Any, options: Any):\n"
        "        for number, line in enumerate(Path(path).read_text().splitlines(), start=1):\n"
        "            yield Row(number, json.loads(line))\n"
        "SOURCE = Bars()\n"
    )
    (place.folder / "rows.bars").write_text((place.folder / "rows.jsonl").read_text())
    settings = [text.replace("rows.jsonl", "rows.bars, kind: 'bars:SOURCE'") for text in place.settings]
    place.wardround("simulate", *settings, "output=dotted")
    assert place.digest("dotted") == place.digest("run")
