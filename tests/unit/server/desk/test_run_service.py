"""RunControl over a real socket: every method, followers, and messages that nobody of ours would send."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from desk_runs import SITES, Trainer, desk_at, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wardround.core.errors import ConfigError, PeerError, PolicyError, StorageError
from wardround.runtime.control.client import ControlClient
from wardround.runtime.control.plain import plain
from wardround.runtime.control.protos import run_control_pb2 as pb
from wardround.runtime.events import Evaluated, EventStream, Notice, PrivacySpent, SiteReplied
from wardround.server.control_service import PROTOCOL, RUN_CONTROL, read_token, serve_control, socket_of
from wardround.server.desk import Limits
from wardround.server.run_live import LiveRun
from wardround.server.run_messages import event_message
from wardround.server.run_record import RunFolder
from wardround.server.run_states import RunStatus

TOKEN = "0123456789abcdef-token"


class Bench:
    """A desk with its service, and a client of it."""

    def __init__(self, folder: Path, trainer: Trainer, **changes: Any) -> None:
        (folder / "operator.token").write_text(TOKEN + "\n")
        (folder / "operator.token").chmod(0o600)
        self.folder, self.trainer = folder, trainer
        self.desk = desk_at(folder, trainer, **changes)
        self.server = serve_control(self.desk, folder)
        self.client = ControlClient(socket_of(folder), RUN_CONTROL, PROTOCOL, token=TOKEN)

    def submit(self, plan: bytes = b"plan", data: bytes = b"adapter" * 1000, **changes: Any) -> Any:
        first = pb.Submission(
            signed_plan=plan, submission=f"s{time.monotonic_ns()}", initial_bytes=len(data),
            initial_sha256=hashlib.sha256(data).digest(),
        )  # fmt: skip
        for name, value in changes.items():
            setattr(first, name, value)
        parts = [pb.SubmitPart(submission=first), *(pb.SubmitPart(chunk=data[i : i + 999])
                                                    for i in range(0, len(data), 999))]  # fmt: skip
        return self.client.send("Submit", parts, deadline_s=10)

    def ask(self, method: str, run_id: str) -> Any:
        return self.client.call(method, pb.RunRequest(run_id=run_id))

    def ended(self, run_id: str) -> None:
        until(lambda: self.ask("Status", run_id).run.status in {"finished", "failed", "stopped"})

    def close(self) -> None:
        self.trainer.go.set()
        self.client.close()
        self.server.close(0.2)
        self.desk.close(5)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A server that holds each run in round 2 until it is let go."""
    bench = Bench(tmp_path, Trainer(hold=(2,)))
    yield bench
    bench.close()


def test_a_run_from_submission_to_its_end(bench: Bench) -> None:
    """The files arrive as they were sent; list, status and why tell where it is; it ends."""
    run = bench.submit(b"signed", b"adapter" * 1000)
    until(bench.trainer.holding.is_set)
    second = bench.submit()
    folder = bench.desk.run(run.run_id).folder
    assert folder.signed_plan == b"signed"
    assert folder.initial.read_bytes() == b"adapter" * 1000
    listed = bench.client.call("List", pb.ListRequest()).runs
    assert [(r.run_id, r.status, r.place) for r in listed] == [
        (run.run_id, "training", 0), (second.run_id, "queued", 1),
    ]  # fmt: skip
    status = bench.ask("Status", run.run_id)
    assert (status.round, status.rounds, status.phase) == (2, 3, "training")
    assert {name: site.state for name, site in status.sites.items()} == dict.fromkeys(SITES, "training")
    assert status.bytes_down == 200
    why = bench.ask("Why", run.run_id)
    assert why.text == "trains: round 2"
    assert list(why.sites) == sorted(SITES)
    assert why.since > 0
    behind = bench.ask("Why", second.run_id)
    assert behind.text == "waits for its turn: 1 run is before it"
    assert [each.run_id for each in behind.ahead] == [run.run_id]
    bench.trainer.go.set()
    bench.ended(second.run_id)
    assert bench.ask("Why", run.run_id).text == "finished: completed"


def test_each_order_ends_what_it_says(bench: Bench) -> None:
    """Exclude, drain, stop and resume over the wire, and their refusals as they are."""
    run = bench.submit().run_id
    until(bench.trainer.holding.is_set)
    excluded = bench.client.call("Exclude", pb.ExcludeRequest(run_id=run, site="birch"))
    assert list(excluded.excluded) == ["birch"]
    assert bench.ask("Drain", run).status == "draining"
    stopped = bench.client.call("Stop", pb.StopRequest(run_id=run, wait_s=5))
    assert stopped.status == "stopped"
    assert not stopped.HasField("place")
    with pytest.raises(ConfigError, match="told to stop"):
        bench.client.call("Stop", pb.StopRequest(run_id=run))
    bench.trainer.go.set()
    assert bench.ask("Resume", run).status in {"queued", "offering"}
    bench.ended(run)
    with pytest.raises(ConfigError, match="cannot be resumed"):
        bench.ask("Resume", run)
    with pytest.raises(ConfigError, match="unknown run"):
        bench.ask("Status", "no such run")


