"""Starts a dry step in a process of its own, and reads what came of it: also where the process was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from wardround.client.child import QUIET
from wardround.client.doctor.judge_plan import LESS, Tried
from wardround.client.site_settings import SiteSettings
from wardround.core.enrolment import SignedPlan

COMMAND: Final = (sys.executable, "-m", "wardround.client.doctor.dry_step")
OFFLINE: Final = {**QUIET, "HF_HUB_OFFLINE": "1"}
LEAST_S: Final = 600.0
"""Seconds that models and step may take, or as long as a round may where that is longer."""


def try_apart(
    site: str, settings: SiteSettings, document: SignedPlan, command: Sequence[str] = COMMAND
) -> Tried:
    """What came of base models and step; an end of the process before its time is part of that."""
    dry = {
        "site": site,
        "settings": settings.model_dump(mode="json"),
        "plan": document.model_dump(mode="json"),
    }
    limit = max(LEAST_S, document.plan.rounds.deadline_s)
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            list(command), input=json.dumps(dry).encode(), capture_output=True,
            check=False, env=os.environ | OFFLINE, timeout=limit,
        )  # fmt: skip
        output, code, kind = done.stdout, done.returncode, kind_of(done.stderr)
    except subprocess.TimeoutExpired as late:
        return read_tried(late.stdout or b"", None, limit)
    return read_tried(output, code, limit, kind)


def kind_of(errors: bytes) -> str:
    """The kind of the exception that a traceback ends in, and nothing of its words, which may hold data."""
    last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
    found = re.match(r"[A-Za-z_][\w.]*(?=:|$)", last)
    return found[0].rpartition(".")[2] if found and "Traceback" in errors.decode("utf-8", "replace") else ""


def read_tried(output: bytes, code: int | None, limit_s: float, kind: str = "") -> Tried:
    """The last whole line, and what the end of the process says.

    Args:
        output: What the process told.
        code: Its exit code, negative for a signal; None: it did not end in time.
        limit_s: Seconds that it had.
        kind: Of the exception that ended it, where one did.
    """
    tried = Tried()
    for line in output.splitlines():
        try:
            tried = Tried.model_validate_json(line)
        except ValidationError:
            break  # torn by its end
    if code == 0:
        return tried
    if code is None:
        why, remedy = (
            f"it did not end within {limit_s:.0f} s",
            "take a faster machine, or a plan that asks for less",
        )
    elif code == -signal.SIGKILL:
        why, remedy = "the system killed it, as it does where memory runs out", LESS
    else:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        why = f"it ended with {how}" + (f", {kind}" if kind else "")
        remedy = "report it; the other lines still count"
    return tried.model_copy(update={"step": None, "why": why, "remedy": remedy})
