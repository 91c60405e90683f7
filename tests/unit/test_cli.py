"""The command line's door: what is raised becomes a message and an exit code."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from wardround.cli import main
main(sys.argv[1:])
"""


def require_hint(code: str, command: list[str], folder: object, extra: str) -> None:
    """A command that lacks an extra ends with code 2 and says how to install it, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=str(folder),
    )
    assert done.returncode == 2, done.stderr
    assert f"pip install 'wardround[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [["simulate"], ["demo"], ["merge", "run"], ["predict", "run", "rows.jsonl"], ["audit", "privacy", "run"]],
)
def test_the_base_install_says_which_extra_a_command_needs(command: list[str], tmp_path: object) -> None:
    """Without torch: the install command and exit code 2, no traceback."""
    require_hint(BLOCKED, command, tmp_path, "simulation")


def test_a_study_says_which_extra_it_needs(tmp_path: object) -> None:
    """Without Optuna: the install command and exit code 2, before anything is read."""
    blocked = BLOCKED.replace('("torch", "transformers", "peft")', '("optuna",)')
    require_hint(blocked, ["tune", "seed=1"], tmp_path, "tune")


def test_a_module_that_no_extra_brings_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module of the user's own, or a bug of ours, keeps its traceback."""
    from wardround import cli

    def broken(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'thesis'", name="thesis")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ModuleNotFoundError, match="thesis"):
        cli.main([])


LEDGER = ("create", "show", "verify", "export", "amend", "declare", "replay", "mend", "write-off")


@pytest.mark.parametrize(
    "command",
    [
        *(["init"], ["data", "check"], ["merge"], ["evaluate"], ["predict"], ["audit", "privacy"]),
        *(["ledger", name] for name in LEDGER),
        *(["consortium", name] for name in ("init", "invite", "admit", "revoke", "list")),
        *(["consortium", "rotate", name] for name in ("server", "ca", "token", "site")),
        *(["site", "roster", name] for name in ("show", "update", "confirm")),
        *(["site", "join"], ["site", "rotate"], ["site", "server", "update"]),
    ],
)
def test_help_explains_every_argument_and_option(command: list[str]) -> None:
    """No line of `--help` is a bare name."""
    from wardround import cli

    result = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    lines = [line.strip("│ ") for line in result.output.splitlines() if line.startswith("│")]
    assert lines
    bare = [line for line in lines if re.fullmatch(r"(\* +)?[-\w]+( +[A-Z]+)?( +\[required\])?", line)]
    assert not bare
