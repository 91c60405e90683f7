"""Reserve, settle, seal: nothing charged twice, nothing charged too little, one contribution a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wardround.client.ledger.ledger import Ledger
from wardround.core.errors import ConfigError, InternalError, PolicyError
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.mechanisms import Gaussian, NoPrivacy, SampledGaussian

IDS = [f"patient {i}" for i in range(20)]
ONE, OTHER = "11" * 32, "22" * 32


def steps(ledger: Ledger) -> int:
    """Charged in all."""
    return sum(tally.steps.total() for tally in ledger.book.totals)


def test_a_reservation_stands_before_data_is_touched_and_after_a_restart(
    ledger: Ledger, folder: Path, asked: Any
) -> None:
    """Every unit of the source is charged; ε is that of the account of the same mechanisms."""
    source = ledger.source("ward", IDS)
    for round in range(1, 4):
        asked.reserve(ledger, source, round)
    before = ledger.epsilon(source, run="run")
    three = Account(mechanisms=(asked.STEP.model_copy(update={"steps": 30}),))
    assert before == three.epsilon(1e-5, units=1000)
    assert (before.unit, before.accountant) == ("patient", "renyi")
    total = ledger.epsilon(source)
    assert total.value > before.value  # at the order of the cap, which was not chosen for this run
    ledger.close()
    with Ledger.open(folder) as again:
        source = again.source("ward", IDS)
        assert (again.epsilon(source), again.epsilon(source, run="run")) == (total, before)
        assert again.epsilon(source, run="another").value == 0
        assert again.account(source, run="run") == three


def test_the_same_draw_is_charged_once(ledger: Ledger, folder: Path, asked: Any) -> None:
    """A resumed run with repeatable noise asks again, in this process or a later one."""
    source = ledger.source("ward", IDS)
    assert not asked.reserve(ledger, source).again
    assert asked.reserve(ledger, source).again
    ledger.close()
    with Ledger.open(folder) as resumed:
        assert asked.reserve(resumed, resumed.source("ward", IDS)).again
        assert (steps(resumed), resumed.head().rows) == (10, 3)


def test_another_draw_of_the_same_round_is_charged_on_top(ledger: Ledger, asked: Any) -> None:
    """Fresh noise after a crash, before the seal; stages and rounds are told apart."""
    source = ledger.source("ward", IDS)
    for change in ({}, {"draw": "second"}, {"stage": 1}, {"round": 2}, {"run": "other"}):
        asked.reserve(ledger, source, **change)
    assert steps(ledger) == 50


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": SampledGaussian(sample_rate=0.01, sigma=1.9, steps=10)},
        {"mechanism": SampledGaussian(sample_rate=0.01, sigma=2.0, steps=11)},
        {"unit": "example", "most_examples": 2},
        {"plan": ONE},
    ],
)
def test_a_draw_that_is_asked_for_otherwise_is_refused(
    ledger: Ledger, asked: Any, change: dict[str, Any]
) -> None:
    """More steps or less noise under an old id would be charged as the old ones."""
    source = ledger.source("ward", IDS)
    asked.reserve(ledger, source)
    with pytest.raises(PolicyError, match=r"another plan|stands in the ledger otherwise"):
        asked.reserve(ledger, source, **change)
    other = ledger.source("another", [*IDS, "one more"])
    with pytest.raises(PolicyError, match="stands in the ledger otherwise"):
        asked.reserve(ledger, other)
    assert steps(ledger) == 10


def test_a_run_has_one_plan(ledger: Ledger, asked: Any) -> None:
    """Another plan under the same id would hide what was fixed beforehand."""
    source = ledger.source("ward", IDS)
    asked.reserve(ledger, source)
    with pytest.raises(PolicyError, match="has another plan"):
        asked.reserve(ledger, source, 2, plan=ONE)


def test_settling_lowers_to_what_ran_and_no_further(ledger: Ledger, folder: Path, asked: Any) -> None:
    """Once, in the process that reserved, and never above; it survives a restart."""
    source = ledger.source("ward", IDS)
    first, second = asked.reserve(ledger, source), asked.reserve(ledger, source, 2)
    assert ledger.settle(first, 4) == 4
    assert ledger.settle(first, 4) == 4
    assert ledger.settle(first, 3) == 4, "it was lowered a second time"
    assert ledger.settle(second, 10) == 10
    for count in (-1, 5):
        with pytest.raises(InternalError, match="only lower"):
            ledger.settle(first, count)
    with pytest.raises(InternalError, match="only lower"):
        ledger.settle(second, 11)
    assert steps(ledger) == 14
    four = Account(mechanisms=(asked.STEP.model_copy(update={"steps": 14}),))
    assert ledger.epsilon(source, run="run") == four.epsilon(1e-5, units=1000)
    ledger.close()
    with Ledger.open(folder) as again:
        assert steps(again) == 14


def test_a_crash_refunds_nothing(ledger: Ledger, folder: Path, asked: Any) -> None:
    """Whoever did not reserve it does not know what ran: it stays charged in full."""
    reservation = asked.reserve(ledger, ledger.source("ward", IDS))
    ledger.close()
    with Ledger.open(folder) as again:
        assert again.settle(reservation, 0) == 10
        repeated = asked.reserve(again, again.source("ward", IDS))
        assert again.settle(repeated, 1) == 10
        assert steps(again) == 10


def test_a_draw_that_was_asked_for_twice_is_not_lowered(ledger: Ledger, asked: Any) -> None:
    """The first asker may have run all of it before the second one stopped early."""
    source = ledger.source("ward", IDS)
    first = asked.reserve(ledger, source)
    second = asked.reserve(ledger, source)
    assert (ledger.settle(first, 2), ledger.settle(second, 2), steps(ledger)) == (10, 10, 10)


def test_a_draw_that_was_lowered_does_not_run_again(ledger: Ledger, asked: Any) -> None:
    """It would run ten steps and be charged for four."""
    source = ledger.source("ward", IDS)
    ledger.settle(asked.reserve(ledger, source), 4)
    with pytest.raises(PolicyError, match="settled at fewer steps"):
        asked.reserve(ledger, source)
    asked.reserve(ledger, source, draw="second")
    assert steps(ledger) == 14


def test_what_was_never_reserved_is_not_settled(ledger: Ledger, make: Any, asked: Any) -> None:
    """Nor is a source of another ledger charged."""
    other = make()
    source = other.source("ward", IDS)
    reservation = asked.reserve(other, source)
    with pytest.raises(InternalError, match="only lower"):
        ledger.settle(reservation, 1)
    with pytest.raises(InternalError, match="another ledger's"):
        asked.reserve(ledger, source)


def test_a_sealed_stage_has_one_contribution(ledger: Ledger, folder: Path, asked: Any) -> None:
    """The same one passes, also after a restart; another one, or another draw, does not, and is on record."""
    source = ledger.source("ward", IDS)
    place = {"run": "run", "round": 1, "stage": 0}
    reservation = asked.reserve(ledger, source)
    assert ledger.sealed(**place) is None
    ledger.seal(**place, digest=ONE)
    ledger.close()
    with Ledger.open(folder) as again:
        source = again.source("ward", IDS)
        assert again.sealed(**place) == ONE
        rows = again.head().rows
        again.seal(**place, digest=ONE)
        assert asked.reserve(again, source).again
        assert again.head().rows == rows
        for _ in range(2):
            with pytest.raises(PolicyError, match="has a contribution already"):
                again.seal(**place, digest=OTHER)
            with pytest.raises(PolicyError, match="is sealed"):
                asked.reserve(again, source, draw="second")
        assert again.head().rows == rows + 2, "each refusal stands once"
        assert again.settle(reservation, 0) == 10
        asked.reserve(again, source, 2)
        assert steps(again) == 20


def test_a_sealed_reservation_is_not_lowered(ledger: Ledger, asked: Any) -> None:
    """What stands behind a contribution is what was charged when it was fixed."""
    reservation = asked.reserve(ledger, ledger.source("ward", IDS))
    ledger.seal(run="run", round=1, stage=0, digest=ONE)
    assert (ledger.settle(reservation, 0), steps(ledger)) == (10, 10)


def test_nothing_is_sealed_that_nothing_was_reserved_for(ledger: Ledger, asked: Any) -> None:
    """Nor what was settled at no step at all; a run without privacy needs its release."""
    place = {"run": "run", "round": 1, "stage": 0, "digest": ONE}
    source = ledger.source("ward", IDS)
    with pytest.raises(InternalError, match="nothing was reserved"):
        ledger.seal(**place)
    reservation = asked.reserve(ledger, source)
    for wrong in ({"round": 2}, {"stage": 1}, {"run": "other"}):
        with pytest.raises(InternalError, match="nothing was reserved"):
            ledger.seal(**(place | wrong))
    ledger.settle(reservation, 0)
    with pytest.raises(InternalError, match="nothing was reserved"):
        ledger.seal(**place)


def test_a_run_without_privacy_is_sealed_under_its_release(make: Any) -> None:
    """Once for a stage, as any other."""
    ledger = make(None)
    ledger.release_without_privacy(ledger.source("ward", IDS), run="run", plan=ONE)
    for round in (1, 2):
        ledger.seal(run="run", round=round, stage=0, digest=ONE)
    with pytest.raises(PolicyError, match="has a contribution already"):
        ledger.seal(run="run", round=2, stage=0, digest=OTHER)


def test_a_release_cannot_be_settled(make: Any, asked: Any) -> None:
    """There is no fewer of no privacy."""
    ledger = make(None)
    source = ledger.source("ward", IDS)
    reservation = asked.reserve(ledger, source, mechanism=NoPrivacy())
    assert ledger.settle(reservation, 0) == 1
    assert ledger.epsilon(source).value == float("inf")


@pytest.mark.parametrize(
    "change",
    [{"run": ""}, {"plan": "short"}, {"round": -1}, {"stage": 1.5}, {"draw": ""}, {"draw": "x" * 300}],
)
def test_a_field_that_is_none_is_named(ledger: Ledger, asked: Any, change: dict[str, Any]) -> None:
    """And nothing is written."""
    source = ledger.source("ward", IDS)
    rows = ledger.head().rows
    with pytest.raises(ConfigError, match=f"ledger row.*\n.*{next(iter(change))}"):
        asked.reserve(ledger, source, **change)
    assert ledger.head().rows == rows


def test_mechanisms_of_any_kind_are_counted(ledger: Ledger, folder: Path, asked: Any) -> None:
    """Gaussians count their releases; ε is that of all together."""
    source = ledger.source("ward", IDS)
    plain = Gaussian(sigma=30.0, count=3)
    asked.reserve(ledger, source)
    reservation = asked.reserve(ledger, source, 2, mechanism=plain)
    ledger.settle(reservation, 2)
    both = Account(mechanisms=(asked.STEP, Gaussian(sigma=30.0, count=2)))
    assert ledger.epsilon(source, run="run") == both.epsilon(1e-5, units=1000)
    ledger.close()
    with Ledger.open(folder) as again:
        assert again.account(again.source("ward", IDS), run="run").epsilon(1e-5, units=1000) == both.epsilon(
            1e-5, units=1000
        )


@pytest.mark.parametrize("draw", ['a"b', "back\\slash", 'x,"terms":{}', "é\n", "plain"])
def test_any_text_is_read_again_as_it_was(ledger: Ledger, folder: Path, asked: Any, draw: str) -> None:
    """Also what looks like a part of a row."""
    source = ledger.source('a "ward",', IDS)
    asked.reserve(ledger, source, draw=draw, run=draw)
    before = ledger.book
    ledger.close()
    with Ledger.open(folder) as again:
        assert dict(again.book.draws.everything()) == dict(before.draws.everything())
        assert again.book.sources == before.sources
        assert asked.reserve(again, again.source('a "ward",', IDS), draw=draw, run=draw).again
