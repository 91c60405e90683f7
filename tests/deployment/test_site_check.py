"""`wardround site check` against a real server: all is well, and nothing of it is left on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federation import Federation, server_process, submitted

from wardround.client.doctor.findings import CHECKS
from wardround.client.history.history import FOLDER, verify
from wardround.core.privacy_rules import PrivacyRules
from wardround.runtime.signed_requests import ROUTES

# tests/integration/site_check has one whole check as well, against a server in the test's process.
pytestmark = pytest.mark.slow

SITES = {"aachen": 24, "basel": 24, "cork": 24}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[Federation]:
    """Three sites with ledgers, and a server in a process of its own that runs."""
    made = Federation.make(tmp_path_factory.mktemp("f"), tiny_bert, SITES)
    made.give_ledgers(dict.fromkeys(SITES, 20.0), delta=1e-3, allow_release=True)
    with server_process(made.practice.server, made.practice.folder / "server.txt"):
        # Its socket is there once it serves: a plan that is taken says so.
        submitted(made.practice.server, made.plan("first", rounds={"rounds": 1}))
        yield made


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file, its mode and what is in it; but for the history, which has each question to the server."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
        if FOLDER not in path.relative_to(folder).parts
    }


def questions(site: Path) -> list[str]:
    """What the history says was asked, in order."""
    return [row.left.note for row in verify(site / FOLDER).sent] if (site / FOLDER).exists() else []


def checked(site: Path, *more: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Exit code, findings by check, and all that was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "wardround.cli", "site", "check", "--folder", str(site), "--json", *more],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    return done.returncode, {line["check"]: line for line in found["checks"]}, done.stdout + done.stderr


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
def test_all_is_well_and_nothing_is_left_behind(federation: Federation, private: bool) -> None:
    """Every check is there and none fails, with a dry step of the plan's kind.

    The folder is as it was, and no row, id or file of rows is in what is printed.
    """
    sections: dict[str, Any] = {}
    if private:
        rules = PrivacyRules(unit="patient", sigma=1.0, delta=1e-3)
        sections = {
            "privacy": rules.model_dump(), "strategy": {"weighting": "uniform"},
            "local": {"steps": 2, "batch_size": 4, "max_grad_norm": None},
        }  # fmt: skip
    plan = federation.plan(f"private-{private}", units=(8, 12), **sections)
    site = federation.practice.sites["aachen"].path
    before, asked = contents(site), questions(site)
    code, found, printed = checked(site, "--plan", str(plan))
    assert contents(site) == before
    assert {note.partition("/probe")[0] for note in questions(site)[len(asked) :]} == {
        ROUTES,
        f"{ROUTES}/about",
    }
    wrong = {name: line for name, line in found.items() if line["status"] == "fails"}
    assert (code, wrong) == (0, {})
    assert list(found) == list(CHECKS)
    assert found["dry step"]["status"] == "passes"
    assert ("clipped and noised" in found["dry step"]["found"]) is private
    assert "of 16 tokens" in found["dry step"]["found"]
    for secret in ("case 1", "aachen1", "aachen.jsonl"):
        assert secret not in printed
