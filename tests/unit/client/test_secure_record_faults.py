"""A full disk or a kill at any write of a record: the site answers nothing that it could forget."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.parties import Parties
from wardround.client.sealed_files import Owner, storage_key
from wardround.client.secure_record import FileRecord, KeptContributions
from wardround.core.errors import PeerError, StorageError
from wardround.core.messages import Request
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.messages import encode
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.sums.contract import TRAINING, Lanes
from wardround.privacy.sums.phased import PhasedParty
from wardround.runtime import _durable

PLAN, BROADCAST, SITE = digest("plan"), digest("broadcast"), "site_00"
OWNER = Owner(run_id="run", plan=PLAN, site=SITE)
FULL = OSError(errno.ENOSPC, "No space left on device")


class KilledError(BaseException):
    """The process ends here."""


@contextmanager
def failing(call: str, error: BaseException, *, after: int = 0) -> Iterator[None]:
    """A call of the operating system that fails after so many that do not; who is killed does not tidy up."""
    real, left = getattr(os, call), [after]

    def fail(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        if isinstance(error, KilledError):
            patch.setattr(_durable, "_remove", lambda path: None)
        yield


BEFORE = [("fsync", FULL), ("replace", FULL), ("fsync", KilledError()), ("replace", KilledError())]
before_the_rename = pytest.mark.parametrize(("call", "error"), BEFORE, ids=lambda value: repr(value)[:20])


@pytest.fixture
def group(consortium: Callable[..., Any], tmp_path: Path) -> Any:
    """Six sites, the first of them over files."""
    made = consortium(6)
    made.records[SITE] = FileRecord(tmp_path, OWNER, TRAINING, storage_key(tmp_path))
    made.restart()
    return made


@before_the_rename
def test_an_offer_that_cannot_be_remembered_is_not_answered(
    group: Any, tmp_path: Path, call: str, error: BaseException
) -> None:
    """The record is the one before; once there is room, or a new process, the same offer is taken."""
    group.advertise(SITE, group.offer())
    with failing(call, error), pytest.raises((StorageError, KilledError)):
        group.advertise(SITE, group.offer(round=2))
    group.restart(SITE)
    assert group.records[SITE].load().place == (1, 0, 0)
    group.advertise(SITE, group.offer(round=2))
    assert group.records[SITE].load().place == (2, 0, 0)
    assert not list(tmp_path.glob(".*"))


def test_an_offer_that_was_remembered_and_not_answered_is_not_taken_again(group: Any) -> None:
    """After the rename the record is ahead of what was said: the next attempt has a higher number."""
    for attempt, error in enumerate((FULL, KilledError())):
        with failing("fsync", error, after=1), pytest.raises((StorageError, KilledError)):
            group.advertise(SITE, group.offer(attempt=attempt))
        group.restart(SITE)
        with pytest.raises(PeerError, match="not newer"):
            group.advertise(SITE, group.offer(attempt=attempt))
    group.check(group.run(group.offer(attempt=2)), group.offer())


def test_a_restart_before_the_unmask_answer_keeps_cohort_and_threshold(group: Any) -> None:
    """The next attempt has those of the first one."""
    group.to_survivors(group.offer())
    group.restart()
    with pytest.raises(PeerError, match="changes the cohort or the threshold"):
        group.advertise("site_00", group.offer(attempt=1, threshold=6))
    group.check(group.run(group.offer(attempt=1)), group.offer())


def to_unmask(group: Any, offer: Any) -> Any:
    """A relay that waits for the unmask answers."""
    relay, survivors = group.to_survivors(offer)
    for name in survivors:
        relay.take_confirmation(group.sites[name].confirm(relay.survivors()))
    return relay


@before_the_rename
def test_shares_that_cannot_be_remembered_are_not_given(group: Any, call: str, error: BaseException) -> None:
    """A restarted site knows of no answer, and another attempt is safe: it gave none."""
    relay = to_unmask(group, group.offer())
    with failing(call, error), pytest.raises((StorageError, KilledError)):
        group.sites[SITE].unmask(relay.confirmed())
    group.restart(SITE)
    assert group.records[SITE].load().survivors == {}
    with pytest.raises(PeerError, match="out of its order"):
        group.sites[SITE].unmask(relay.confirmed())
    group.check(group.run(group.offer(attempt=1)), group.offer())


def test_an_answer_that_was_remembered_and_not_given_is_given_later(group: Any) -> None:
    """Killed between the two, a new process gives the server what it was asked for, and the sum opens."""
    offer = group.offer()
    relay = to_unmask(group, offer)
    with failing("fsync", KilledError(), after=1), pytest.raises(KilledError):
        group.sites[SITE].unmask(relay.confirmed())
    group.restart(SITE)
    answer = group.sites[SITE].repeat(relay.confirmed().confirmations[0].survived)
    relay.take_unmasking(answer)
    for name in relay.survivors().sites:
        if name != SITE:
            relay.take_unmasking(group.sites[name].unmask(relay.confirmed()))
    group.check(relay.open(), offer)


@before_the_rename
def test_a_contribution_that_cannot_be_kept_is_not_announced(
    group: Any, tmp_path: Path, call: str, error: BaseException
) -> None:
    """No key is made for it, no offer counts as accepted, and the one before is still there."""
    kept = KeptContributions(tmp_path, OWNER, storage_key(tmp_path))
    parties = Parties({TRAINING: PhasedParty(group.member(SITE))}, kept)

    def begin(round: int) -> bytes:
        offer = group.offer(round=round)
        message = encode(SignedOffer.by(group.server, offer))
        request = Request("run", PLAN.hex(), round, SITE, {TRAINING: message})
        lanes = parties.kept[TRAINING][1] if round > 1 else Lanes(*group.inputs(offer, SITE))
        return parties.begin(TRAINING, request, BROADCAST, lanes, lambda _: None)

    begin(1)
    _, lanes = kept[TRAINING]
    with failing(call, error), pytest.raises((StorageError, KilledError)):
        begin(2)
    place, found = KeptContributions(tmp_path, OWNER, storage_key(tmp_path))[TRAINING]
    assert place == (1, 0, BROADCAST)
    np.testing.assert_array_equal(found.coordinates, lanes.coordinates)
    assert group.records[SITE].load().place == (1, 0, 0)
    begin(2)
    assert (kept[TRAINING][0], group.records[SITE].load().place) == ((2, 0, BROADCAST), (2, 0, 0))
