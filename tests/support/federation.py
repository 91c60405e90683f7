"""A small federation as it is deployed: a practice consortium over a tiny model, its plan, its processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deployed import wait_for

from wardround.client.ledger.commands import create_ledger
from wardround.client.membership.site_folder import ABOUT, SiteFolder, open_site_folder
from wardround.client.processes import SiteProcesses
from wardround.client.supervisor import running_site
from wardround.core.errors import WardroundError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundStarted
from wardround.runtime.plan_folder import INITIAL, SIGNED, write_plan_folder
from wardround.server.daemon import RunningServer, running_server
from wardround.server.operator_client import connected, submit
from wardround.server.run_record import RunRecord
from wardround.simulations.config import RunConfig
from wardround.simulations.plan_new import PlanSettings, make_document
from wardround.simulations.practice.making import Practice, free_port, make_practice
from wardround.training.plan_commands import sign_folder

LABELS = ("mild", "severe")
POLICY = {"least_cohort": 3, "least_honest": 2}
"""Three sites on a test's machine; what is lost of protection by so few is not what these tests are about."""

FEW = {"least_units": 2, "least_a_label": 1, "least_batch": 2, "most_delta": 0.02, "smallest_cell": 1}
"""Likewise of their few rows."""


def settings_of(base: Path, rows: Path, **more: Any) -> dict[str, Any]:
    """A site's `site.yaml`."""
    return {
        "models": [{"path": str(base)}],
        "source": {"path": str(rows)},
        "approval": "automatic",
        "machine": {"device": "cpu", "threads": 1},
        "niceness": 0,  # tests wait for it
        "plans": FEW,
        "policy": {"modes": ["real", "off"], **POLICY},
        **more,
    }


