"""`wardround run` against a server in a process of its own: what it prints, ends and exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_certificates import authority, issued, pem
from control_echo import Echo
from desk_runs import Trainer, desk_at

from wardround import cli
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import TlsAddress
from wardround.server.control_service import serve_control, socket_of

SERVER = """
import sys, time
from pathlib import Path
from desk_runs import Trainer, desk_at
from wardround.core.errors import ConfigError
from wardround.server.control_service import serve_control

folder = Path(sys.argv[1])

class Told(Trainer):
    def pause(self, control):
        while not (folder / "go").exists():
            if control.pause(0.02):
                break

desk = desk_at(folder, Told(hold=(2,), fail={b"bad": ConfigError("this plan cannot be run")}))
with serve_control(desk, folder):
    print("ready", flush=True)
    time.sleep(120)
"""


class Server:
    """A server's folder and process, and the commands of its operator."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        folder.mkdir(mode=0o700)
        (folder / "operator.token").write_text("0123456789abcdef")
        (folder / "operator.token").chmod(0o600)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.folder)], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def run(self, *arguments: str, server: Path | None = None) -> tuple[int, str, str]:
        """Exit code, output, errors of `wardround run ARGUMENTS`."""
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", *arguments, "--server", str(server or self.folder)])
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        assert "0123456789abcdef" not in out + err
        return int(ended.value.code or 0), out, err

    def json(self, *arguments: str) -> Any:
        code, out, err = self.run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    def until(self, run_id: str, status: str) -> None:
        deadline = time.monotonic() + 20
        while True:
            code, out, _ = self.run("status", run_id, "--json")
            if code in {0, 4} and json.loads(out)["run"]["status"] == status:
                return
            assert time.monotonic() < deadline, out
            time.sleep(0.05)


@pytest.fixture
def server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Server]:
    """A server that holds each run in its second round until the file `go` is there."""
    server = Server(tmp_path / "s", capsys)
    yield server
    server.kill()


def plan_folder(folder: Path, plan: bytes = b"good") -> str:
    """A folder as `wardround plan sign` leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.signed.json").write_bytes(plan)
    (folder / "initial.safetensors").write_bytes(b"adapter" * 500_000)
    return str(folder)


def test_every_command_does_what_it_says(server: Server, tmp_path: Path) -> None:
    """Start, list, status, why, exclude, drain, resume, stop, logs, for people and as JSON."""
    server.start()
    first = server.json("start", plan_folder(tmp_path / "p"))["run_id"]
    code, out, _ = server.run("start", plan_folder(tmp_path / "p"))
    second = out.split()[0]
    assert (code, out) == (0, f"{second} is queued, place 1\n")
    server.until(first, "training")
    listed = server.json("list")
    assert [(run["run_id"], run["place"]) for run in listed["runs"]] == [(first, 0), (second, 1)]
    assert first in server.run("list")[1]
    time.sleep(0.3)
    code, out, _ = server.run("status", first)
    assert (code, out.splitlines()[1]) == (0, "round 2 of 3, training")
    assert server.json("status", first)["sites"]["amber"]["state"] == "training"
    code, out, _ = server.run("why", second)
    assert f"before it: {first} (" in out
    assert server.json("why", first)["sites"] == ["amber", "birch", "cedar"]
    assert server.json("exclude", first, "birch")["excluded"] == ["birch"]
    assert "without birch" in server.run("exclude", first, "birch")[1]
    assert server.json("stop", second)["status"] == "stopped"
    assert server.json("drain", first)["status"] == "draining"
    assert server.json("stop", first)["status"] == "stopped"
    (server.folder / "go").touch()
    assert server.json("resume", first)["run_id"] == first
    code, out, _ = server.run("status", first, "--follow")
    assert code == 0
    assert "round 3 folded: 2 contributions" in out
    assert out.splitlines()[-1] == "finished: completed"
    code, out, _ = server.run("logs", first, "--json")
    assert (code, json.loads(out.splitlines()[0])["text"][:9]) == (0, "submitted")
    assert server.run("resume", first)[0] == 2
    assert server.run("stop", first)[0] == 2


def test_a_run_that_failed_exits_with_4(server: Server, tmp_path: Path) -> None:
    """Status and followers; the list has the reason."""
    server.start()
    (server.folder / "go").touch()
    bad = server.json("start", plan_folder(tmp_path / "p", b"bad"))["run_id"]
    good = server.json("start", plan_folder(tmp_path / "p"))["run_id"]
    assert server.run("status", bad, "--follow")[0] == 4
    assert server.run("logs", bad, "--follow", "--json")[0] == 4
    code, out, _ = server.run("status", bad)
    assert code == 4
    assert "this plan cannot be run" in out
    assert server.run("status", good, "--follow", "--json")[0] == 0


def test_a_server_that_restarts_is_followed_on(server: Server, tmp_path: Path) -> None:
    """Kill -9 in the middle: the run goes on by itself; its follower finds the new server and the end."""
    server.start()
    run = server.json("start", plan_folder(tmp_path / "p"))["run_id"]
    server.until(run, "training")
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    follower = subprocess.Popen(
        [sys.executable, "-c", "from wardround.cli import main; main()", "run", "status", run, "--follow"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "WARDROUND_SERVER": str(server.folder)},
    )
    assert follower.stdout is not None
    assert follower.stdout.readline()
    server.kill()
    (server.folder / "go").touch()
    server.start()
    out, _ = follower.communicate(timeout=40)
    assert follower.returncode == 0
    assert "the server was started again" in out
    assert out.splitlines()[-1] == "finished: completed"


def test_no_server_and_a_hung_one_exit_with_3_in_seconds(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command: nothing there; stopped by SIGSTOP, where the socket accepts and nobody answers."""
    plan = plan_folder(tmp_path / "p")
    commands = [["list"], ["start", plan], ["status", "r"], ["status", "r", "--follow"], ["logs", "r"]]
    commands += [["why", "r"], ["drain", "r"], ["stop", "r"], ["resume", "r"], ["exclude", "r", "s"]]
    for command in commands:
        code, _, err = server.run(*command)
        assert code == 3, (command, err)
        assert "start the server" in err
    server.start()
    server.signal(signal.SIGSTOP)
    started = time.monotonic()
    assert server.run("stop", "r")[0] == 3
    assert time.monotonic() - started < 9
    monkeypatch.setattr("wardround.runtime.control.client.CALL_S", 1.0)
    for command in commands:
        if command[0] == "start" or "--follow" in command:
            assert server.run(*command)[0] == 3, command


