"""What README and docs say is there: commands, files, functions, settings; their examples run."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from wardround.client.policy import PlanPolicy
from wardround.core.checked import known_keys
from wardround.core.plan import LocalWork, ReleaseRule, RoundRules, Schedule, SecureRules, StrategySpec
from wardround.core.registry import Registry
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.simulations.config import BoundsConfig, RunConfig, SimulationConfig
from wardround.simulations.virtual.settings import Realism
from wardround.training.plan_config import DataConfig, EncodingConfig
from wardround.training.workbench import Machine

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
PLACES = (
    *("core", "privacy", "strategies", "runtime", "training", "client", "server", "simulations"),
    *("conf", "tests", "benchmarks", "src"),
)


def in_fresh_interpreter(code: str, *, path: Path | None = None) -> str:
    """Output of a program in a new interpreter, away from the checkout."""
    environment = os.environ | {"PYTHONPATH": str(path)} if path else dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=path or "/",
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # bitsandbytes' notice of an optional kernel, where PEFT is imported through us and it is installed.
    assert "gemm_4bit_forward" not in done.stderr
    return done.stdout


def test_make_targets_that_pages_show_exist() -> None:
    """Every `make TARGET` in a page is in the Makefile, and the three that matter are shown."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    asked = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", "\n".join(TEXT.values()), flags=re.MULTILINE))
    assert asked >= {"demo", "test", "check"}
    assert asked <= targets, asked - targets


def test_commands_that_pages_show_exist() -> None:
    """Every `wardround COMMAND` in a page is one; README and docs/cli.md show every command."""
    shown = in_fresh_interpreter(
        "import sys; sys.argv = ['wardround', '--help']\nfrom wardround.cli import main\nmain()"
    )
    pattern = re.compile(r"(?:^|`)wardround ([a-z]+)", flags=re.MULTILINE)
    for name in set(pattern.findall("\n".join(TEXT.values()))):
        assert re.search(rf"^\W*{name}\b", shown, flags=re.MULTILINE), name
    commands = set(re.findall(r"^│ ([a-z]+) ", shown, flags=re.MULTILINE))
    for page in (ROOT / "README.md", ROOT / "docs" / "cli.md"):
        assert commands <= set(pattern.findall(TEXT[page])), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A relative link names a file or folder of this repository, and its anchor a heading there."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", TEXT[page]):
        if "://" in target:
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
            assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_functions_that_pages_name_exist(page: Path) -> None:
    """`room/file.py` and `room/` are there, and so is `name` in `room/file.py:name`."""
    named = re.compile(rf"`((?:{'|'.join(PLACES)})/[\w./-]*)(?::([\w.]+))?`")
    for file, name in named.findall(TEXT[page]):
        path = ROOT / file
        assert path.exists(), file
        if name:
            defined = rf"^\s*(?:def|class) {re.escape(name)}\b|^{re.escape(name)}\b"
            assert re.search(defined, path.read_text(encoding="utf-8"), flags=re.MULTILINE), f"{file}:{name}"


def test_every_test_that_the_threat_model_names_exists() -> None:
    """And it names one in every line of its tables."""
    page = TEXT[ROOT / "docs" / "threat-model.md"]
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", source, flags=re.MULTILINE))
    rows = [line for line in page.splitlines() if line.startswith("| ") and "| shown by |" not in line]
    assert len(rows) > 20
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, row
        assert named <= defined, named - defined


def test_the_tour_names_every_stop() -> None:
    """The tour passes through the round loop, the handler, local training, the ring and the journal."""
    tour = TEXT[ROOT / "docs" / "round-tour.md"]
    stops = re.findall(r"^\| (\d+) \| `([\w/]+\.py):", tour, flags=re.MULTILINE)
    assert [int(number) for number, _ in stops] == list(range(1, len(stops) + 1))
    assert {file for _, file in stops} >= {
        *("server/one_round.py", "core/messages.py", "client/round.py", "training/local_round.py"),
        *("privacy/quantisation.py", "privacy/sums/phased.py", "server/exchange.py", "server/journal.py"),
    }


SETTINGS = {
    f"{section}.{key}".lstrip("."): section
    for section, keys in known_keys(RunConfig).items()
    for key in keys
    if not section.startswith(("data.test", "data.sites", "data.site_tests"))
}
"""Dotted key of the configuration → its section. Every source has the keys of `data.source`."""