@pytest.mark.parametrize(
    "changes", [{"initial_bytes": 6999}, {"initial_bytes": 7001}, {"initial_sha256": b"x" * 32}]
)
def test_an_adapter_that_did_not_arrive_whole_makes_no_run(bench: Bench, changes: dict[str, Any]) -> None:
    """Fewer or more bytes than announced, or other ones: nothing is queued, nothing lies about."""
    with pytest.raises(PeerError, match="did not arrive"):
        bench.submit(**changes)
    assert not bench.client.call("List", pb.ListRequest()).runs
    assert [path.name for path in (bench.folder / "runs").iterdir()] == [".desk.lock"]


@pytest.mark.parametrize("size", [0, 2**63])
def test_an_adapter_of_no_or_of_endless_size_is_refused(bench: Bench, size: int) -> None:
    """Before a byte of it is read."""
    with pytest.raises(ConfigError, match="no initial adapter"):
        bench.submit(initial_bytes=size)


def test_parts_in_the_wrong_order_make_no_run(bench: Bench) -> None:
    """Chunks first, two plans, nothing at all."""
    plan = pb.SubmitPart(submission=pb.Submission(signed_plan=b"p", submission="s", initial_bytes=5))
    for parts in ([], [pb.SubmitPart(chunk=b"x")], [pb.SubmitPart()], [plan, plan], [plan, pb.SubmitPart()]):
        with pytest.raises(PeerError):
            bench.client.send("Submit", parts, deadline_s=5)
    assert not bench.client.call("List", pb.ListRequest()).runs


def test_followers_see_every_event_and_every_line(bench: Bench) -> None:
    """Numbered from 1 without a gap, until the run ends; one that comes back goes on where it was."""
    run = bench.submit().run_id
    until(bench.trainer.holding.is_set)
    stream = bench.client.follow("RunEvents", pb.FollowRequest(run_id=run, follow=True))
    seen = []
    for event in stream:
        seen += [event] if event.number else []
        if event.kind == "RoundStarted" and event.round == 2:
            bench.trainer.go.set()
    assert [event.number for event in seen] == list(range(1, len(seen) + 1))
    kinds = [event.kind for event in seen]
    assert kinds[-2:] == ["RunFinished", "StatusChanged"]
    assert kinds.count("RoundFolded") == 3
    assert seen[-1].status == "finished"
    started = next(event for event in seen if event.kind == "RoundStarted")
    assert (started.round, started.bytes_down, list(started.sites)) == (1, 100, list(SITES))
    assert '"event": "RoundStarted"' in started.record_json
    again = pb.FollowRequest(run_id=run, after=seen[3].number, epoch=seen[3].epoch, follow=True)
    rest = [event.number for event in bench.client.follow("RunEvents", again) if event.number]
    assert rest == [event.number for event in seen[4:]]
    other = pb.FollowRequest(run_id=run, after=99, epoch="another life", follow=False)
    assert len([e for e in bench.client.follow("RunEvents", other) if e.number]) == len(seen)
    lines = [m for m in bench.client.follow("Logs", pb.FollowRequest(run_id=run)) if m.number]
    assert "round 3 folded: 3 contributions, 0.0 s" in [line.text for line in lines]


def test_a_slow_follower_is_told_what_it_missed_and_holds_nothing_up(tmp_path: Path) -> None:
    """1,000 events of 20 kB while it does not read: the run ends at once, what it lacks is counted."""

    class Chatty(Trainer):
        def train(self, run: Any, control: Any, events: EventStream) -> None:
            self.pause(control)
            for number in range(1000):
                events.emit(Notice("federated", "info", f"{number:05} " + "x" * 20_000))
            super().train(run, control, events)

    bench = Bench(tmp_path, Chatty(), limits=Limits(beat_s=0.1, kept=100))
    run = bench.submit().run_id
    until(bench.trainer.holding.is_set)
    stream = bench.client.follow("RunEvents", pb.FollowRequest(run_id=run, follow=True))
    read = [next(stream), next(stream)]
    bench.trainer.go.set()
    assert bench.desk.wait(run, 20).status == "finished"
    numbers, missed = [read[1].number], 0
    for event in stream:
        if event.number:
            assert event.number == numbers[-1] + event.missed + 1
            numbers.append(event.number)
            missed += event.missed
    assert missed > 100
    assert len(numbers) + missed == numbers[-1] > 1000
    bench.close()


