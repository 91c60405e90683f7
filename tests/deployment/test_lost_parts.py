"""What a cut line loses of one request or answer, at the server: it comes again, and counts once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from deployed import Pair, make_pair
from fleet_client import OPEN, SiteClient
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.corestate import sql_corestate
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from full_disk import full_disk

from wardround.server.objects import SMALL
from wardround.server.superlink import FlowerRun, SuperLink

NAMES = (f"site{number}" for number in itertools.count())
At = tuple[SiteClient, Node, FlowerRun, int]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, SuperLink]]:
    """A server."""
    pair = make_pair(tmp_path_factory.mktemp("served"))
    with pair.server() as link:
        yield pair, link
        while OPEN:
            OPEN.pop().close()


@pytest.fixture
def at(served: tuple[Pair, SuperLink]) -> Iterator[At]:
    """A site that is online, a run, and the site's node in it."""
    pair, link = served
    name = next(NAMES)
    link.admit(name, pair.key(name))
    site, run = SiteClient(pair, link, name), link.open_run(name)
    yield site, site.activate(), run, run.node_of(name)
    run.close()


def asked(run: FlowerRun, node_id: int, number: int) -> str:
    """The id of a message that was sent."""
    content = RecordDict({"c": ConfigRecord({"x": number})})
    (message_id,) = run.grid.push_messages([Message(content, node_id, "train", ttl=600)])
    return message_id


def pending(site: SiteClient, node: Node) -> list[str]:
    """Ids of what the node is given when it asks."""
    found = site.fleet.PullMessages(PullMessagesRequest(node=node)).messages_list
    return [message.metadata.message_id for message in found]


def answer_to(message: Message) -> Message:
    """In some parts."""
    return Message(RecordDict({"c": ConfigRecord({"x": b"1" * 1000})}), reply_to=message)


def test_a_message_that_got_lost_on_its_way_is_given_again(at: At) -> None:
    """Until the node confirms that it has all of it; the next one comes after it, and neither twice."""
    site, node, run, node_id = at
    first, second = asked(run, node_id, 1), asked(run, node_id, 2)
    assert pending(site, node) == [first]
    assert pending(site, node) == [first]
    assert site.pull(node, run.run_id, confirm=False).metadata.message_id == first
    assert site.pull(node, run.run_id).metadata.message_id == first
    assert site.pull(node, run.run_id).metadata.message_id == second
    assert pending(site, node) == []


def test_a_part_whose_receipt_got_lost_is_sent_again(at: At) -> None:
    """It is no error, and the reply counts once."""
    site, node, run, node_id = at
    message_id = asked(run, node_id, 1)
    reply = answer_to(site.pull(node, run.run_id))
    session = site.announce(node, reply)
    parts = list(session.objects_to_push)
    assert len(parts) == 3
    assert all(site.upload(node, reply, part, session.session_id) for part in [parts[0], *parts, parts[0]])
    assert [found.metadata.reply_to_message_id for found in run.grid.pull_messages([message_id])] == [
        message_id
    ]
    assert list(run.grid.pull_messages([message_id])) == []


def test_an_announcement_whose_receipt_got_lost_is_made_again(at: At) -> None:
    """What is there is not asked for a second time."""
    site, node, run, node_id = at
    message_id = asked(run, node_id, 1)
    reply = answer_to(site.pull(node, run.run_id))
    lost = site.announce(node, reply)
    assert site.upload(node, reply, lost.objects_to_push[0], lost.session_id)
    again = site.announce(node, reply)
    assert set(again.objects_to_push) == set(lost.objects_to_push[1:])
    assert all(site.upload(node, reply, part, again.session_id) for part in again.objects_to_push)
    assert len(list(run.grid.pull_messages([message_id]))) == 1


def test_a_part_that_the_servers_disk_does_not_take_is_put_off(
    at: At, served: tuple[Pair, SuperLink], caplog: pytest.LogCaptureFixture
) -> None:
    """Flower says that it was not stored, counts it as sent, and its node drops the reply over that."""
    site, node, run, node_id = at
    message_id = asked(run, node_id, 1)
    message = site.pull(node, run.run_id)
    reply = Message(RecordDict({"c": ConfigRecord({"x": b"1" * 9000})}), reply_to=message)
    session = site.announce(node, reply)
    contents = {name: len(part.deflate()) for name, part in get_all_nested_objects(reply).items()}
    (large,) = (part for part in session.objects_to_push if contents[part] > SMALL)
    with full_disk(served[0].folder):
        for _ in range(3):
            with pytest.raises(httpx.HTTPStatusError, match="503"):
                site.upload(node, reply, large, session.session_id)
    assert sum("cannot be kept" in line for line in caplog.messages) == 1
    assert all(site.upload(node, reply, part, session.session_id) for part in session.objects_to_push)
    assert len(list(run.grid.pull_messages([message_id]))) == 1


def test_an_upload_may_stop_for_longer_than_flower_waits(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower drops a reply, and the request with it, that was not whole 180 s after its last part."""
    site, node, run, node_id = at
    message_id = asked(run, node_id, 1)
    reply = answer_to(site.pull(node, run.run_id))
    session = site.announce(node, reply)
    real = sql_corestate.now
    monkeypatch.setattr(sql_corestate, "now", lambda: real() + timedelta(hours=5))
    assert all(site.upload(node, reply, part, session.session_id) for part in session.objects_to_push)
    assert len(list(run.grid.pull_messages([message_id]))) == 1


def test_what_nobody_waits_for_any_more_is_not_given_to_a_site(at: At) -> None:
    """Fetched or not; what it still answers is dropped, and nothing of it stays."""
    site, node, run, node_id = at
    first, second, third = (asked(run, node_id, number) for number in range(3))
    message = site.pull(node, run.run_id)
    assert message.metadata.message_id == first
    half = answer_to(message)
    session = site.announce(node, half)
    site.upload(node, half, session.objects_to_push[0], session.session_id)
    run.withdraw([first, second, "unknown"])
    assert not site.upload(node, half, session.objects_to_push[1], session.session_id)
    assert site.push(node, answer_to(message)) == []
    assert pending(site, node) == [third]
    assert list(run.grid.pull_messages([first, second])) == []
    run.withdraw([third])
    assert pending(site, node) == []
