"""`wardround site start`, `status`, `approve`, `deny`, `stop`: what its people see and do while it runs."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from wardround.client.accepted import RUNS, RunFolders
from wardround.client.fetching import Fetched, fetch_result
from wardround.client.membership.site_folder import SiteFolder, open_site_folder
from wardround.client.quiet_log import QuietFormatter, end_quietly
from wardround.client.site_settings import FILE, read_site_settings
from wardround.client.supervisor import CONTROL, DESCRIPTOR, PROTOCOL, run_site
from wardround.core.enrolment import SignedPlan
from wardround.core.errors import PolicyError, UnreachableError
from wardround.runtime.control.client import ControlClient
from wardround.runtime.control.protos import site_pb2 as pb
from wardround.runtime.control.sockets import UnixSocket
from wardround.runtime.log_file import LOGS, log_to
from wardround.runtime.signed_plan import read_signed_plan
from wardround.training.plan_summary import summary_of, summary_text

STOP_S: Final = 40.0
LOOK_S: Final = 0.2


def start_site(folder: Path, deadline_s: float) -> None:
    """Run the site until it is stopped, by command or signal; raises as `run_site`."""
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    site = open_site_folder(folder)
    log_to(site.path / LOGS / "site.jsonl", QuietFormatter)
    end_quietly()
    _say(f"{site.name} of {site.consortium!r} begins; its server is {site.server_address}")
    run_site(folder, done, deadline_s=deadline_s)
    _say(f"{site.name} has ended")


def show_site(folder: Path, *, as_json: bool) -> None:
    """Print the site's processes and the runs that it was offered.

    Raises:
        StorageError: The folder is no site's.
    """
    site = open_site_folder(folder)
    left = site.left()
    running, runs = processes_of(folder), offered_runs(site)
    if as_json:
        shown = {
            "site": site.name, "processes": running, "runs": runs,
            "left": None if left is None else left.at.isoformat(),
        }  # fmt: skip
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return
    idle = "does not run (wardround site start)" if left is None else f"left on {left.at:%Y-%m-%d %H:%M} UTC"
    _say(f"{site.name}: " + (idle if running is None else "runs"))
    for process in running or []:
        ended = f", last ended by {process['reason']}" if process["reason"] else ""
        _say(f"  {process['name']}: pid {process['pid']}, restarted {process['restarts']} times{ended}")
        if process["note"]:
            _say(f"    {process['note']}")
    for run in runs:
        _say(f"  run {run['run']}: {run['state']}, plan {run['plan'][:12]} ({run['name']})")


def processes_of(folder: Path) -> list[dict[str, Any]] | None:
    """The site's processes; None where it does not run."""
    try:
        with _client(folder) as client:
            reply = client.call("Status", pb.SiteStatusRequest())
    except UnreachableError:
        return None
    return [
        {
            "name": process.name,
            "pid": process.pid if process.HasField("pid") else None,
            "restarts": process.restarts,
            "reason": process.reason,
            "note": process.note,
        }
        for process in reply.processes
    ]


def offered_runs(site: SiteFolder) -> list[dict[str, str]]:
    """Every run that was offered: its plan, and whether it waits, is approved or accepted."""
    folders, found = RunFolders(site.path / RUNS), []
    for run in folders.runs():
        signed = read_signed_plan(folders.plan(run) or b"", site.consortium_key)
        state = "waits for approval"
        if folders.declined(run, signed.digest):
            state = "declined"
        elif folders.accepted(run) is not None:
            state = "accepted"
        elif folders.approved(run, signed.digest):
            state = "approved"
        found.append({"run": run, "name": signed.plan.name, "plan": signed.digest, "state": state})
    return found


def approve_run(folder: Path, run: str, who: str, *, said: str | None, ask: Callable[[str], bool]) -> None:
    """Show what a plan asks of the site, and record a person's approval.

    Args:
        folder: Of the site.
        run: Id of the run.
        who: The person.
        said: Digest of the plan as the person knows it; without it they are asked.
        ask: Puts a question to the person.

    Raises:
        ConfigError: No plan was offered in this run, or the site has left.
        PolicyError: The plan is another than the person names, was declined, or they say no.
    """
    site, folders, signed = _offer(folder, run)
    if folders.declined(run, signed.digest):
        raise PolicyError(
            "the plan was declined at this site, and the server has been told or will be", found=run,
            remedy="the operator can offer it as a new run",
        )  # fmt: skip
    _asked(site, signed, said, ask, f"Let {site.name} take part in run {run}?")
    folders.approve(run, signed.digest, who)
    _say(f"approved by {who}: the site accepts when it is asked again, within a quarter of an hour")


