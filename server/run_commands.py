"""`wardround run`: what the operator sees and does. Exit codes: docs/control.md."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wardround.runtime.control.plain import plain
from wardround.runtime.control.protos import run_control_pb2 as pb
from wardround.runtime.sizes import size_text
from wardround.server.control_service import LONGEST_STOP_S
from wardround.server.operator_client import connected, followed, submit
from wardround.server.run_states import RunStatus

ORDER_S: Final = 10.0
DONE: Final = 0
RUN_FAILED: Final = 4
NOT_YET: Final = 5
"""The run was told, and had not ended when the answer came."""


def start_run(server: Path, plan: Path, submission: str | None, *, as_json: bool) -> None:
    """Queue a plan.

    Raises:
        WardroundError: It was refused; UnreachableError where no server answers. So do the others below.
    """
    with connected(server) as client:
        run = submit(client, plan, submission or secrets.token_hex(16))
    _tell_run(run, f"{run.run_id} is {_place(run)}", as_json=as_json)


def list_runs(server: Path, *, as_json: bool) -> None:
    """Print every run."""
    with connected(server) as client:
        reply = client.call("List", pb.ListRequest())
    if as_json:
        _print_json(reply)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "plan", "status", "place", "reason"):
        table.add_column(heading, overflow="fold")
    for run in reply.runs:
        cells = (run.run_id, run.name, run.status, _place_number(run), run.reason or run.wish)
        table.add_row(*(escape(cell) for cell in cells))
    for run_id, reason in sorted(reply.unreadable.items()):
        table.add_row(run_id, "", "unreadable", "", escape(reason))
    Console().print(table if table.row_count else "no runs")
    if reply.left_out:
        _say(f"and {reply.left_out} older ones, which have ended")


def show_status(server: Path, run_id: str, *, as_json: bool) -> int:
    """Print a run at a glance; the exit code says whether it has failed."""
    with connected(server) as client:
        reply = client.call("Status", pb.RunRequest(run_id=run_id))
    if as_json:
        _print_json(reply)
    else:
        _print_status(reply)
    return _code_of(reply.run)


def follow_events(server: Path, run_id: str, *, as_json: bool) -> int:
    """Print a run's events until it ends; the exit code says whether it has failed."""
    return _follow(server, run_id, "RunEvents", _event_line, follow=True, as_json=as_json)


def show_logs(server: Path, run_id: str, *, follow: bool, as_json: bool) -> int:
    """Print a run's log; with `follow` until it ends, and the exit code says whether it has failed."""
    code = _follow(server, run_id, "Logs", _log_line, follow=follow, as_json=as_json)
    return code if follow else DONE


def show_why(server: Path, run_id: str, *, as_json: bool) -> None:
    """Print why a run is where it is."""
    with connected(server) as client:
        reply = client.call("Why", pb.RunRequest(run_id=run_id))
    if as_json:
        _print_json(reply)
        return
    _say(f"{run_id}: {reply.text}")
    if reply.sites:
        _say(f"  sites: {', '.join(reply.sites)}")
    for run in reply.ahead:
        _say(f"  before it: {run.run_id} ({run.name}), {run.status}")


def drain_run(server: Path, run_id: str, *, as_json: bool) -> None:
    """Stop a run after the round that trains."""
    _order(server, "Drain", pb.RunRequest(run_id=run_id), as_json=as_json)


def stop_run(server: Path, run_id: str, *, as_json: bool) -> int:
    """Stop a run and wait until it has; the exit code says whether it had when the answer came."""
    request = pb.StopRequest(run_id=run_id, wait_s=LONGEST_STOP_S)
    run = _order(server, "Stop", request, as_json=as_json, deadline_s=LONGEST_STOP_S + 5.0)
    return DONE if RunStatus(run.status).ended else NOT_YET


def resume_run(server: Path, run_id: str, *, as_json: bool) -> None:
    """Queue a stopped or failed run again."""
    _order(server, "Resume", pb.RunRequest(run_id=run_id), as_json=as_json)


def exclude_site(server: Path, run_id: str, site: str, *, as_json: bool) -> None:
    """Leave a site out of a run."""
    _order(server, "Exclude", pb.ExcludeRequest(run_id=run_id, site=site), as_json=as_json)


def _order(server: Path, method: str, request: Any, *, as_json: bool, deadline_s: float = ORDER_S) -> Any:
    with connected(server) as client:
        run = client.call(method, request, deadline_s=deadline_s)
    excluded = f"; without {', '.join(run.excluded)}" if run.excluded else ""
    _tell_run(run, f"{run.run_id} is {_place(run)}{excluded}", as_json=as_json)
    return run


def _follow(
    server: Path, run_id: str, method: str, line_of: Callable[[Any], str], *, follow: bool, as_json: bool
) -> int:
    epoch = ""
    for message in followed(server, method, run_id, follow=follow):
        if as_json:
            _print_json(message)
        else:
            if epoch and message.epoch != epoch:
                _say("the server was started again; what follows may have been told before")
            if message.missed:
                _say(f"{message.missed} lines were missed: this follower was too slow")
            text = line_of(message)
            if text:
                _say(text)
        epoch = message.epoch
    with connected(server) as client:
        return _code_of(client.call("Status", pb.RunRequest(run_id=run_id)).run)


def _event_line(event: Any) -> str:
    if event.kind == "StatusChanged":
        return f"{event.status}{': ' if event.text else ''}{event.text}"
    if event.kind == "Evaluated":
        figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(event.metrics.items()))
        return f"round {event.round}: {figures}"
    if event.kind == "SiteReplied" and not event.text:
        return f"round {event.round}: {event.site} {event.site_state}, {size_text(event.bytes_up)}"
    return str(event.text)


def _log_line(line: Any) -> str:
    return f"{'warning: ' if line.level == 'warning' else ''}{line.text}"


def _print_status(reply: Any) -> None:
    run = reply.run
    _say(f"{run.run_id} ({run.name}) is {_place(run)}")
    if reply.rounds:
        released = f", round {reply.released_round} is the best so far" if reply.released_round else ""
        _say(f"round {reply.round} of {reply.rounds}, {reply.phase}{released}")
        _say(f"{size_text(reply.bytes_down)} of broadcasts down, {size_text(reply.bytes_up)} of replies up")
    for name, value in sorted(reply.metrics.items()):
        _say(f"  {name}: {value:.4g}")
    for name, site in sorted(reply.sites.items()):
        spent = f", ε {reply.epsilon[name]:.3g}" if name in reply.epsilon else ""
        why = f": {site.reason or site.code}" if site.reason or site.code else ""
        out = " (excluded)" if name in run.excluded else ""
        _say(f"  {name}{out}: {site.state}, round {site.round}{spent}{why}")


def _place(run: Any) -> str:
    reason = f": {run.reason}" if run.reason else ""
    wish = f", told to {run.wish}" if run.wish else ""
    waits = f", place {run.place}" if run.HasField("place") and run.place else ""
    return f"{run.status}{waits}{wish}{reason}"


def _place_number(run: Any) -> str:
    return str(run.place) if run.HasField("place") else ""


def _code_of(run: Any) -> int:
    return RUN_FAILED if run.status == RunStatus.FAILED else DONE


def _tell_run(run: Any, text: str, *, as_json: bool) -> None:
    if as_json:
        _print_json(run)
    else:
        _say(text)


def _print_json(message: Any) -> None:
    _say(json.dumps(plain(message), ensure_ascii=False))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
