"""Settings of small runs over made-up notes, runs to compare with, and the command line in this process."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from federation import Federation
from offers import COUNTS

from wardround.cli import main
from wardround.privacy.accounting import privacy_loss
from wardround.simulations import plots
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_finish() -> None:
    """What was imported lives as long as the process: no collection of garbage has to look at it again."""
    gc.freeze()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Three sites' folders, and a plan in `plan`: to be copied, and never changed."""
    federation = Federation.make(tmp_path_factory.mktemp("made"), tiny_bert, COUNTS)
    federation.plan("plan")
    return federation


@pytest.fixture
def federation(made: Federation, tmp_path: Path) -> Federation:
    """A copy of `made`, or of what a file makes in its place, that a test may spoil."""
    return made.copied(tmp_path / "practice")


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """What a command does to its process is undone: a process of its own would have taken it along."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    level, handlers, modules = root.level, list(root.handlers), set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", list(sys.argv))
        environment = dict(os.environ)
        try:
            yield
        finally:
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
            root.setLevel(level)
            for handler in [handler for handler in root.handlers if handler not in handlers]:
                root.removeHandler(handler)
                handler.close()
            root.handlers[:] = handlers
            torch.set_num_threads(threads)
            here = str(Path.cwd())
            for name in set(sys.modules) - modules:  # a researcher's own, which the next folder has as well
                if (getattr(sys.modules[name], "__file__", None) or "").startswith(here):
                    del sys.modules[name]


@pytest.fixture(scope="session")
def command_line() -> CommandLine:
    """Runs `wardround ARGUMENTS` in a folder, through the entry point of the installed command.

    In this process: another one would first import torch, which takes most of its time. Where the process
    itself is what a test looks at (it is killed, it gets a signal), the test starts one.
    """

    def run(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(folder), put_back(), contextlib.redirect_stdout(out), (
            contextlib.redirect_stderr(err)
        ):  # fmt: skip
            try:
                main(list(arguments))
                found: object = 0
            except SystemExit as ended:
                found = 0 if ended.code is None else ended.code
        assert found == code, out.getvalue() + err.getvalue()
        return subprocess.CompletedProcess(["wardround", *arguments], code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def undisturbed_runs() -> dict[str, SimulationResult]:
    """What `undisturbed` has run so far."""
    return {}


@pytest.fixture
def undisturbed(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    undisturbed_runs: dict[str, SimulationResult],
) -> Callable[[RunConfig], SimulationResult]:
    """The run that others are compared with: once a session for equal settings over equal rows.

    Its folder is everybody's: to be read or copied, never written to. While a test has replaced parts of
    the program it runs its own.
    """

    def run(config: RunConfig) -> SimulationResult:
        plain = config.model_copy(update={"output": ""}).model_dump_json().replace(str(tmp_path), "")
        rows = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl"))))
        key = plain + rows.hexdigest()
        if key not in undisturbed_runs:
            output = tmp_path_factory.mktemp("undisturbed") / "run"
            undisturbed_runs[key] = run_simulation(config.model_copy(update={"output": str(output)}))
        return undisturbed_runs[key]

    return run


@pytest.fixture
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture of a run's curves, which takes as long to draw as such a run trains."""
    monkeypatch.setattr(plots, "plot_run", lambda *_args, **_options: None)


@pytest.fixture(scope="module", autouse=True)
def coarse_losses() -> Iterator[None]:
    """ε by privacy losses over a coarser grid, which takes a tenth of the time: an upper bound over any.

    How tight it is stands in tests/reference and tests/unit/privacy.
    """
    privacy_loss._composed.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(privacy_loss, "FINEST", 10 * privacy_loss.FINEST)
        patch.setattr(privacy_loss, "_CELLS", 2**13)
        yield
    privacy_loss._composed.cache_clear()


@pytest.fixture
def without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for on disk: no machine goes down in these tests."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def notes(
    tmp_path: Path, tiny_bert: Path, without_curves: None, without_syncs: None
) -> Callable[..., Callable[..., RunConfig]]:
    """Write so many rows of so many wards `w0`, `w1`, …; gives what makes configurations of them by name.

    Further keyword arguments replace keys of `data`; those of what it gives replace keys of sections.
    """

    def write(rows: int, wards: int, rounds: int, **data: Any) -> Callable[..., RunConfig]:
        with (tmp_path / "rows.jsonl").open("w") as file:
            for number in range(rows):
                note = f"{'slow' if number % 2 else 'sharp'} {number}"
                ward = f"w{number % (2 * wards) // 2}"
                row = {
                    "note": note,
                    "kind": str(number % 2),
                    "ward": ward,
                    "patient": f"p{number // 2}",
                }
                file.write(json.dumps(row) + "\n")

        def make(name: str, **sections: Any) -> RunConfig:
            base: dict[str, Any] = {
                "name": "notes", "output": str(tmp_path / name), "model": {"path": str(tiny_bert)},
                "task": {"name": "sequence_classification"},
                "data": {
                    "source": {"path": str(tmp_path / "rows.jsonl")},
                    "columns": {"text": "note", "label": "kind"}, "site_column": "ward", "max_length": 32,
                    "validation_fraction": 0.3, **data,
                },
                "adapter": {"options": {"r": 2, "alpha": 4}},
                "local": {"steps": 2, "batch_size": 4, "learning_rate": 1e-2}, "rounds": {"rounds": rounds},
                "machine": {"device": "cpu", "threads": 1}, "secure": {"mode": "off"},
            }  # fmt: skip
            for key, value in sections.items():
                base[key] = {**base.get(key, {}), **value}
            return RunConfig.parse(base)

        return make

    return write
