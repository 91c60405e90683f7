"""The figures of docs/control.md are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from wardround.core.errors import ConfigError, UnreachableError, WardroundError
from wardround.runtime.control.client import BEAT_S, CALL_S, SILENCE_S
from wardround.runtime.control.methods import LARGEST_MESSAGE_BYTES
from wardround.runtime.control.server import STREAMS
from wardround.runtime.control.sockets import LONGEST_PATH_BYTES
from wardround.server.control_service import LONGEST_STOP_S, RUN_CONTROL
from wardround.server.desk import MOST_DEATHS, Limits
from wardround.server.operator_client import RECONNECT_S, SLOWEST_BYTES_S
from wardround.server.run_commands import DONE, NOT_YET, ORDER_S, RUN_FAILED
from wardround.server.run_record import SOON_S

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "control.md").read_text(encoding="utf-8")


def test_figures_of_the_page() -> None:
    """Deadlines, bounds and numbers, in the sentences that give them."""
    for said in (
        f"{CALL_S:g} s to be heard, {ORDER_S:g} s for an order, {LONGEST_STOP_S + 5:g} s for `stop`",
        f"at {SLOWEST_BYTES_S / 1e6:g} MB/s",
        f"says something every {BEAT_S:g} s, and {SILENCE_S:g} s of silence",
        f"stayed away for {RECONNECT_S:g} s",
        f"does not stop within {Limits().stop_grace_s:g} s",
        f"the last {Limits().kept} events",
        f"At most {STREAMS} followers",
        f"at most {LARGEST_MESSAGE_BYTES >> 20} MiB",
        f"may have {LONGEST_PATH_BYTES} bytes",
    ):
        assert said in PAGE, said
    assert (MOST_DEATHS, SOON_S) == (10, 60)
    assert "ten times in a row, each time within a minute" in PAGE


def test_exit_codes_of_the_page() -> None:
    """Each is one that a command ends with."""
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", PAGE, flags=re.MULTILINE)}
    ours = {WardroundError.exit_code, ConfigError.exit_code, UnreachableError.exit_code}
    assert codes == {DONE, RUN_FAILED, NOT_YET} | ours


def test_every_command_and_the_service_are_on_the_page() -> None:
    """The table has all commands of `wardround run`, and the service its full name."""
    from wardround.cli_run import run_app

    for command in run_app.registered_commands:
        assert f"| `wardround run {command.name} " in PAGE or f"| `wardround run {command.name}`" in PAGE
    assert f"`{RUN_CONTROL.full_name}`" in PAGE
