"""`wardround server start` as a process of its own: what an operator's machine sees of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from wardround.simulations.practice.making import make_practice


@dataclass
class Started:
    """A server that runs.

    Attributes:
        folder: Of the server.
        process: Its own.
        said: Its first line.
    """

    folder: Path
    process: subprocess.Popen[str]
    said: str

    @property
    def metrics(self) -> str:
        """Where they are read."""
        found = re.search(r"http://\S+", self.said)
        assert found is not None, self.said
        return found[0]


def make_server(folder: Path) -> Path:
    """The folder of a server with two members that never come."""
    settings = {"models": [{"path": "nowhere"}], "source": {"path": "rows.csv"}}
    both = {"aachen": settings, "basel": settings}
    return make_practice(folder / "p", "127.0.0.1:9443", both, datetime.now(UTC)).server


def start(folder: Path, *more: str) -> Started:
    """Start it, and wait until it says that it listens."""
    command = [sys.executable, "-m", "wardround.cli", "server", "start", str(folder)]
    with (folder / "terminal.txt").open("w") as terminal:
        process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", *more], stdout=subprocess.PIPE, stderr=terminal, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert process.stdout is not None
    return Started(folder, process, process.stdout.readline())


def end(server: Started) -> int:
    """Ask it to end; its exit code."""
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(60)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """One that runs."""
    started = start(make_server(tmp_path_factory.mktemp("s")), "--metrics", "0")
    yield started
    assert end(started) == 0


def test_a_running_server_is_scraped(server: Started) -> None:
    """Every family of the page parses; what an operator is woken for is there, and so are CPU and memory."""
    text = httpx.get(server.metrics).text
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["wardround_sites_admitted",] == 2
    assert found["wardround_sites_online",] == 0
    assert found["wardround_site_last_heard_seconds", "aachen"] == float("inf")
    assert found["wardround_listener_up",] == 1
    assert found["wardround_scrape_unread_parts",] == 0
    assert found["wardround_runs", "training"] == 0
    now = datetime.now(UTC).timestamp()
    for certificate in ("consortium", "tls", "authority"):
        assert found["wardround_certificate_expiry_timestamp_seconds", certificate] > now + 86400
    assert found["process_resident_memory_bytes",] > 1e7
    assert "process_cpu_seconds_total" in text


def test_nothing_secret_is_in_it(server: Started) -> None:
    """Neither the token nor a key nor a path."""
    text = httpx.get(server.metrics).text
    assert (server.folder / "operator.token").read_text().strip() not in text
    assert str(server.folder) not in text


def test_strangers_do_not_find_them(server: Started) -> None:
    """The public listener has no such route."""
    found = re.search(r"listens on (\S+);", server.said)
    assert found is not None
    with httpx.Client(verify=False) as client:  # noqa: S501 - whose certificate it is does not matter here
        assert client.get(f"https://{found[1]}/metrics").status_code == 404
        assert client.get(f"https://{found[1]}/health").status_code == 200


def test_what_it_does_is_a_line_of_json_each(server: Started) -> None:
    """In `logs/` of its folder; the terminal has the same for people."""
    lines = [json.loads(line) for line in (server.folder / "logs" / "server.jsonl").read_text().splitlines()]
    assert all({"time", "level", "logger", "text"} <= set(line) for line in lines)
    assert any("uvicorn" in line["logger"] for line in lines)
    assert lines[0]["text"] in (server.folder / "terminal.txt").read_text()


def test_a_full_disk_under_the_log_stops_no_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It starts, says so once, counts what is lost, and ends in good order."""
    folder = make_server(tmp_path_factory.mktemp("f"))
    (folder / "logs").mkdir(mode=0o700)
    (folder / "logs" / "server.jsonl").symlink_to("/dev/full")
    full = start(folder, "--metrics", "0")
    found = re.search(r"^wardround_log_records_lost_total (\S+)$", httpx.get(full.metrics).text, re.MULTILINE)
    assert found is not None
    assert float(found[1]) > 0
    assert end(full) == 0
    assert (folder / "terminal.txt").read_text().count("cannot be written, nothing else stops") == 1


def test_a_folder_that_is_no_servers_stays_as_it_was(tmp_path: Path) -> None:
    """Nothing is made in it; exit code 1, since no file of a server is there."""
    command = [sys.executable, "-m", "wardround.cli", "server", "start", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "no server's folder" in done.stderr
