"""SIGKILL to each process of a deployment: it goes on without a person, and nothing is left behind."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deployed import SUPPORT, Pair, answer, ask, for_children, make_pair, wait_for
from pki import make_ca, make_server

from wardround.client.child import CERTIFICATE, NOT_ADMITTED, NOT_YET
from wardround.client.kept_process import ProcessState, Restarts
from wardround.client.processes import SiteProcesses
from wardround.server.superlink import TlsFiles


class Server:
    """server_process.py, and questions to it."""

    def __init__(self, pair: Pair, address: str, sites: dict[str, bytes]) -> None:
        keys = json.dumps({site: key.hex() for site, key in sites.items()})
        self.process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "server_process.py"), str(pair.folder), address, keys],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])},
        )
        self.address = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server has ended"
        return line.strip()

    def tell(self, order: Any) -> None:
        """Without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """To what it was told."""
        return json.loads(self._line())

    def ask(self, seconds: float = 60, site: str = "north", **asked: Any) -> Any:
        """One message and its answer."""
        self.tell({"site": site, "seconds": seconds, "ask": asked})
        return self.answer()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """End it by closing its input."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(30)


@contextmanager
def site_of(pair: Pair, address: str, **more: Any) -> Iterator[SiteProcesses]:
    """A site's two processes."""
    with for_children(), SiteProcesses(pair.settings(address), **more) as site:
        yield site


def node(site: SiteProcesses) -> ProcessState:
    """Its node."""
    return site.states()[0]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_process_of_a_site_outlives_its_supervisor(pair: Pair) -> None:
    """Killed hard, its node and its worker see their pipes close; there is no server here at all."""
    pair.key("north")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    }
    supervisor = subprocess.Popen(
        [sys.executable, str(SUPPORT / "site_process.py"), str(pair.folder), address, "north"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert supervisor.stdout is not None
    pids: list[Any] = [None, None]
    while None in pids:
        pids = [pid for pid, _ in json.loads(supervisor.stdout.readline())]
    wait_for(lambda: "node WARNING" in (pair.folder / "logs" / "node.log").read_text())  # it tries to connect
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    wait_for(lambda: not any(alive(pid) for pid in pids), 20)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_server_finds_its_sites_again(pair: Pair) -> None:
    """On the same database and address; the message on its way is lost with Flower's run, the next is not."""
    server = Server(pair, "127.0.0.1:0", {"north": pair.key("north")})
    with site_of(pair, server.address) as site:
        first = server.ask(do="echo")["answer"]
        server.tell({"site": "north", "seconds": 60, "ask": {"do": "slow", "for_s": 3.0}})
        wait_for((pair.folder / "busy").exists)
        server.kill()
        time.sleep(5)
        server = Server(pair, server.address, {"north": pair.key("north")})
        began = time.monotonic()
        again = server.ask(90, do="echo")["answer"]
        assert time.monotonic() - began < 60
        assert again["pid"] == first["pid"]
        assert [state.restarts for state in site.states()] == [0, 0]
    server.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_node_is_back_after_flowers_minute(pair: Pair) -> None:
    """What it had in hand fails when it is back; the worker has stayed."""
    with pair.server() as link:
        link.admit("north", pair.key("north"))
        with site_of(pair, link.address) as site:
            server = link.open_run("killed")
            wait_for(lambda: link.online()["north"] is not None)
            before = answer(ask(server, "north", do="echo"))["pid"]
            replies: list[Any] = []
            asking = threading.Thread(
                target=lambda: replies.append(ask(server, "north", 200, do="slow", for_s=1.0))
            )
            asking.start()
            wait_for((pair.folder / "busy").exists)
            pid = node(site).pid
            assert pid
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: node(site).code == NOT_YET, 60)
            asking.join(120)
            assert time.monotonic() - began < 80  # Flower's minute, and a restart
            assert "anew" in str(replies[0].error.reason)
            assert answer(ask(server, "north", do="echo"))["pid"] == before
            assert 40 < time.monotonic() - began < 100


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_is_asked_to_end_may_come_back_at_once(pair: Pair) -> None:
    """It takes leave of the server."""
    with pair.server() as link:
        link.admit("north", pair.key("north"))
        for _ in range(2):
            began = time.monotonic()
            with site_of(pair, link.address) as site:
                run = link.open_run("again")
                assert answer_of(run, "north")
                assert node(site).restarts == 0
            assert node(site).code == 0
            assert time.monotonic() - began < 40


def answer_of(run: Any, site: str) -> dict[str, Any]:
    """An echo, from a site that may still have to connect."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        reply = ask(run, site, 60, do="echo")
        if reply is not None and reply.has_content():
            return answer(reply)
        time.sleep(0.2)
    raise AssertionError("no answer")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_refused_site_says_why_and_tries_again(
    pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Not admitted; then it is. And a server under another CA is not talked to."""
    quick = Restarts(refused_s=1.0)
    with pair.server() as link, site_of(pair, link.address, restarts=quick) as site:
        wait_for(lambda: node(site).code == NOT_ADMITTED)
        assert "not admitted" in node(site).reason
        link.admit("north", pair.key("north"))
        assert answer_of(link.open_run("late"), "north")
        link.revoke("north")
        wait_for(lambda: node(site).code == NOT_ADMITTED and node(site).restarts > 1)
    other = make_pair(tmp_path_factory.mktemp("other"))
    with other.server() as link, site_of(pair, link.address, restarts=quick) as site:
        wait_for(lambda: node(site).code == CERTIFICATE)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_certificate_is_renewed_without_a_stop(pair: Pair, tmp_path: Path) -> None:
    """An expired one is refused by sites; the server reads the new one while it runs."""
    ca = make_ca(pair.folder)
    make_server(pair.folder, ca, life=dt.timedelta(hours=-1))
    with pair.server() as link:
        link.admit("north", pair.key("north"))
        with site_of(pair, link.address, restarts=Restarts(refused_s=1.0)) as site:
            wait_for(lambda: node(site).code == CERTIFICATE)
            make_server(pair.folder, ca)
            link.renew_tls()
            assert answer_of(link.open_run("renewed"), "north")
    assert isinstance(pair.tls, TlsFiles)