def decline_run(folder: Path, run: str, who: str, *, said: str | None, ask: Callable[[str], bool]) -> None:
    """Show what a plan asks of the site, and record a person's no; arguments and errors as `approve_run`.

    In a run that was accepted already, nothing is signed for the site any more: it goes on without this site.
    """
    site, folders, signed = _offer(folder, run)
    _asked(site, signed, said, ask, f"Keep {site.name} out of run {run}, for good?")
    folders.decline(run, signed.digest, who)
    told = "it takes no further part" if folders.accepted(run) else "the site says so when it is asked again"
    _say(f"declined by {who}: {told}")


def _offer(folder: Path, run: str) -> tuple[SiteFolder, RunFolders, SignedPlan]:
    site = open_site_folder(folder)
    site.require_present()
    folders = RunFolders(site.path / RUNS)
    return site, folders, read_signed_plan(folders.required(run), site.consortium_key)


def _asked(
    site: SiteFolder, signed: SignedPlan, said: str | None, ask: Callable[[str], bool], question: str
) -> None:
    """Show a plan, and go on where the person names its digest or says yes."""
    members = len(site.roster().members)
    Console().print(summary_text(summary_of(signed, members)), markup=False, highlight=False)
    if said is not None and said != signed.digest:
        raise PolicyError(
            "the plan that was offered is another one", found=signed.digest, expected=said,
            remedy="ask the operator which plan this run is for",
        )  # fmt: skip
    if said is None and not ask(question):
        raise PolicyError("nothing was recorded", remedy="the offer stands")


def fetch_run(folder: Path, run: str, *, merge: Path | None) -> None:
    """Fetch and check what came of a run, and merge it where a folder is named.

    Where each site has its own adapter, this site's is written as PEFT reads it as well.

    Raises:
        WardroundError: As `fetch_result`, `save_adapter` and `merge_result`.
    """
    site = open_site_folder(folder)
    site.require_present()
    fetched = fetch_result(site, RunFolders(site.path / RUNS), run)
    record = fetched.record
    _say(f"run {run}: {record.reason} after round {record.last_round}, {len(record.sites)} sites")
    for round, sites in record.missing:
        _say(f"  round {round} went without {', '.join(sites)}")
    if fetched.own:
        _say(_own_text(fetched))
    else:
        _say(f"released is round {record.released_round}, by {record.metric}: {fetched.folder}")
    _say(record.privacy.text if record.privacy else "trained without differential privacy")
    if merge is None and not fetched.own:
        return
    from wardround.client.merging import merge_result, save_adapter

    if merge is None:
        _say(f"for PEFT: {save_adapter(read_site_settings(site.path / FILE), fetched)}")
        return
    report = merge_result(read_site_settings(site.path / FILE), fetched, site.name, merge)
    _say(f"merged into {report.base}: {report.folder}")
    _say(
        f"parity on {report.samples} rows of this site: logits differ by at most "
        f"{report.parity.relative:.2e} of the largest"
    )


def _own_text(fetched: Fetched) -> str:
    """What this site's own adapter is made of."""
    last, kept = fetched.record.last_round, fetched.kept
    none = "the plan's initial part: this site has kept none (if it trained, its runs/RUN/memory is lost)"
    part = f"its part of round {kept}" if kept else none
    return (
        f"nothing is released for everybody: this site's own adapter is made of what the sites share after "
        f"round {last}, and {part}: {fetched.folder}"
    )


def stop_site(folder: Path) -> None:
    """End the site's processes, and return when they have ended.

    Raises:
        UnreachableError: It does not run, or does not end.
    """
    open_site_folder(folder)
    with _client(folder) as client:
        client.call("Stop", pb.SiteStopRequest())
    end = time.monotonic() + STOP_S
    while processes_of(folder) is not None:
        if time.monotonic() > end:
            raise UnreachableError(
                "the site does not end", found=f"after {STOP_S:.0f} s", remedy="look at its logs/"
            )
        time.sleep(LOOK_S)
    _say("the site has ended")


def _client(folder: Path) -> ControlClient:
    return ControlClient(UnixSocket(folder / CONTROL), DESCRIPTOR, PROTOCOL)


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
