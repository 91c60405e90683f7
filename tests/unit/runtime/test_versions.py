"""Two versions of Wardround meet: both say which, before anything else is read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from wardround import __version__
from wardround.client.flower_app import client_app
from wardround.core.enrolment import EnrolmentRules
from wardround.core.errors import PeerError, QuorumError
from wardround.core.messages import Reply, Request
from wardround.core.plan_offers import PlanAnswer, PlanOffer
from wardround.runtime import flower_codec, offer_codec
from wardround.runtime.events import EventStream, PlanAnswered, as_record
from wardround.runtime.flower_records import OTHER_VERSION, OtherVersionError
from wardround.server.enrolment import Enrolling, EnrolmentBook, enrol
from wardround.server.grid_transport import GridTransport
from wardround.server.offer_grid import GridOffers
from wardround.server.run_view import sentence

OFFER = PlanOffer("run1", "basel", b"plan", b"certificate", b"r" * 32, __version__)
ANSWER = PlanAnswer("run1", "basel", "accepted", version=__version__)
REQUEST = Request("run1", "d" * 64, 1, "basel", {})
REPLY = Reply("run1", "d" * 64, 1, "basel")


def of_another_version(records: RecordDict, protocol: int = 99, **more: Any) -> RecordDict:
    """The same message as a later version might write it."""
    manifest = json.loads(str(records.config_records["manifest"]["json"]))
    text = json.dumps(manifest | {"protocol": protocol, "new_field": 1} | more)
    records.config_records["manifest"] = ConfigRecord({"json": text})
    return records


@pytest.mark.parametrize(
    ("records", "decode"),
    [
        (lambda: offer_codec.encode_offer(OFFER)[0], offer_codec.decode_offer),
        (lambda: offer_codec.encode_answer(ANSWER)[0], offer_codec.decode_answer),
        (lambda: flower_codec.encode_request(REQUEST)[0], flower_codec.addressee),
        (lambda: flower_codec.encode_reply(REPLY)[0], flower_codec.decode_reply),
    ],
    ids=["offer", "answer", "request", "reply"],
)
def test_another_protocol_is_named_with_ours(
    records: Callable[[], RecordDict], decode: Callable[[RecordDict], Any]
) -> None:
    """Found, expected and remedy; a field that this version does not know does not come before it."""
    decode(records())
    with pytest.raises(OtherVersionError) as caught:
        decode(of_another_version(records(), version="9.9.9"))
    for said in (caught.value.what, str(caught.value.found)):
        assert "protocol 99 of Wardround 9.9.9" in said
    assert __version__ in str(caught.value.expected)
    assert "same version" in str(caught.value.remedy)


def test_a_version_before_they_were_named_is_said_as_well() -> None:
    """Protocol 1 named none."""
    with pytest.raises(OtherVersionError, match="protocol 1 of another version"):
        offer_codec.decode_offer(of_another_version(offer_codec.encode_offer(OFFER)[0], 1, version=""))


@pytest.mark.parametrize("protocol", [True, "2", -1, 10**9, None, 2.5])
def test_what_is_no_protocol_is_a_malformed_message(protocol: Any) -> None:
    """Nor is it repeated to anybody."""
    with pytest.raises(PeerError, match="not valid") as caught:
        offer_codec.decode_offer(of_another_version(offer_codec.encode_offer(OFFER)[0], protocol))
    assert not isinstance(caught.value, OtherVersionError)


@pytest.mark.parametrize("version", ["x" * 41, "<script>", "1\n2", 7])
def test_a_version_is_short_and_plain(version: Any) -> None:
    """A site cannot write into an operator's terminal with it."""
    records = offer_codec.encode_answer(ANSWER)[0]
    manifest = json.loads(str(records.config_records["manifest"]["json"])) | {"version": version}
    records.config_records["manifest"] = ConfigRecord({"json": json.dumps(manifest)})
    with pytest.raises(PeerError, match="not valid"):
        offer_codec.decode_answer(records)


@pytest.fixture(autouse=True)
def _sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's message constructor asks who sends."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Grid:
    """Carries one message to a site's app and its reply back."""

    def __init__(self, site: Callable[[Message], Message]) -> None:
        self.site, self.replies = site, []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for sent in messages:
            sent.metadata.__dict__["_message_id"] = "m1"
            self.replies.append(self.site(sent))
        return ["m1" for _ in self.replies]

    def pull_messages(self, _: Iterable[str]) -> list[Message]:
        found, self.replies = self.replies, []
        return found


def old_site(sent: Message) -> Message:
    """A site of today that gets what a later server sends."""
    app = client_app(None, lambda _: ANSWER)  # type: ignore[arg-type]  # it is not asked to train
    of_another_version(sent.content, version="9.9.9")
    return app(sent, Context(1, 7, {}, RecordDict(), {}))


def later_site(sent: Message) -> Message:
    """A later site that answers this server in its own way."""
    return Message(of_another_version(offer_codec.encode_answer(ANSWER)[0], version="9.9.9"), reply_to=sent)


def silent_site(sent: Message) -> Message:
    """A site that says it by code alone."""
    return Message(Error(OTHER_VERSION, ""), reply_to=sent)


@pytest.mark.parametrize(
    ("site", "named"),
    [(old_site, "9.9.9"), (later_site, "9.9.9"), (silent_site, "does not say")],
    ids=["site reads another", "server reads another", "by code alone"],
)
def test_the_operator_is_told_which_site_and_which_version(
    site: Callable[[Message], Message], named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`why` names both while the run waits, and so do its log and its end; the site's own log has it too."""
    now, said, events = [0.0], [], []

    def waiting(text: str, sites: Any) -> None:
        said.append((text, tuple(sites)))
        now[0] += 100.0

    class Sink:
        def emit(self, event: Any) -> None:
            events.append(event)

        def close(self) -> None:
            """Nothing."""

    grid: Any = Grid(site)
    offers = GridOffers(grid, lambda _: 7, 600.0)
    asking = Enrolling(
        {"basel": OFFER}, EnrolmentRules(least_sites=1, offer_expires_s=500.0), offers,
        EnrolmentBook(tmp_path / "enrolment.json", "run1"), EventStream([Sink()]), lambda: now[0], waiting,
    )  # fmt: skip
    with caplog.at_level(logging.ERROR), pytest.raises(QuorumError) as caught:
        enrol(asking)
    text, sites = said[-1]
    assert sites == ("basel",)
    assert "basel: waiting, version (" in text
    assert named in text
    assert named in str(caught.value)
    (event,) = [event for event in events if isinstance(event, PlanAnswered)]
    told = sentence(as_record(event))
    assert told is not None
    assert told[0] == "warning"
    assert named in told[1]
    if site is old_site:
        assert "remedy: install the same version" in caplog.text


def test_a_site_that_is_updated_in_the_middle_of_a_run_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Its reply counts as failed, code `version`; the round goes on."""

    def updated(sent: Message) -> Message:
        return old_site(sent)

    grid: Any = Grid(updated)
    transport = GridTransport(grid, lambda _: 7, 0.0)
    transport.send([REQUEST])
    ((reply, _),) = transport.receive(0.1)
    assert (reply.status, reply.code) == ("failed", "version")
    assert "protocol 99 of Wardround 9.9.9" in reply.reason
    assert "9.9.9" in caplog.text
