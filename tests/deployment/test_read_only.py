"""A site's folder on a disk that is mounted read-only: said at once, and nothing is begun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from members import Practice

from wardround.client.site_settings import FILE, write_site_starter

pytestmark = pytest.mark.slow


def read_only(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that finds the folder so, in a mount namespace of its own."""
    mounted = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    command = [sys.executable, "-m", "wardround.cli", *arguments, "--folder", str(folder)]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, str(folder), *command],
        capture_output=True, text=True, check=False, timeout=120, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip


def test_a_site_on_a_read_only_disk_says_so_and_begins_nothing(tmp_path: Path) -> None:
    """It does not start, and the check names the disk; the folder is as it was."""
    practice = Practice(tmp_path).make()
    site = practice.member("aachen")
    practice.update("aachen")
    practice.confirm("aachen")
    write_site_starter(site.path / FILE)
    before = {path: path.stat().st_mtime_ns for path in site.path.rglob("*")}
    tried = read_only(site.path, "site", "roster", "show")
    if tried.returncode and "mount" in tried.stderr:
        pytest.skip(f"no mount namespaces here: {tried.stderr.strip()}")
    started = read_only(site.path, "site", "start")
    assert started.returncode == 1
    assert "Read-only file system" in started.stderr
    assert "mounted read-only" in started.stderr
    assert "Traceback" not in started.stderr
    checked = read_only(site.path, "site", "check")
    assert checked.returncode == 1
    assert "cannot be written" in checked.stdout
    assert {path: path.stat().st_mtime_ns for path in site.path.rglob("*")} == before
