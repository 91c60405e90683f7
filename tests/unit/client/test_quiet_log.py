"""A site's log has where and what kind of a foreign exception, and never its words."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wardround.client.quiet_log import QuietFormatter, story
from wardround.core.errors import DataError
from wardround.runtime.log_file import LogFile

CANARY = "Kanarienvogel 1943-07-12"


def read(row: dict[str, str]) -> int:
    """A number of a row, if it is one."""
    try:
        return int(row["number"])
    except KeyError:
        return int(row[CANARY])  # once more


def ours(row: dict[str, str]) -> int:
    """As our own code reads it."""
    try:
        return read(row)
    except (ValueError, KeyError) as error:
        raise DataError("row 7 has no number", expected="digits") from error


def failed(reader: Callable[[dict[str, str]], int] = read) -> BaseException:
    """What comes of a row without a number: two exceptions, and ours where it is our code that reads."""
    with pytest.raises((KeyError, DataError)) as caught:
        reader({"id": CANARY})
    return caught.value


def test_a_foreign_exception_is_told_without_its_words() -> None:
    """With those that led to it, each by its place and kind."""
    told = story(failed())
    assert CANARY not in told
    assert told.count("Traceback (most recent call last):") == 2
    assert told.count(f'File "{__file__}", line ') == 3
    assert "\nKeyError\n" in told
    assert told.endswith("\nKeyError")


def test_our_own_errors_keep_their_words() -> None:
    """They hold no data value; what they were made of does."""
    told = story(failed(ours))
    assert CANARY not in told
    assert "direct cause" in told
    assert told.endswith(f"DataError: {failed(ours)}")


def test_an_endless_chain_is_told_in_part() -> None:
    """The last ones."""
    error: BaseException = ValueError("0")
    for number in range(100):
        later = ValueError(str(number))
        later.__cause__, error = error, later
    assert story(error).count("ValueError") == 20


def test_both_logs_take_it(tmp_path: Path) -> None:
    """Lines of a terminal, and JSON."""
    stream, logger = io.StringIO(), logging.getLogger("a site")
    terminal, file = logging.StreamHandler(stream), LogFile(tmp_path / "site.jsonl")
    terminal.setFormatter(QuietFormatter("%(levelname)s %(message)s"))
    file.setFormatter(QuietFormatter())
    for handler in (terminal, file):
        logger.addHandler(handler)
    try:
        logger.warning("it broke", exc_info=failed())
    finally:
        for handler in (terminal, file):
            logger.removeHandler(handler)
            handler.close()
    (line,) = (tmp_path / "site.jsonl").read_text().splitlines()
    for text in (stream.getvalue(), line):
        assert CANARY not in text
        assert "KeyError" in text
    assert json.loads(line)["text"] == "it broke"


@pytest.mark.parametrize("where", ["main", "thread"])
def test_what_nobody_caught_is_told_likewise(where: str) -> None:
    """In a process of its own, by its end or its thread's."""
    in_thread = f"t=threading.Thread(target=int, args=({CANARY!r},)); t.start(); t.join()"
    body = f"int({CANARY!r})" if where == "main" else in_thread
    quiet = "from wardround.client.quiet_log import log_quietly\nlog_quietly('worker')"
    program = f"import threading\n{quiet}\n{body}\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if where == "main" else 0)
    assert "worker" in done.stderr
    assert "ValueError" in done.stderr
    assert CANARY not in done.stderr.replace(program, "")
