"""The repository keeps its own promises: links, wheel map, docstrings, imports, suppressions."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
ROOMS = ("core", "privacy", "strategies", "runtime", "training", "client", "server", "simulations")
TORCH_FREE = ("core", "privacy", "strategies", "runtime", "server")
FRAMEWORK_FREE = ("core", "privacy", "strategies")


def sources(*folders: str) -> list[Path]:
    """Python files of these top-level folders."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, folders
    return found


def package_files() -> list[Path]:
    """Every module that the wheel ships."""
    return [*sources(*ROOMS, "conf"), *sorted((ROOT / "src" / "wardround").glob("*.py"))]


def module_name(path: Path) -> str:
    """`core/metrics/__init__.py` → `wardround.core.metrics`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("wardround", *(part for part in parts if part != "__init__")))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, away from the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd="/", timeout=120
    )


def test_links_and_wheel_map_agree() -> None:
    """Each room has one relative link under the import root, and the wheel maps the same folders."""
    import_root = ROOT / "src" / "wardround"
    links = {path.name: str(path.readlink()) for path in import_root.iterdir() if path.is_symlink()}
    assert links == {name: f"../../{name}" for name in (*ROOMS, "conf")}
    mapped = {key: value for key, value in WHEEL["sources"].items() if key != "src/wardround"}
    assert mapped == {name: f"wardround/{name}" for name in links}
    files = {f"src/wardround/{path.name}" for path in import_root.iterdir() if path.is_file()}
    assert set(WHEEL["only-include"]) == files | set(links)


def test_every_folder_with_code_is_a_room() -> None:
    """A new top-level folder with Python in it has to be placed: in the wheel, or beside it."""
    beside = {"src", "tests", "docs", "benchmarks"}
    ignored = {"build", "dist", "runs", "outputs", "multirun"}
    with_code = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any(path.rglob("*.py"))
    }
    assert with_code - beside - ignored == {*ROOMS, "conf"}


@pytest.mark.parametrize("path", package_files(), ids=module_name)
def test_every_module_says_what_it_is(path: Path) -> None:
    """A module opens with a sentence about itself."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, f"{path.name} has no docstring"
    assert len(text.split()) >= 3, f"{path.name} says only {text!r}"


def test_no_module_is_too_long() -> None:
    """A module over 400 lines is two ideas."""
    lengths = {
        module_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in package_files()
    }
    assert not {name: lines for name, lines in lengths.items() if lines > 400}


def test_no_runtime_file_is_named_like_a_test() -> None:
    """Flower drops test_*.py and *_test.py from an app bundle."""
    assert not [p for p in package_files() if p.stem.startswith("test_") or p.stem.endswith("_test")]


def test_no_vague_module_names() -> None:
    """A module is named by what it holds."""
    vague = {"utils", "util", "helper", "helpers", "manager", "common", "misc"}
    assert not [path for path in package_files() if vague & set(path.stem.split("_"))]


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of a file's comments."""
    reader = io.StringIO(path.read_text(encoding="utf-8")).readline
    for token in tokenize.generate_tokens(reader):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_every_suppression_carries_its_code_and_its_reason() -> None:
    """`noqa` and `type: ignore` name a rule, and the same line says why."""
    argued = re.compile(
        r"#\s*(?:type: ignore\[[\w,\s-]+\]|noqa: [A-Z]+\d+(?:,\s*[A-Z]+\d+)*)\s*(?:-|#|—|:)\s*\S+.*\s\S+"
    )
    bare = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in [*package_files(), *sources("tests", "benchmarks")]
        for line, text in comments(path)
        if re.search(r"#\s*(noqa|type:\s*ignore)", text) and not argued.search(text)
    ]
    assert not bare


def forbidden_in_room(room: str, modules: tuple[str, ...]) -> str:
    """Import every module of a room in a fresh interpreter; the names that came along and should not."""
    names = [module_name(path) for path in sources(room)]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(' '.join(m for m in {modules!r} if m in sys.modules))"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("room", TORCH_FREE)
def test_room_imports_without_torch(room: str) -> None:
    """A consortium's server starts and runs rounds where torch is not installed."""
    assert forbidden_in_room(room, ("torch", "transformers", "peft", "datasets")) == ""


