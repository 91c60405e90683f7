"""A site under a private plan: reserved before it trains, sealed before anything leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from private_site import UNITS, seeded, system

from wardround.client import work
from wardround.client.ledger.ledger import Ledger
from wardround.client.own_figures import on_grid
from wardround.client.round import answer
from wardround.client.work import digest_of
from wardround.core.errors import PolicyError, StorageError
from wardround.core.messages import SPENT
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.seeds import Purpose
from wardround.privacy.packing import unpack
from wardround.privacy.secagg.messages import MaskedInput, decode
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.sums.contract import TRAINING
from wardround.training.private import per_example, summing


def test_a_round_is_reserved_before_it_is_trained(
    private: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever is killed while training has paid: the row stands."""

    def dies(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "train_locally", dies)
    server = private()
    with pytest.raises(KeyboardInterrupt):
        answer(server.request(sums=(TRAINING,)), server.site)
    with server.site.privacy.charges.ledger() as ledger:
        source = ledger.source("again", sorted(set(UNITS)))
        assert ledger.epsilon(source, run="run").value > 0
        assert ledger.sealed(run="run", round=1, stage=0) is None


def test_a_sealed_round_gets_no_fresh_noise(private: Callable[..., Any]) -> None:
    """Asked anew, as after a restart, a real site refuses: its system would draw other noise."""
    server = private()
    first = answer(server.request(sums=(TRAINING,)), server.site)
    assert (first.status, first.local[SPENT] > 0) == ("ok", True)
    again = private()
    reply = answer(again.request(sums=(TRAINING,)), again.site)
    assert (reply.status, reply.code) == ("refused", "policy")
    assert not reply.sums


def test_a_simulated_site_gives_the_same_contribution_again(private: Callable[..., Any]) -> None:
    """Its noise comes from the seed: the ledger knows the draw, and charges it once."""
    replies = []
    for _ in range(2):
        server = private(seeded, simulation=True)
        request = server.request(sums=(TRAINING,))
        reply = answer(request, server.site)
        assert reply.status == "ok", reply.reason
        replies.append((server.read(request, reply, TRAINING)[0], reply.local[SPENT]))
    np.testing.assert_array_equal(replies[0][0], replies[1][0])
    assert replies[0][1] == replies[1][1]


def test_two_sites_with_the_same_rows_draw_different_noise(
    private: Callable[..., Any], tmp_path: Path
) -> None:
    """From the operating system: nobody can repeat it."""
    vectors = []
    for _ in range(2):
        server = private()
        request = server.request(sums=(TRAINING,))
        vectors.append(server.read(request, answer(request, server.site), TRAINING)[0])
        (tmp_path / "ledger").rename(tmp_path / f"ledger_{len(vectors)}")
    assert np.abs(vectors[0] - vectors[1]).max() > 0


@pytest.mark.parametrize("purpose", [Purpose.BATCH, Purpose.NOISE])
def test_a_seed_is_refused_where_nothing_is_simulated(
    private: Callable[..., Any], tmp_path: Path, purpose: Purpose
) -> None:
    """Of the batches or of the noise, before anything is charged: the site says why, and sends nothing."""
    server = private(lambda what, round: (seeded if what is purpose else system)(what, round))
    reply = answer(server.request(sums=(TRAINING,)), server.site)
    assert (reply.status, reply.code) == ("refused", "policy")
    assert purpose.value in reply.reason
    assert not reply.sums
    assert not (tmp_path / "ledger").exists()


def test_a_share_from_a_seed_is_refused_where_nothing_is_simulated(private: Callable[..., Any]) -> None:
    """Whoever knows the seed takes this site's part of the noise off the sum."""
    distributed = PrivacyRules(unit="patient", epsilon=4.0, delta=1e-2, noise="distributed", sample_rate=0.5)
    real = private(lambda what, round: (seeded if what is Purpose.SHARE else system)(what, round))
    privacy = replace(real.site.privacy, rules=distributed)
    with pytest.raises(PolicyError, match="share from a seed"):
        privacy.share(1)
    assert replace(privacy, simulation=True).share(1).repeatable
    assert not replace(privacy, sources=system).share(1).repeatable
    assert real.site.privacy.share(1) is None  # its noise is added to each step