def test_events_carry_what_a_dashboard_needs() -> None:
    """Site states, metrics, ε and bytes as typed fields; the whole event beside them."""
    from wardround.runtime.events import as_record

    replied = SiteReplied(
        "federated", 2, "amber", "late", "deadline", "no answer", 30, {"loss": 0.5, "bad": float("nan")}
    )
    spent = PrivacySpent("federated", 2, "patient", 1e-5, {"amber": 1.5})
    scored = Evaluated("federated", 2, "validation", {"accuracy": 0.9}, {"accuracy": 10})
    one, two, three = (event_message(as_record(event)) for event in (replied, spent, scored))
    assert (one.round, one.site, one.site_state, one.bytes_up) == (2, "amber", "late", 30)
    assert dict(one.metrics) == {"loss": 0.5}
    assert one.text == "round 2: amber late: no answer"
    assert dict(two.epsilon) == {"amber": 1.5}
    assert dict(three.metrics) == {"validation/accuracy": 0.9}
    assert plain(one)["record_version"] == 1
    assert plain(one)["bytes_up"] == 30


anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KINDS = ("RunStarted", "RoundStarted", "SiteReplied", "Evaluated", "PrivacySpent", "RoundFolded", "Notice")


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(KINDS) | st.text(max_size=5) | st.just("\ud800"),
    st.dictionaries(
        st.sampled_from(
            ("round", "stage", "sites", "cohort", "values", "local", "site", "status", "text", "time_s",
             "bytes_up", "bytes_down", "survivors", "part", "train_loss", "level", "reason")
        ),
        json_values,
    ),
)  # fmt: skip
def test_whatever_lies_in_an_event_file_becomes_a_message(kind: str, fields: dict[str, Any]) -> None:
    """Wrong types, huge numbers, NaN, names that are no text: a message, never an error."""
    message = event_message({"event": kind, **fields})
    assert pb.RunEvent.FromString(message.SerializeToString()).kind == kind.replace("\ud800", "?")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([method.name for method in RUN_CONTROL.methods]),
    st.binary(max_size=200)
    | st.builds(
        lambda a, b, n: pb.FollowRequest(run_id=a, epoch=b, after=n).SerializeToString(),
        st.text(max_size=50), st.text(max_size=50), st.integers(0, 2**64 - 1),
    ),
)  # fmt: skip
def test_no_message_brings_the_service_down(bench: Bench, method: str, data: bytes) -> None:
    """Random bytes and random fields for every method: a fault or a reply, in time, and no fault of ours."""
    found = next(each for each in RUN_CONTROL.methods if each.name == method)
    channel = bench.client._channel
    path, metadata = f"/{RUN_CONTROL.full_name}/{method}", [("authorization", f"Bearer {TOKEN}")]
    try:
        if found.client_streaming:
            channel.stream_unary(path)(iter([data]), timeout=5, metadata=metadata)
        elif found.server_streaming:
            list(channel.unary_stream(path)(data, timeout=5, metadata=metadata))
        else:
            channel.unary_unary(path)(data, timeout=5, metadata=metadata)
    except grpc.RpcError as error:
        assert error.code() in {  # noqa: PT017 - the call may succeed as well
            grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION,
        }  # fmt: skip
    assert method == "List" or not bench.client.call("List", pb.ListRequest()).runs


def test_a_long_list_is_one_message(bench: Bench) -> None:
    """Thousands of ended runs with long reasons: the newest ones, cut to a line, and how many more."""
    run = bench.submit()
    until(bench.trainer.holding.is_set)
    live = bench.desk.run(run.run_id)
    ended = live.record.model_copy(update={"status": RunStatus.FAILED, "reason": "ä" * 4000})
    many = [ended.model_copy(update={"run_id": f"20260101-000000-{i:08x}"}) for i in range(3000)]
    bench.desk._runs |= {r.run_id: LiveRun(RunFolder(bench.folder, r.run_id), r, 10) for r in many}
    reply = bench.client.call("List", pb.ListRequest())
    assert reply.runs[0].run_id == run.run_id
    assert (len(reply.runs), reply.left_out) == (1001, 2000)
    assert reply.ByteSize() < 1 << 20


def test_a_token_that_is_open_missing_or_none_is_refused(tmp_path: Path) -> None:
    """Server and commands read it alike."""
    path = tmp_path / "operator.token"
    with pytest.raises(StorageError, match=r"no operator\.token"):
        read_token(tmp_path)
    path.write_text(TOKEN)
    path.chmod(0o640)
    with pytest.raises(PolicyError, match="others may read") as caught:
        read_token(tmp_path)
    assert TOKEN not in str(caught.value)
    path.chmod(0o600)
    assert read_token(tmp_path) == TOKEN
    for bad in (b"", b"short", b"\xff" * 40, b"x" * 5000, b"two\nlines of a token here"):
        path.write_bytes(bad)
        with pytest.raises(StorageError):
            read_token(tmp_path)