def write_rows(path: Path, site: str, count: int) -> Path:
    """So many rows of a site, two a patient."""
    rows = [
        {"note": f"case {i} of {site}", "grade": LABELS[i % 2], "ward": site, "patient": f"{site}{i // 2}"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config_of(base: Path, source: Path, **sections: Any) -> RunConfig:
    """The settings of the plan, and of the simulation that it is compared with."""
    plain: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(base)},
        "task": {"name": "sequence_classification"},
        "data": {
            "source": {"path": str(source)}, "columns": {"text": "note", "label": "grade"}, "labels": LABELS,
            "max_length": 16, "unit_column": "patient", "site_column": "ward",
        },
        "adapter": {"options": {"r": 2}},
        "local": {"epochs": 1, "batch_size": 4},
        "rounds": {"rounds": 2, "deadline_s": 120.0},
        "release": {"metric": "loss", "direction": "min"},
        "secure": {"policy": {"modes": ["real", "off"], **POLICY}},
        "machine": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    return RunConfig.parse(plain | sections)


def reroute(site: SiteFolder, address: str) -> None:
    """Let a site find its server at another address."""
    path = site.path / ABOUT
    path.write_text(json.dumps(json.loads(path.read_text()) | {"address": address}))


@dataclass
class Federation:
    """A consortium over a tiny model, with rows of its sites in files.

    Attributes:
        practice: Its folders.
        base: The base model.
        counts: Site → its rows.
        rows: All rows in one file, for a simulation.
    """

    practice: Practice
    base: Path
    counts: dict[str, int]
    rows: Path

    @staticmethod
    def make(
        folder: Path, base: Path, counts: dict[str, int], *, address: str | None = None, **settings: Any
    ) -> Federation:
        """All folders and files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {site: write_rows(folder / f"{site}.jsonl", site, count) for site, count in counts.items()}
        everything = folder / "all.jsonl"
        everything.write_text("".join(file.read_text() for file in files.values()))
        values = {site: settings_of(base, file, **settings) for site, file in files.items()}
        address = address or f"127.0.0.1:{free_port()}"
        practice = make_practice(folder / "practice", address, values, datetime.now(UTC))
        return Federation(practice, base, counts, everything)

    def copied(self, folder: Path) -> Federation:
        """A copy of its folders that a test may spoil; the rows stay where they are.

        Args:
            folder: To make; a short path, where a control socket is to lie in it.
        """
        shutil.copytree(self.practice.folder, folder, copy_function=shutil.copy2)
        sites = {name: open_site_folder(folder / "sites" / name) for name in self.practice.sites}
        return replace(self, practice=replace(self.practice, folder=folder, sites=sites))

    def give_ledgers(self, caps: dict[str, float], *, delta: float, allow_release: bool = False) -> None:
        """Make sites' privacy ledgers as their people do, each with ε that no patient's account exceeds."""
        for site, epsilon in caps.items():
            policy = {"epsilon": epsilon, "delta": delta, "allow_release": allow_release}
            create_ledger(self.ledger(site), policy, self.counts[site] // 2, None)

    def data(self, **changes: Any) -> dict[str, Any]:
        """The section `data` of its plans, with changes."""
        return config_of(self.base, self.rows).data.model_dump(mode="json") | changes

    def ledger(self, site: str) -> Path:
        """Folder of a site's ledger."""
        return self.practice.sites[site].path / "ledger"

    def plan(
        self,
        name: str,
        *,
        least: int | None = None,
        grace_s: float = 60.0,
        units: tuple[int, ...] | None = None,
        **sections: Any,
    ) -> Path:
        """The folder of a signed plan."""
        folder = self.practice.folder / name
        said = PlanSettings(
            sites=len(self.counts),
            most_rows=max(self.counts.values()),
            least_sites=least,
            grace_s=grace_s,
            units=units,
        )
        write_plan_folder(folder, *make_document(config_of(self.base, self.rows, **sections), said))
        sign_folder(folder, self.practice.operator)
        return folder


@dataclass
class Deployed:
    """A server in this process, and sites with their own."""

    server: RunningServer
    sites: dict[str, SiteProcesses]
    stack: ExitStack

    @staticmethod
    def start(stack: ExitStack, federation: Federation) -> Deployed:
        """The server and every site."""
        server = stack.enter_context(running_server(federation.practice.server))
        sites = {
            name: stack.enter_context(running_site(site.path))
            for name, site in federation.practice.sites.items()
        }
        return Deployed(server, sites, stack)

    def submit(self, plan: Path, name: str = "one") -> str:
        """The id of a run of this plan."""
        signed, initial = (plan / SIGNED).read_bytes(), (plan / INITIAL).read_bytes()
        return self.server.desk.submit(signed, [initial], name).run_id

    def ended(self, run_id: str, seconds: float = 240.0) -> RunRecord:
        """The run's record once it has ended."""
        wait_for(lambda: self.server.desk.run(run_id).record.status.ended, seconds)
        return self.server.desk.run(run_id).record


@contextmanager
def server_process(folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`wardround server start`, killed at the end where it still runs."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "wardround.cli", "server", "start", str(folder)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def submitted(server: Path, plan: Path, name: str = "one") -> str:
    """The id of a run, over the operator's socket, once the server is there."""
    found: list[str] = []

    def attempt() -> bool:
        try:
            with connected(server) as client:
                found.append(submit(client, plan, name).run_id)
        except WardroundError:
            return False
        return True

    wait_for(attempt, 120)
    return found[0]


def started(folder: Path, round: int) -> bool:
    """Whether the run has asked for a round."""
    events = folder / "events.jsonl"
    return events.exists() and any(
        isinstance(event, RoundStarted) and event.round == round for event in read_events(events)
    )


def kill_for_good(site: SiteProcesses) -> None:
    """SIGKILL to both of its processes, and nobody who starts them again."""
    site._done.set()
    assert site._thread is not None
    site._thread.join()
    for state in site.states():
        assert state.pid is not None
        os.kill(state.pid, signal.SIGKILL)