def test_what_has_no_rule_is_refused_before_it_is_charged(
    private: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of the parameter; a round that cannot be trained costs nobody anything."""
    monkeypatch.setattr(per_example, "rule_of", lambda _: None)
    server = private()
    reply = answer(server.request(sums=(TRAINING,)), server.site)
    assert (reply.status, reply.code, reply.sums) == ("failed", "configuration", {})
    assert "no rule gives the gradient" in reply.reason
    assert not (tmp_path / "ledger").exists()


def test_what_mixes_examples_is_refused_before_it_is_charged(
    private: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything has a rule, and the gradients depend on the batch: seen on made-up rows, and by name."""

    def over_all(task: Any, model: Any, tensors: Any, counts: Any) -> Any:
        return task.example_losses(model, tensors) * len(counts) / counts

    monkeypatch.setattr(summing, "example_means", over_all)
    server = private()
    server.site.bench.apart.clear()  # a bench of the whole run of tests
    reply = answer(server.request(sums=(TRAINING,)), server.site)
    assert (reply.status, reply.code, reply.sums) == ("failed", "configuration", {})
    assert "depends on what is beside it" in reply.reason
    assert not (tmp_path / "ledger").exists()


def test_what_leaves_is_what_the_ledger_has_sealed(private: Callable[..., Any]) -> None:
    """The very contribution, before its masks."""
    server = private()
    request = server.request(sums=(TRAINING,))
    reply = answer(request, server.site)
    message = decode(reply.sums[TRAINING], MaskedInput, decode(request.sums[TRAINING], SignedOffer).offer)
    _, lanes = server.site.parties.kept[TRAINING]
    with server.site.privacy.charges.ledger() as ledger:
        assert ledger.sealed(run="run", round=1, stage=0) == digest_of(lanes)
    offer = decode(request.sums[TRAINING], SignedOffer).offer
    np.testing.assert_array_equal(
        unpack(message.coordinates, offer.coordinates, offer.bits), lanes.coordinates
    )


@pytest.mark.parametrize("error", [StorageError("the disk is full"), KeyboardInterrupt()])
def test_nothing_leaves_that_could_not_be_sealed(
    private: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Neither now nor in another attempt; once the ledger can be written, that very one is sealed."""

    def full(*_: Any, **__: Any) -> None:
        raise error

    server = private()
    first = server.request(sums=(TRAINING,))
    again = replace(server.request(sums=(TRAINING,), attempt=1), broadcast=first.broadcast)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "seal", full)
        for request in (first, again):
            if isinstance(error, StorageError):
                reply = answer(request, server.site)
                assert (reply.status, reply.code, reply.sums) == ("failed", "storage", {})
            else:
                with pytest.raises(KeyboardInterrupt):
                    answer(request, server.site)
    _, kept = server.site.parties.kept[TRAINING]
    monkeypatch.setattr(work, "train_locally", None)  # nothing is drawn anew
    assert answer(again, server.site).status == "ok"
    with server.site.privacy.charges.ledger() as ledger:
        assert ledger.sealed(run="run", round=1, stage=0) == digest_of(kept)


def test_losses_and_counts_stay_at_a_private_site(
    private: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the round counted, its weight alone rides beside the contribution."""
    plain = work.train_locally

    def counting(*args: Any, **keywords: Any) -> Any:
        return replace(plain(*args, **keywords), loss_sum=9.0, targets=6)

    monkeypatch.setattr(work, "train_locally", counting)
    server = private()
    request = server.request(sums=(TRAINING,))
    reply = answer(request, server.site)
    counters = server.read(request, reply, TRAINING)[1]
    assert counters.vector.tolist() == [1, 0, 0]
    assert not [name for name in reply.local if name.startswith("train.")]


def test_a_site_that_cannot_pay_refuses_the_round(private: Callable[..., Any]) -> None:
    """With the code of a budget; nothing is trained, nothing leaves."""
    server = private(cap=0.5)
    reply = answer(server.request(sums=(TRAINING,)), server.site)
    assert (reply.status, reply.code) == ("refused", "budget")
    assert SPENT not in reply.local
    assert not reply.sums


def test_nothing_exact_is_in_a_reply_of_a_real_site(private: Callable[..., Any]) -> None:
    """Beside the contribution: what was spent, and times."""
    server = private()
    reply = answer(server.request(), server.site)
    assert set(reply.local) == {SPENT, "seconds", "seconds.training", "seconds.evaluation"}
    times = {name: value for name, value in reply.local.items() if name.startswith("seconds")}
    assert times.keys() == {"seconds", "seconds.training", "seconds.evaluation"}
    assert all(value == on_grid(value) for value in times.values())


def test_times_leave_a_private_site_on_a_grid(
    private: Callable[..., Any], make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a refusal; a simulation measures them."""

    def replied(server: Any) -> Any:
        ticks = count()
        with monkeypatch.context() as patch:
            patch.setattr("time.perf_counter", lambda: 5.0 * next(ticks))
            return answer(server.request(), server.site)

    def times(server: Any) -> list[float | None]:
        local = replied(server).local
        return [local.get(name) for name in ("seconds", "seconds.training", "seconds.evaluation")]

    assert times(private()) == [32.0, 8.0, 8.0]  # six readings of the clock: 25 s
    (tmp_path / "ledger").rename(tmp_path / "first")
    refused = replied(private(cap=0.5))
    assert (refused.code, refused.local) == ("budget", {"seconds.evaluation": 8.0})
    (tmp_path / "ledger").rename(tmp_path / "second")
    assert times(private(seeded, simulation=True)) == times(make()) == [25.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("took", "left"),
    [(5.3, 2.7), (0.25, 0.75), (2400.0, 300.0), (2701.0, 359.0), (3061.0, 359.0), (3421.0, 0.0)],
)
def test_a_private_answer_leaves_on_the_grid_as_well(
    private: Callable[..., Any],
    make: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    held: list[float],
    took: float,
    left: float,
) -> None:
    """Also a refusal; near the deadline (an hour) at three fixed shares of it. Others wait for nothing."""

    def asked(server: Any) -> list[float]:
        times = iter([100.0, 100.0 + took])
        request = server.request(sums=(TRAINING,))
        with monkeypatch.context() as patch:
            patch.setattr("wardround.client.round.monotonic", lambda: next(times))
            answer(request, server.site)
        waited = list(held)
        held.clear()
        return waited

    server = private()
    assert server.site.plan.rounds.deadline_s == 3600
    assert asked(server) == pytest.approx([left])
    if took == 5.3:  # whose process is ended after eight seconds does not sleep into that
        server = private()
        object.__setattr__(server.site, "message_s", 8.0)
        assert asked(server) == pytest.approx([6.0 - took])
    (tmp_path / "ledger").rename(tmp_path / "first")
    assert asked(private(cap=0.5)) == pytest.approx([left])
    (tmp_path / "ledger").rename(tmp_path / "second")
    assert asked(private(seeded, simulation=True)) == asked(make()) == []


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, 1), (1e-9, 1), (1.0, 1), (1.0000001, 2), (2.0, 2), (5.3, 8), (8.01, 16)]
)
def test_the_grid_is_of_powers_of_two(seconds: float, told: float) -> None:
    """Rounded up, and nothing below the finest."""
    assert on_grid(seconds) == told