def test_wrong_tokens_versions_and_folders_are_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 for what is refused, 2 for what was written wrongly; both versions named."""
    server.start()
    other = tmp_path / "o"
    other.mkdir(mode=0o700)
    (other / "control").symlink_to(server.folder / "control")
    (other / "operator.token").write_text("another token of mine")
    (other / "operator.token").chmod(0o600)
    assert server.run("list", server=other)[0] == 1  # a link is no private folder
    (server.folder / "operator.token").write_text("another token of mine")
    code, _, err = server.run("list")
    assert code == 1
    assert "token is missing or wrong" in err
    (server.folder / "operator.token").write_text("0123456789abcdef")
    monkeypatch.setattr("wardround.server.operator_client.PROTOCOL", 7)
    code, _, err = server.run("list")
    assert code == 1
    assert "the client speaks 7" in err
    assert "the server speaks 1" in err
    monkeypatch.undo()
    assert server.run("status", "nonsense")[0] == 2
    code, _, err = server.run("start", str(tmp_path / "nowhere"))
    assert code == 2
    assert "plan.signed.json" in err
    (server.folder / "control").chmod(0o755)
    code, _, err = server.run("list")
    assert code == 1
    assert "others may enter" in err


def test_without_a_server_folder_it_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither --server nor WARDROUND_SERVER: 2."""
    monkeypatch.delenv("WARDROUND_SERVER", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "list"])
    assert ended.value.code == 2
    assert "WARDROUND_SERVER" in capsys.readouterr().err


def test_the_folder_may_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """WARDROUND_SERVER names it; no server there is exit code 3."""
    monkeypatch.setenv("WARDROUND_SERVER", str(server.folder))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "list"])
    assert ended.value.code == 3


def test_another_service_on_the_socket_is_named(server: Server) -> None:
    """A server that has no runs: the command says what it found."""
    with serve([Echo().service()], socket_of(server.folder), token="0123456789abcdef"):
        code, _, err = server.run("list")
    assert code == 1
    assert "no such service" in err


def test_an_operator_elsewhere_comes_in_by_mutual_tls(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with the address, certificates and the token is enough; others' certificates are not."""
    ours, strangers = authority("ours"), authority("ours")
    desk = desk_at(server.folder, Trainer())
    listen = TlsAddress("127.0.0.1", 0, pem(ours), *issued(ours, "server"))
    with serve_control(desk, server.folder, at=listen) as handle:
        assert isinstance(handle.at, TlsAddress)
        far = tmp_path / "far"
        far.mkdir(mode=0o700)
        (far / "control.json").write_text(json.dumps({"host": "127.0.0.1", "port": handle.at.port}))
        (far / "operator.token").write_text("0123456789abcdef")
        (far / "operator.token").chmod(0o600)
        code, _, err = server.run("list", server=far)
        assert code == 1
        assert "operator.key" in err
        for authorities, code in (((ours, ours), 0), ((ours, strangers), 3), ((strangers, ours), 3)):
            certificate, key = issued(authorities[1], "operator")
            for name, data in (
                ("ca.pem", pem(authorities[0])), ("operator.pem", certificate), ("operator.key", key)
            ):  # fmt: skip
                (far / name).write_bytes(data)
                (far / name).chmod(0o600)
            assert server.run("list", server=far)[0] == code
        (far / "operator.key").chmod(0o644)
        assert server.run("list", server=far)[0] == 1
        (far / "operator.key").chmod(0o600)
        (far / "control.json").write_text('{"host": "127.0.0.1", "port": 99999}')
        assert server.run("list", server=far)[0] == 2
    desk.close()
