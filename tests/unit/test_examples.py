"""The units and the container file of docs/examples: what they name exists; they protect what they say."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wardround.core.errors import ConfigError, WardroundError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
UNITS = sorted(EXAMPLES.glob("*.service"))
CONTAINER = (EXAMPLES / "Containerfile").read_text(encoding="utf-8")
PROGRAM = "/opt/wardround/bin/wardround"
HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "CapabilityBoundingSet": "",
    "UMask": "0077",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
}


def unit(path: Path) -> configparser.ConfigParser:
    """A unit, read strictly: a key twice is an error."""
    read = configparser.ConfigParser(interpolation=None, strict=True)
    read.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    read.read_string(path.read_text(encoding="utf-8"))
    return read


def instructions() -> list[tuple[str, str]]:
    """Instruction and argument of each line of the container file."""
    joined = re.sub(r"\\\n\s*", " ", CONTAINER)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def starts(words: list[str]) -> None:
    """Each command exists, and takes the options that are given: --help beside them says so."""
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    command = [word for word in words[1:3] if not word.startswith("-")]
    shown = subprocess.run(
        [sys.executable, "-m", "wardround.cli", *command, "--help"],
        check=True, capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    assert all(option in shown for option in options), options


def test_there_is_a_unit_for_each_side() -> None:
    """The server's and the site's."""
    assert [path.stem for path in UNITS] == ["wardround-server", "wardround-site"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_hardened_and_writes_into_its_own_folder_alone(path: Path) -> None:
    """Which is the one that its command names."""
    service = unit(path)["Service"]
    assert {key: service.get(key) for key in HARDENED} == HARDENED
    words = shlex.split(service["ExecStart"])
    assert words[0] == PROGRAM
    assert service["ReadWritePaths"] == words[-1]
    assert service["User"] != "root"
    starts(words)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_configuration_error_is_not_repeated_for_ever(path: Path) -> None:
    """By the exit codes that the command line has; other failures are tried again, a few times in a row."""
    read = unit(path)
    service = read["Service"]
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == str(ConfigError.exit_code)
    assert WardroundError.exit_code != ConfigError.exit_code
    assert int(read["Unit"]["StartLimitBurst"]) * int(service["RestartSec"]) < int(
        read["Unit"]["StartLimitIntervalSec"]
    )


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_stop_asks_the_first_process_alone(path: Path) -> None:
    """The supervisor ends node and worker in their order; systemd waits longer than it takes for both."""
    from wardround.client.processes import STOP_S
    from wardround.server.superlink import STOP_S as SERVER_STOP_S

    service = unit(path)["Service"]
    assert (service["KillMode"], service["KillSignal"]) == ("mixed", "SIGTERM")
    assert int(service["TimeoutStopSec"]) > max(2 * STOP_S, 30.0 + 2 * SERVER_STOP_S)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_takes_the_units(path: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify`, with a program that is there in place of the installed one."""
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        pytest.skip("systemd-analyze is not here")
    copy = tmp_path / path.name
    copy.write_text(path.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        [analyse, "verify", "--man=no", str(copy)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert path.name not in done.stderr, done.stderr  # an unknown key is a warning alone
    spoiled = tmp_path / f"spoiled-{path.name}"
    spoiled.write_text(copy.read_text().replace("ProtectHome=", "ProtectHomes="), encoding="utf-8")
    heard = subprocess.run(
        [analyse, "verify", "--man=no", str(spoiled)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "ProtectHomes" in heard.stderr  # what this test stands on


def test_what_the_container_is_made_of_exists() -> None:
    """Every path that is copied; together they are what the wheel is made of."""
    copied = [
        word
        for name, argument in instructions()
        if name == "COPY" and "--from" not in argument
        for word in argument.split()[:-1]
    ]
    assert not [path for path in copied if not (ROOT / path).exists()]
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {path.partition("/")[0] for path in wheel["only-include"]} <= set(copied)


def test_the_container_runs_the_server_as_nobody_special() -> None:
    """A user with a number, the pinned set, the folder mounted, the command one that exists."""
    found = dict(instructions())
    assert found["USER"] == "10001:10001"
    assert found["VOLUME"] == "/data"
    words = json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"])
    assert words[:4] == [PROGRAM, "server", "start", found["VOLUME"]]
    starts(words)
    assert "-c constraints.txt" in CONTAINER
    assert "--read-only" in CONTAINER
    images = [argument.split()[0] for name, argument in instructions() if name == "FROM"]
    assert set(images) == {"docker.io/library/python:3.11-slim"}


def test_no_layer_holds_a_secret() -> None:
    """Nothing is added but the code: no key, no token, no folder of a server, no build argument."""
    names = {name for name, _ in instructions()}
    assert names <= {
        *(
            "FROM",
            "WORKDIR",
            "COPY",
            "RUN",
            "ENV",
            "USER",
            "VOLUME",
            "EXPOSE",
            "STOPSIGNAL",
            "ENTRYPOINT",
            "CMD",
        ),
    }
    assert not re.search(r"\.key|\.token|\.pem|PASSPHRASE|COPY \. ", CONTAINER)
