"""A skip for want of WARDROUND_DATA is said in the last line without it, and a failure with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

TESTS = """
import pytest

def test_on_the_larger_sets(shared_data):
    assert shared_data.is_dir()

def test_that_gives_up():
    pytest.skip("no rows in WARDROUND_DATA")

def test_skipped_for_another_reason():
    pytest.skip("no accelerator here")

def test_that_needs_nothing():
    pass
"""

MODULE = """
import pytest

pytest.skip("the whole module wants WARDROUND_DATA", allow_module_level=True)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A little test suite under this project's conftest."""
    folder = tmp_path / "suite"
    folder.mkdir()
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_some.py").write_text(TESTS, encoding="utf-8")
    (folder / "test_whole_module.py").write_text(MODULE, encoding="utf-8")
    return folder


def run_suite(suite: Path, data: Path | None, *arguments: str) -> tuple[int, list[str]]:
    """Exit status and output lines of pytest over that suite."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "WARDROUND_DATA"))
    }
    kept["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # those of other packages take seconds to import
    if data is not None:
        kept["WARDROUND_DATA"] = str(data)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "xdist",
            "--rootdir",
            suite,
            *arguments,
            suite,
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=suite,
        env=kept,
        timeout=120,
    )
    return done.returncode, done.stdout.strip().splitlines()


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_without_the_data_the_last_line_says_what_was_not_tested(
    suite: Path, workers: tuple[str, ...]
) -> None:
    """Two tests and one module are named by count and file; other skips are not."""
    status, lines = run_suite(suite, None, *workers)
    assert status == 0, lines
    assert lines[-1].startswith("not tested, because WARDROUND_DATA is not set: 3 ")
    assert "test_some.py" in lines[-1]
    assert "test_whole_module.py" in lines[-1]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_with_the_data_a_skip_for_its_sake_is_a_failure(
    suite: Path, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    """The test and the module that give up fail; a skip for another reason stays one."""
    for name in ("data", "models"):
        (tmp_path / "folder" / name).mkdir(parents=True)
    status, lines = run_suite(suite, tmp_path / "folder", "--continue-on-collection-errors", *workers)
    assert status != 0
    assert "1 failed, 2 passed, 1 skipped, 1 error" in lines[-1], lines


def test_a_folder_without_the_layout_is_a_failure(suite: Path, tmp_path: Path) -> None:
    """A wrong WARDROUND_DATA never passes for a missing one."""
    (tmp_path / "empty").mkdir()
    status, lines = run_suite(suite, tmp_path / "empty", "-k", "larger", "--continue-on-collection-errors")
    assert status != 0
    assert any("docs/data.md" in line for line in lines), lines
