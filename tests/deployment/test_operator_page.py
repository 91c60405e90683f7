"""The operator's page, followed word for word: five practice sites, a killed server, a merged model."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from deployed import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.strip().split("\n")
]
ENOUGH_S = 900.0


def ours(command: str, run: str = "RUN") -> list[str]:
    """A command of the page as this interpreter runs it, for two rounds."""
    words = shlex.split(re.sub(r"rounds\.rounds=\d+", "rounds.rounds=2", command.replace("RUN", run)))
    assert words[0] == "wardround"
    return [sys.executable, "-m", "wardround.cli", *words[1:]]


def done(command: str, folder: Path, run: str = "RUN") -> str:
    """What a command of the page prints; it succeeds."""
    found = subprocess.run(
        ours(command, run),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=ENOUGH_S,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def environment() -> dict[str, str]:
    """One thread a process."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


@contextmanager
def going_on(command: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the page that goes on in a terminal of its own."""
    with (folder / "terminal.log").open("ab") as log:
        process = subprocess.Popen(
            ours(command), cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(120)


@pytest.fixture
def near_the_root() -> Iterator[Path]:
    """A folder whose path leaves room for those of sockets: Linux takes 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="wr-") as folder:
        yield Path(folder)


def test_the_page_is_followed_word_for_word(near_the_root: Path) -> None:
    """Each command of the page, in its order; the kill is by the server's own process id."""
    tmp_path = near_the_root
    practice, server, new, sign, start, status, kill, again, fetch, *private = COMMANDS
    assert (again, kill.split()[:2]) == (server, ["pkill", "-9"])
    journal = "trial/operator/server/runs/{}/journal/rounds.jsonl"
    with ExitStack() as stack:
        stack.enter_context(going_on(practice, tmp_path))
        wait_for((tmp_path / "trial" / "sites" / "va" / "site.yaml").exists, 120)
        with going_on(server, tmp_path) as first:
            assert "secure aggregation real" in done(new, tmp_path)
            done(sign, tmp_path)
            wait_for((tmp_path / "trial/operator/server/control/control.sock").exists, 120)
            run = done(start, tmp_path).split()[0]
            path = tmp_path / journal.format(run)
            wait_for(lambda: path.exists() and len(path.read_text().splitlines()) >= 1, ENOUGH_S)
            time.sleep(2.0)
            first.kill()
            first.wait()
        stack.enter_context(going_on(again, tmp_path))
        result = "trial/operator/server/runs/{}/result/result.signed.json"
        wait_for((tmp_path / result.format(run)).exists, ENOUGH_S)
        assert "finished" in done(status.replace(" --follow", ""), tmp_path, run)
        assert "parity" in done(fetch, tmp_path, run)

        *before, start, status, fetch, show = private
        for command in before:
            done(command, tmp_path)
        run = done(start, tmp_path).split()[0]
        wait_for((tmp_path / result.format(run)).exists, ENOUGH_S)
        assert ", ε " in done(status.replace(" --follow", ""), tmp_path, run)
        told = done(fetch, tmp_path, run)
        assert "parity" in told
        assert "differential privacy: at most ε = " in told
        spent = done(show, tmp_path)
        assert "cap ε = 8;" in spent
        assert "│ 2      │ 2      │" in spent, "rounds reserved, and sealed"
    assert (tmp_path / "private-merged" / "model.safetensors").exists()
    assert (tmp_path / "trial-merged" / "model.safetensors").exists()
    assert min((tmp_path / "trial" / "sites").iterdir()).name == "cleveland-east"