@pytest.mark.parametrize("room", FRAMEWORK_FREE)
def test_functional_core_knows_no_framework(room: str) -> None:
    """Values, privacy and strategies run on NumPy and pydantic alone."""
    assert forbidden_in_room(room, ("flwr", "hydra", "omegaconf", "ray")) == ""


def test_help_is_quick_to_import() -> None:
    """`wardround --help` loads neither torch nor Flower nor Hydra nor gRPC."""
    done = run_python(
        "import sys\nfrom wardround.cli import main\nsys.argv = ['wardround', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('LOADED', [m for m in ('torch', 'transformers', 'flwr', 'hydra', 'grpc') if m in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout, done.stdout[-300:]


def imported_roots(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def declared(*extras: str) -> set[str]:
    """Distributions that the base install and these extras ask for by name."""
    project = PROJECT["project"]
    lines = project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@pytest.mark.parametrize(
    ("rooms", "extras"),
    [
        (("core", "privacy", "strategies", "server"), ()),
        (ROOMS, ("training", "simulation", "ray", "quantised", "tune", "demo")),
    ],
    ids=["torch-free rooms need the base install", "all rooms"],
)
def test_every_import_is_a_declared_dependency(rooms: tuple[str, ...], extras: tuple[str, ...]) -> None:
    """Nothing works only because another package happens to bring it along."""
    owners = importlib.metadata.packages_distributions()
    known = declared(*extras)
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(*rooms)
        for name in imported_roots(path) - sys.stdlib_module_names - {"wardround"}
        if not known & {canonicalize_name(owner) for owner in owners.get(name, [])}
    }
    assert not undeclared


def test_constraints_pin_every_declared_dependency() -> None:
    """The tested set covers what pyproject.toml asks for, and each pin lies in its range."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.!]+", line), line
            name, version = line.split("==")
            pins[name] = version
    project = PROJECT["project"]
    lines = project["dependencies"] + [
        line for wanted in project["optional-dependencies"].values() for line in wanted
    ]
    for line in lines:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name != "wardround":
            assert name in pins, f"constraints.txt does not pin {name}"
            assert requirement.specifier.contains(pins[name]), (line, pins[name])


def make_dry(*arguments: str) -> str:
    """What make would do from nothing, whatever the make was told that runs these tests."""
    ours = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "PYTEST_ARGS", "SYSTEM_TORCH", "PYTHON"}
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--always-make", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name not in ours},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("target", "ends_with"),
    [
        ("demo", "wardround demo"),
        ("test", "-m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'"),
    ],
)
def test_make_sets_everything_up(target: str, ends_with: str) -> None:
    """One command makes the environment, installs the tested set and does the thing."""
    lines = make_dry(target).splitlines()
    assert any("-m venv" in line for line in lines)
    assert any("pip install -c .venv/constraints.txt -e" in line for line in lines)
    assert lines[-1].strip().endswith(ends_with), lines[-1]


def test_make_leaves_the_package_index_to_pip() -> None:
    """Neither the Makefile nor CI names an index: pip's own settings decide."""
    recipes = make_dry("demo") + (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "index-url" not in recipes
    assert "://" not in recipes


def test_make_reuses_an_installed_torch_when_told_to() -> None:
    """SYSTEM_TORCH lets the environment see the interpreter's packages and drops the pin on torch alone."""
    plain, told = make_dry("demo"), make_dry("demo", "SYSTEM_TORCH=1")
    assert "--system-site-packages" not in plain
    assert "--system-site-packages" in told
    edit = re.search(r"sed '(.*)' constraints", told)
    assert edit is not None
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = subprocess.run(
        ["sed", edit[1], ROOT / "constraints.txt"], check=True, capture_output=True, text=True
    ).stdout
    assert [line for line in pins if line not in kept.splitlines()] == [
        line for line in pins if line.startswith("torch==")
    ]


def test_ci_runs_what_a_person_runs() -> None:
    """`.ci/run` is executable and calls the same targets."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    steps = re.findall(
        r"^\s*step \w+ \"\$\w+_S\" (make [\w-]+)$", script.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert steps == ["make test", "make check", "make demo", "make test-slow"]
