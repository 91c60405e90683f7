"""A small disk that fills in the middle of a run, at the server or at a site, with real processes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from deployed import wait_for
from federation import Deployed, Federation, config_of, server_process, started, submitted
from full_disk import small_disk

from wardround.client.supervisor import running_site
from wardround.runtime.control.protos import run_control_pb2 as pb
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded, RoundStarted, SiteReplied
from wardround.server.operator_client import connected
from wardround.server.run_states import RunStatus
from wardround.simulations.simulate import run_simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30}
ROUNDS: dict[str, Any] = {"rounds": {"rounds": 3, "deadline_s": 120.0}}


def asked(server: Path, method: str, run_id: str) -> Any:
    """What the server answers an operator of a run."""
    with connected(server) as client:
        return client.call(method, pb.RunRequest(run_id=run_id))


def folded(folder: Path) -> list[RoundFolded]:
    """What a run's events say of its rounds."""
    return [event for event in read_events(folder / "events.jsonl") if isinstance(event, RoundFolded)]


def test_a_run_stops_by_name_and_is_resumed_when_there_is_space(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tmp_path: Path
) -> None:
    """The server lives and answers; the next run keeps its turn; each ends as if nothing had been."""
    federation = Federation.make(tmp_path_factory.mktemp("full"), tiny_bert, COUNTS)
    output = str(tmp_path / "undisturbed")
    undisturbed = run_simulation(config_of(federation.base, federation.rows, output=output, **ROUNDS))
    plan, server = federation.plan("plan", **ROUNDS), federation.practice.server
    log = tmp_path / "server.log"
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(server, 48))
        for site in federation.practice.sites.values():
            stack.enter_context(running_site(site.path))
        process = stack.enter_context(server_process(server, log))
        first, second = submitted(server, plan), submitted(server, plan, "two")
        wait_for(lambda: started(server / "runs" / first, 2), 180)

        def stopped() -> bool:
            disk.fill()  # what is deleted meanwhile makes no space either
            return str(asked(server, "Status", first).run.status) == RunStatus.FAILED

        wait_for(stopped, 120)
        for said in (asked(server, "Status", first).run.reason, asked(server, "Why", first).text):
            assert "No space left on device" in said or "database or disk is full" in said
            assert "free space" in said
        wait_for(lambda: "waits for space" in asked(server, "Why", second).text, 60)
        assert process.poll() is None
        disk.free()
        asked(server, "Resume", first)
        for run_id in (second, first):
            wait_for((server / "runs" / run_id / "result" / "result.signed.json").exists, 300)
            complete = [(round, tuple(sorted(COUNTS))) for round in (1, 2, 3)]
            found = [(event.round, event.survivors) for event in folded(server / "runs" / run_id)]
            assert found == complete, "a site lost its contribution"
        wait_for(lambda: asked(server, "Status", first).run.status == RunStatus.FINISHED, 60)
        last = undisturbed.federated.outcome.last.adapter.digest
        assert folded(server / "runs" / first)[-1].adapter_digest == last
        assert process.poll() is None


def test_a_site_whose_disk_is_full_says_so_and_is_back_when_there_is_space(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path
) -> None:
    """Its processes live; the rounds go on without it for as long as it lasts."""
    counts = {**COUNTS, "delft": 20}
    federation = Federation.make(tmp_path_factory.mktemp("site"), tiny_bert, counts)
    plan = federation.plan("plan", rounds={"rounds": 5, "deadline_s": 60.0})
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(federation.practice.sites["basel"].path, 32))
        deployed = Deployed.start(stack, federation)
        run_id = deployed.submit(plan)
        events = deployed.server.desk.run(run_id).folder.events

        def told(kind: type[Any]) -> list[Any]:
            return [e for e in read_events(events) if isinstance(e, kind)] if events.exists() else []

        wait_for(lambda: any(event.round == 2 for event in told(RoundStarted)), 180)

        def failed() -> list[Any]:
            disk.fill()
            return [reply for reply in told(SiteReplied) if reply.code]

        replies = wait_for(failed, 120)
        assert {(reply.site, reply.code) for reply in replies} == {("basel", "storage")}
        disk.free()
        record = deployed.ended(run_id, 500)
        assert record.status is RunStatus.FINISHED, record.reason
        rounds = {event.round: event.survivors for event in told(RoundFolded)}
        assert "basel" not in rounds[replies[0].round]
        assert "basel" in rounds[5]
        assert [state.restarts for state in deployed.sites["basel"].states()] == [0, 0]