def explained_settings() -> dict[str, str]:
    """Dotted key in docs/configuration.md → the default that the page gives."""
    page = TEXT[ROOT / "docs" / "configuration.md"]
    return dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", page, flags=re.MULTILINE))


def test_every_setting_is_explained() -> None:
    """docs/configuration.md has every key of the configuration, and none that is not there."""
    sections = set(SETTINGS.values())
    keys = {name for name in SETTINGS if name not in sections} | {"data.source", "data.template"}
    assert set(explained_settings()) == keys


@pytest.mark.parametrize(
    ("section", "model"),
    [
        *(("local", LocalWork), ("local.schedule", Schedule), ("rounds", RoundRules), ("machine", Machine)),
        *(
            ("release", ReleaseRule),
            ("encoding", EncodingConfig),
            ("secure", SecureRules),
            ("secure.policy", SecurePolicy),
            ("strategy", StrategySpec),
        ),
        *(("simulation", SimulationConfig), ("data", DataConfig), ("bounds", BoundsConfig)),
        ("simulation.realism", Realism),
    ],
)
def test_the_defaults_of_the_page_are_those_of_the_code(section: str, model: type[BaseModel]) -> None:
    """Where the page gives a plain default, it is the one that the code has."""
    page = explained_settings()
    seen = 0
    for key, field in model.model_fields.items():
        said = page.get(f"{section}.{key}", "")
        if re.fullmatch(r"[\d.e-]+|true|false|[a-z0-9]+|–", said) and said != "none":
            seen += 1
            wanted = "–" if field.is_required() else field.default
            assert wanted == (yaml.safe_load(said) if said != "1e-8" else 1e-8), (key, said, wanted)
        elif said == "none":
            assert field.default is None, key
    assert seen


def test_every_rule_of_a_sites_policy_is_explained() -> None:
    """docs/site-policy.md has each with its default, and none that there is not."""
    page = TEXT[ROOT / "docs" / "site-policy.md"]
    said = dict(re.findall(r"^\| `plans\.(\w+)` \| (.*?) \|", page, flags=re.MULTILINE))
    assert set(said) == set(PlanPolicy.model_fields)
    plain = {name: None if text == "none" else yaml.safe_load(text) for name, text in said.items()}
    plain["privacy"] = said["privacy"]  # there the word is the value
    assert PlanPolicy.model_validate(plain) == PlanPolicy()


def example(page: str, file: str) -> str:
    """A code block that a page marks with `file=NAME`."""
    found = re.findall(
        rf"```\w+ file={re.escape(file)}\n(.*?)```", TEXT[ROOT / "docs" / page], flags=re.DOTALL
    )
    assert len(found) == 1, f"{page} has {len(found)} blocks for {file}"
    return str(found[0])


def installed_example(folder: Path, *files: str) -> Path:
    """Lay the examples of docs/extending.md out as an installed package with its entry points."""
    for file in files:
        (folder / file).write_text(example("extending.md", file), encoding="utf-8")
    return folder


SEAMS = re.findall(
    r"^\| [\w ]+ \| `([\w/]+)/` \| `([A-Z]+)` \| .+ \| `([\w.]+)` \|$",
    TEXT[ROOT / "docs" / "extending.md"],
    flags=re.MULTILINE,
)


def test_every_seam_is_in_the_table() -> None:
    """docs/extending.md lists every folder that has a registry."""
    with_registry = {
        path.parent.relative_to(ROOT).as_posix()
        for place in PLACES
        for path in (ROOT / place).rglob("__init__.py")
        if "Registry(" in path.read_text(encoding="utf-8") and "src" not in path.relative_to(ROOT).parts
    }
    assert {folder for folder, _, _ in SEAMS} == with_registry


@pytest.mark.parametrize(("folder", "attribute", "group"), SEAMS)
def test_a_seam_is_as_the_table_says(folder: str, attribute: str, group: str) -> None:
    """The registry of a folder looks for the attribute and the entry point group of the table."""
    package = importlib.import_module(f"wardround.{folder.replace('/', '.')}")
    (registry,) = [value for value in vars(package).values() if isinstance(value, Registry)]
    assert (registry.package, registry.attribute, registry.group) == (package.__name__, attribute, group)
    assert registry.names()


