"""What leaves a site's machine, by its network interface: connections to its server, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from deployed import SUPPORT, wait_for
from federation import Federation
from networks import SERVER, two_machines, why_not

from wardround.client.history.history import FOLDER, verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30}
PORT = 9443
LOOKS_BYTES_S = 10_000
"""Bytes a second beside the messages: looks for one, five times a second, each with its headers under TLS."""
FORGETFUL = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "FLWR_TELEMETRY_ENABLED"}
"""What a hospital need not have set for its node to be quiet."""


def cli(*arguments: str) -> str:
    """What a command prints; control sockets are files, and know no network."""
    done = subprocess.run(
        [sys.executable, "-m", "wardround.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def status_of(folder: Path, run: str) -> dict[str, Any]:
    """As `run status --json` says it."""
    found: dict[str, Any] = json.loads(cli("run", "status", run, "--json", "--server", str(folder)))
    return found


def test_a_site_opens_connections_to_its_server_and_nowhere_else(
    tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """No hub, no telemetry, no update check, no name service: on a machine whose every way out is watched."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("egress")
    federation = Federation.make(folder, tiny_bert, COUNTS, address=f"{SERVER}:{PORT}")
    plan, server = federation.plan("plan"), federation.practice.server
    env = {name: value for name, value in os.environ.items() if name not in FORGETFUL}
    env |= {"OMP_NUM_THREADS": "1"}
    counted, began = tmp_path / "counted.json", time.monotonic()
    with ExitStack() as stack:
        there, here = stack.enter_context(two_machines())

        def start(machine: Any, *arguments: str, log: str) -> None:
            stack.enter_context(machine.process(arguments, tmp_path / log, env))

        sniffer = stack.enter_context(
            here.process(
                [str(SUPPORT / "sniffer.py"), here.interface, str(counted)], tmp_path / "sniffer.log"
            )
        )
        wait_for(counted.exists)
        start(there, "-m", "wardround.cli", "server", "start", str(server), log="server.log")
        for name, site in federation.practice.sites.items():
            machine = here if name == "basel" else there
            command = ("-m", "wardround.cli", "site", "start", "--folder", str(site.path))
            start(machine, *command, log=f"{name}.log")
        wait_for((server / "control").exists)
        run = cli("run", "start", str(plan), "--server", str(server), "--json")
        run_id = json.loads(run)["run_id"]
        wait_for(lambda: status_of(server, run_id)["run"]["status"] == "finished", 900)
        fetch = ["-m", "wardround.cli", "site", "fetch", run_id, "--folder"]
        with here.process(
            [*fetch, str(federation.practice.sites["basel"].path)], tmp_path / "fetch.log"
        ) as done:
            assert done.wait(120) == 0, (tmp_path / "fetch.log").read_text()
        sniffer.terminate()
        sniffer.wait(30)
    seen = json.loads(counted.read_text())
    assert set(seen) == {f"tcp {SERVER}:{PORT}"}, seen
    recorded = verify(federation.practice.sites["basel"].path / FOLDER).sent
    wire, told = seen[f"tcp {SERVER}:{PORT}"][1], sum(row.left.bytes for row in recorded)
    assert told <= wire <= 1.1 * told + LOOKS_BYTES_S * (time.monotonic() - began)


def test_the_watch_sees_what_is_sent_elsewhere(tmp_path: Path) -> None:
    """A question to a name server, and a connection to another port: the test above could fail."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    counted = tmp_path / "counted.json"
    sends = (
        "import socket\n"
        f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'who', ('{SERVER}', 53))\n"
        f"socket.socket().connect_ex(('{SERVER}', 80))\n"
    )
    with two_machines() as (_, here):
        watching = [str(SUPPORT / "sniffer.py"), here.interface, str(counted)]
        with here.process(watching, tmp_path / "sniffer.log") as sniffer:
            wait_for(counted.exists)
            with here.process(["-c", sends], tmp_path / "sends.log") as sender:
                assert sender.wait(60) == 0
            sniffer.terminate()
            sniffer.wait(30)
    assert json.loads(counted.read_text()) == {f"udp {SERVER}:53": [1, 3], f"tcp {SERVER}:80": [1, 0]}
