"""A site that is asked for a round again: by the same server, or by one that was killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wardround.client.round import answer
from wardround.privacy.sums.contract import EVALUATION, TRAINING

Make = Callable[..., Any]


@pytest.mark.parametrize("state", ["reset", "keep"])
def test_the_same_request_gives_the_same_reply(make: Make, state: str) -> None:
    """Asked again for a round, also after a later one, a site in a new process answers with the same bits."""
    server = make(optimiser_state=state)

    def both(server: Any) -> list[np.ndarray[Any, Any]]:
        asked = [server.request(round) for round in (1, 2)]
        return [server.read(request, answer(request, server.site), TRAINING)[0] for request in asked]

    first, again = both(server), both(server.restarted())
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != first[1]).any()


def test_a_server_that_was_killed_asks_again_and_gets_what_was_kept(
    make: Make, trained: Counter[int]
) -> None:
    """The next attempt comes with the broadcast: the same contribution, and nothing is trained anew."""
    server = make()
    first = server.request()
    before = server.read(first, answer(first, server.site), TRAINING)[0]
    assert trained == {1: 1}
    again = replace(server.request(attempt=1), broadcast=first.broadcast)
    reply = answer(again, server.site)
    assert (reply.status, set(reply.sums)) == ("ok", {TRAINING, EVALUATION})
    np.testing.assert_array_equal(server.read(again, reply, TRAINING)[0], before)
    assert trained == {1: 1}


def test_a_site_that_missed_the_first_attempt_trains_in_the_next(make: Make, trained: Counter[int]) -> None:
    """The broadcast that comes with it is all that the site needs."""
    server = make()
    request = replace(server.request(attempt=2), broadcast=server.request().broadcast)
    reply = answer(request, server.site)
    assert (reply.status, set(reply.sums)) == ("ok", {TRAINING, EVALUATION})
    assert trained == {1: 1}