def test_the_source_of_the_docs_plugs_in_by_entry_point(tmp_path: Path) -> None:
    """The source in docs/extending.md is found by its entry point and reads rows and broken rows."""
    folder = installed_example(tmp_path, "ward_lists.py")
    points = example("extending.md", "pyproject.toml").partition(
        '[project.entry-points."wardround.sources"]'
    )[2]
    name, value = (part.strip().strip('"') for part in points.strip().split("="))
    info = folder / "ward_lists-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ward-lists\nVersion: 1.0\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(f"[wardround.sources]\n{name} = {value}\n", encoding="utf-8")
    (folder / "rows.ward").write_text("mild | short cough\nno bar here\nsevere | sepsis\n", encoding="utf-8")
    code = (
        "from pathlib import Path\n"
        "from wardround.training.source_spec import SourceSpec, open_source\n"
        "for row in open_source(SourceSpec(path='rows.ward')):\n"
        "    print(row.number, getattr(row, 'reason', None) or row.values['label'])\n"
    )
    assert in_fresh_interpreter(code, path=folder).splitlines() == ["1 mild", "2 no_bar", "3 severe"]


def test_the_strategy_of_the_docs_works_by_dotted_path(tmp_path: Path) -> None:
    """The strategy in docs/extending.md is taken by its path where that is allowed, and folds."""
    folder = installed_example(tmp_path, "cautious.py")
    code = """
import numpy as np
from wardround.core.errors import ConfigError
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.core.checked import parse_options
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import LocalUpdate, SiteMemory

layout = Layout(tensors=(TensorSpec(name="w", shape=(2,)),))
found = STRATEGIES.get("cautious:STRATEGY", allow_dotted=True)
strategy = found(parse_options(found.Options, {"step": 0.5}, "options"), layout)
state = strategy.begin(Packed(layout, np.zeros(2, np.float32)))
broadcast = strategy.broadcast(state, 1, 0)
total, weights = np.zeros(2), (1, 3)
for weight, end in zip(weights, ([4.0, 0.0], [0.0, 4.0])):
    after = Packed(layout, np.array(end, np.float32))
    statistics, _ = strategy.contribute(broadcast, LocalUpdate(state.adapter, after), SiteMemory(), 1, 0)
    total += weight * statistics.vector
state = strategy.fold(state, Packed(layout, total), float(sum(weights)), 0)
print(state.round, state.adapter.vector.tolist())
try:
    STRATEGIES.get("cautious:STRATEGY")
except ConfigError:
    print("refused where not allowed")
"""
    shown = in_fresh_interpreter(code, path=folder).splitlines()
    assert shown == ["1 [0.5, 1.5]", "refused where not allowed"]


def test_the_simulation_of_the_page_runs(tmp_path: Path, tiny_bert: Path) -> None:
    """The run in docs/python-api.md ends with a released round, an accuracy and an adapter.

    Importing all that it takes says nothing of bitsandbytes.
    """
    (tmp_path / "base-model").symlink_to(tiny_bert)
    words = [
        ("short cough", "mild"),
        ("a long fever", "severe"),
        ("a small ache", "mild"),
        ("sepsis", "severe"),
    ]
    for name, rows in (("notes.jsonl", words * 6), ("test.jsonl", words)):
        lines = [
            json.dumps({"note": f"{text} {i}", "grade": grade, "clinic": f"clinic {i // 2 % 2}"})
            for i, (text, grade) in enumerate(rows)
        ]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    shown = in_fresh_interpreter(example("python-api.md", "run.py"), path=tmp_path).strip().splitlines()[-1]
    assert re.fullmatch(r"[012] (0|1|0\.\d+|1\.0)", shown), shown
    assert (tmp_path / "runs" / "study" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_fold_by_hand_prints_what_the_page_says(tmp_path: Path) -> None:
    """The example in docs/python-api.md runs, and its last comment is its output."""
    code = example("python-api.md", "fold_by_hand.py")
    said = code.strip().splitlines()[-1].partition("# ")[2]
    assert said
    assert in_fresh_interpreter(code, path=tmp_path).strip() == said
