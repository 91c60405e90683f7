"""The cap of a site: what fits, what is refused and by how much, and what a run without privacy means."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from wardround.client.ledger.charging import for_patient
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.row_file import FILE
from wardround.core.errors import BudgetError, ConfigError, PolicyError
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.cap import Cap
from wardround.privacy.accounting.mechanisms import BoundedMixture, Gaussian, NoPrivacy, SampledGaussian
from wardround.privacy.accounting.renyi import ORDERS

IDS = [f"patient {i}" for i in range(20)]
MIXTURE = BoundedMixture(sample_rate=0.01, sigma=3.0, most_examples=4, steps=5)
SIGNED = {"who": "Dr Test", "why": "the board decided"}


def refusals(folder: Path) -> list[dict[str, Any]]:
    """Rows that record one."""
    rows = (json.loads(line)["body"] for line in (folder / FILE).read_text().splitlines())
    return [row for row in rows if row["kind"] == "refusal"]


def test_as_much_fits_as_the_filter_lets_through(ledger: Ledger, asked: Any) -> None:
    """Round for round what `Cap.admit` says of one account, at the order of row 0."""
    source = ledger.source("ward", IDS)
    cap = ledger.book.cap
    assert cap == Cap.for_any(3.0, 1e-5, units=1000)
    account, rounds = Account(), 0
    while cap.fits(account, asked.BITE):
        account, rounds = cap.admit(account, asked.BITE), rounds + 1
    assert asked.exhaust(ledger, source) == rounds > 3
    spent = float(account.rdp()[ORDERS.index(cap.order)])
    assert ledger.epsilon(source).value == pytest.approx(cap.reached(spent), rel=1e-12)
    assert ledger.epsilon(source).value <= 3.0


def test_what_would_overdraw_is_refused_with_the_number_and_stands_on_record(
    ledger: Ledger, folder: Path, asked: Any
) -> None:
    """Once, however often it is asked; nothing of it is charged."""
    source = ledger.source("ward", IDS)
    rounds = asked.exhaust(ledger, source)
    before = ledger.epsilon(source)
    for _ in range(3):
        with pytest.raises(
            BudgetError, match=r"(?s)1\d\d\.\d% of the budget.*ε = 3\.\d+, not 3.*at most ε = 3"
        ):
            asked.reserve(ledger, source, rounds, run="run to the end", mechanism=asked.BITE)
    (row,) = refusals(folder)
    assert (row["reason"], row["run"], row["round"], row["draw"]) == (
        "cap",
        "run to the end",
        rounds,
        "first",
    )
    assert 3.0 < row["reached"] < 4.0
    assert ledger.epsilon(source) == before
    with pytest.raises(BudgetError):
        asked.reserve(ledger, source, 1, draw="after a crash", run="run to the end", mechanism=asked.BITE)
    assert len(refusals(folder)) == 2
    ledger.close()
    with Ledger.open(folder) as again, pytest.raises(BudgetError):
        asked.reserve(again, again.source("ward", IDS), rounds, run="run to the end", mechanism=asked.BITE)
    assert len(refusals(folder)) == 2


def test_less_may_still_fit_after_a_refusal(ledger: Ledger, asked: Any) -> None:
    """Fewer steps of the same mechanism."""
    source = ledger.source("ward", IDS)
    asked.exhaust(ledger, source)
    with pytest.raises(BudgetError):
        asked.reserve(ledger, source, draw="again", mechanism=asked.BITE)
    asked.reserve(ledger, source, draw="less", mechanism=Gaussian(sigma=200.0))


def test_nobody_is_ever_shown_above_the_cap(ledger: Ledger, asked: Any) -> None:
    """A charge is also refused where the bound of a patient who is in none of its sources would go over."""
    cap = ledger.book.cap
    sixth = Gaussian(sigma=math.sqrt(cap.order / (2 * cap.budget / 6.001)))
    lists = ("bfa", "ga", "f", "b", "egbc")
    sources = [ledger.source(name, list(name)) for name in lists]
    ledger.declare_disjoint(sources[0], **SIGNED)
    for round, (number, count) in enumerate(((2, 1), (4, 2), (2, 2), (1, 1))):
        mechanism = sixth.model_copy(update={"count": count})
        asked.reserve(ledger, sources[number], round, mechanism=mechanism)
    with pytest.raises(BudgetError, match=r"116\.\d% of the budget"):
        asked.reserve(ledger, sources[3], 9, mechanism=sixth)
    for source in sources:
        assert ledger.epsilon(source).value <= 3.0


def test_settling_gives_room_back(ledger: Ledger, asked: Any) -> None:
    """What did not run may run another time."""
    source = ledger.source("ward", IDS)
    more = asked.BITE
    while ledger.book.cap.fits(Account(mechanisms=(more,)), more):
        more = more.model_copy(update={"steps": 2 * more.steps})
    first = asked.reserve(ledger, source, mechanism=more)
    with pytest.raises(BudgetError):
        asked.reserve(ledger, source, 2, mechanism=more)
    ledger.settle(first, 0)
    assert ledger.epsilon(source).value == 0
    asked.reserve(ledger, source, 2, mechanism=more)


def test_the_order_of_the_cap_is_that_of_what_is_planned(
    tmp_path: Path, policy: BudgetPolicy, asked: Any
) -> None:
    """It is chosen before the first entry, and kept: a plan that just fits then fits to its last round."""
    little = SampledGaussian(sample_rate=0.01, sigma=0.7, steps=50)
    plan = Account(mechanisms=(little.model_copy(update={"steps": 20 * 50}),))
    needs = plan.epsilon(1e-5, units=1000).value
    tight = BudgetPolicy(epsilon=needs * 1.0001, delta=1e-5)
    with Ledger.create(tmp_path / "a", tight, units=1000, planned=plan) as ledger:
        assert ledger.book.order == Cap.for_schedule(needs * 1.0001, 1e-5, plan, units=1000).order
        order = ledger.book.order
    with Ledger.open(tmp_path / "a", policy=tight) as again:
        assert again.book.order == order
        assert asked.exhaust(again, again.source("ward", IDS), mechanism=little) == 20
    with Ledger.create(tmp_path / "b", tight, units=1000) as ledger:
        assert ledger.book.order != order
        with pytest.raises(BudgetError):
            asked.reserve(ledger, ledger.source("ward", IDS), mechanism=plan.mechanisms[0])


def test_without_a_cap_nothing_is_refused(make: Any, asked: Any) -> None:
    """And ε is at the best order."""
    ledger = make(None)
    source = ledger.source("ward", IDS)
    asked.reserve(ledger, source, mechanism=asked.STEP.model_copy(update={"steps": 10**6}))
    account = Account(mechanisms=(asked.STEP.model_copy(update={"steps": 10**6}),))
    assert ledger.epsilon(source) == account.epsilon(1e-5, units=1000)
    assert ledger.epsilon(source).value > 30


@pytest.mark.parametrize(
    "fields", [{"epsilon": 0.0}, {"epsilon": -1.0}, {"epsilon": math.inf}, {"delta": 0.0}]
)
def test_a_policy_is_a_number_that_promises_something(fields: dict[str, float]) -> None:
    """Infinity would be no cap, and is said with None."""
    with pytest.raises(ValidationError):
        BudgetPolicy(**({"epsilon": 3.0, "delta": 1e-5} | fields))


def test_a_cap_without_room_makes_no_ledger(make: Any, tmp_path: Path) -> None:
    """And leaves no folder."""
    with pytest.raises(ConfigError, match="no Rényi order leaves room"):
        make(1e-4)
    assert not list(tmp_path.iterdir())


# --- runs without privacy


def test_under_a_cap_a_run_without_privacy_is_refused_by_default(
    ledger: Ledger, folder: Path, asked: Any
) -> None:
    """A cap promises a total, and such a run ends it. The refusal is on record."""
    source = ledger.source("ward", IDS)
    for _ in range(2):
        with pytest.raises(BudgetError, match=r"(?s)would end the cap.*allow_release"):
            ledger.release_without_privacy(source, run="run", plan=asked.PLAN)
    (row,) = refusals(folder)
    assert (row["reason"], row["reached"]) == ("no_privacy", None)
    assert ledger.epsilon(source).value == 0


def test_a_release_is_infinite_for_its_units_and_for_whom_they_may_be(make: Any, asked: Any) -> None:
    """No later card claims a total for them; a private run has an ε of its own, and nobody else is hit."""
    ledger = make(3.0, allow_release=True)
    everybody, part = ledger.source("all", IDS), ledger.source("part", IDS[:3])
    asked.reserve(ledger, everybody)
    ledger.release_without_privacy(part, run="open run", plan=asked.PLAN)
    rows = ledger.head().rows
    ledger.release_without_privacy(part, run="open run", plan=asked.PLAN)
    assert ledger.head().rows == rows
    assert math.isinf(ledger.epsilon(part).value)
    assert math.isinf(ledger.epsilon(everybody).value)
    assert math.isinf(ledger.epsilon(part, run="open run").value)
    assert 0 < ledger.epsilon(part, run="run").value < 1
    assert 0 < ledger.epsilon(ledger.source("rest", IDS[3:])).value < 3
    assert math.isinf(ledger.epsilon(ledger.source("unknown", ["who"])).value)


def test_after_a_release_a_private_run_is_refused_by_default(make: Any, asked: Any) -> None:
    """For those units; the others go on."""
    ledger = make(3.0, allow_release=True)
    everybody, part = ledger.source("all", IDS), ledger.source("part", IDS[:3])
    ledger.release_without_privacy(part, run="open run", plan=asked.PLAN)
    for source in (everybody, part):
        with pytest.raises(BudgetError, match=r"(?s)nothing bounds their account.*allow_after_release"):
            asked.reserve(ledger, source)
    asked.reserve(ledger, ledger.source("rest", IDS[3:]))


def test_after_a_release_the_cap_bounds_what_private_runs_add(make: Any, asked: Any) -> None:
    """Where the policy says so; the total stays infinite."""
    ledger = make(3.0, allow_release=True, allow_after_release=True)
    source = ledger.source("ward", IDS)
    ledger.release_without_privacy(source, run="open run", plan=asked.PLAN)
    rounds = asked.exhaust(ledger, source)
    other = make(3.0)
    assert rounds == asked.exhaust(other, other.source("ward", IDS)) > 3
    assert math.isinf(ledger.epsilon(source).value)
    assert ledger.epsilon(source, run="run to the end").value < 3


# --- runs at the level of examples


@pytest.mark.parametrize(
    ("mechanism", "most", "charged"),
    [
        (SampledGaussian(sample_rate=0.1, sigma=2.0, steps=3), 4,
         BoundedMixture(sample_rate=0.1, sigma=2.0, most_examples=4, steps=3)),
        (Gaussian(sigma=2.0, count=3), 4,
         BoundedMixture(sample_rate=1.0, sigma=2.0, most_examples=4, steps=3)),
        (SampledGaussian(sample_rate=0.1, sigma=2.0, steps=3), None, NoPrivacy()),
        (Gaussian(sigma=2.0), None, NoPrivacy()),
        (MIXTURE, None, MIXTURE),
        (NoPrivacy(), 4, NoPrivacy()),
    ],
)  # fmt: skip
def test_an_example_level_run_is_charged_to_the_patient(
    mechanism: Any, most: int | None, charged: Any
) -> None:
    """Through the bound on a patient's examples; without one there is no privacy."""
    assert for_patient(mechanism, "example", most) == charged
    if not isinstance(mechanism, BoundedMixture):
        assert for_patient(mechanism, "patient", None) == mechanism


def test_a_bound_that_is_none_is_named() -> None:
    """Zero examples of a patient, or a million."""
    for most in (0, 10**6):
        with pytest.raises(ConfigError, match=r"bound on a patient's examples.*\n.*most_examples"):
            for_patient(SampledGaussian(sample_rate=0.1, sigma=2.0), "example", most)


def test_what_k_costs_is_what_the_account_says(make: Any, asked: Any) -> None:
    """Without a cap: losses, for the whole account."""
    ledger = make(None)
    source = ledger.source("ward", IDS)
    asked.reserve(ledger, source)
    fields = {"unit": "example", "most_examples": 4}
    asked.reserve(
        ledger, source, 2, mechanism=SampledGaussian(sample_rate=0.01, sigma=3.0, steps=5), **fields
    )
    wanted = Account(mechanisms=(asked.STEP, MIXTURE)).epsilon(1e-5, units=1000)
    assert ledger.epsilon(source) == wanted
    assert wanted.accountant == "losses"
    row = json.loads((ledger._store.folder / FILE).read_text().splitlines()[-1])["body"]
    assert (row["terms"]["unit"], row["terms"]["mechanism"]["most_examples"]) == ("example", 4)


def test_with_one_example_a_patient_it_is_the_same_as_by_patient(ledger: Ledger, asked: Any) -> None:
    """K = 1 passes the filter like any other."""
    source = ledger.source("ward", IDS)
    asked.reserve(ledger, source, unit="example", most_examples=1)
    wanted = Account(mechanisms=(asked.STEP,)).epsilon(1e-5, units=1000)
    assert ledger.epsilon(source, run="run") == wanted


def test_under_a_cap_a_mixture_is_one_run_and_alone(ledger: Ledger, folder: Path, asked: Any) -> None:
    """Its plan fixed it beforehand, so losses compose, up to the cap; nothing bounds it beside others."""
    source = ledger.source("ward", IDS)
    for round in (1, 2):
        asked.reserve(ledger, source, round, mechanism=MIXTURE, unit="example")
    spent = ledger.epsilon(source)
    twice = Account(mechanisms=(MIXTURE.model_copy(update={"steps": 10}),))
    assert spent == twice.fixed_schedule_epsilon(1e-5, units=1000)
    for other in (asked.STEP, MIXTURE):  # refused before anything is composed
        with pytest.raises(
            BudgetError, match=r"(?s)nothing bounds these units' account.*clip once per patient"
        ):
            asked.reserve(ledger, source, run="another", mechanism=other, unit="example", most_examples=2)
    with pytest.raises(BudgetError, match="would be overdrawn"):
        asked.reserve(
            ledger, source, 3, mechanism=MIXTURE.model_copy(update={"steps": 20_000}), unit="example"
        )
    assert [row["reached"] and row["reached"] > 3 for row in refusals(folder)] == [None, True]
    others = ledger.source("others", ["a", "b"])
    ledger.declare_disjoint(others, **SIGNED)
    asked.reserve(ledger, others, run="another")


def test_a_mixture_comes_after_nothing_else(ledger: Ledger, asked: Any) -> None:
    """What another run was charged may have decided that this one began."""
    source = ledger.source("ward", IDS)
    asked.reserve(ledger, source)
    with pytest.raises(BudgetError, match="nothing bounds"):
        asked.reserve(ledger, source, run="another", mechanism=MIXTURE, unit="example")
    asked.reserve(ledger, source, 2, mechanism=MIXTURE, unit="example")  # the same run: its plan has both


def test_an_unbounded_example_level_run_is_a_run_without_privacy(make: Any, asked: Any) -> None:
    """Refused under a cap, or recorded as infinite."""
    strict, open_ = make(3.0), make(3.0, allow_release=True)
    with pytest.raises(BudgetError, match="would end the cap"):
        asked.reserve(strict, strict.source("ward", IDS), unit="example")
    source = open_.source("ward", IDS)
    asked.reserve(open_, source, unit="example")
    assert math.isinf(open_.epsilon(source).value)
    assert math.isinf(open_.epsilon(source, run="run").value)


# --- policies that change


def test_a_policy_changes_in_somebodys_name(
    ledger: Ledger, folder: Path, policy: BudgetPolicy, asked: Any
) -> None:
    """More room, at the same order, from then on; who opens the ledger under the old one is told."""
    source = ledger.source("ward", IDS)
    rounds = asked.exhaust(ledger, source)
    order = ledger.book.order
    with pytest.raises(ConfigError, match="who does this"):
        ledger.amend(BudgetPolicy(epsilon=4.0, delta=1e-5), who="", why="")
    ledger.amend(BudgetPolicy(epsilon=4.0, delta=1e-5), **SIGNED)
    assert ledger.book.order == order
    asked.reserve(ledger, source, rounds, run="run to the end", mechanism=asked.BITE)
    assert 3 < ledger.epsilon(source).value <= 4
    ledger.close()
    with pytest.raises(ConfigError, match="not the one that its ledger has on record"):
        Ledger.open(folder, policy=policy)
    with Ledger.open(folder, policy=BudgetPolicy(epsilon=4.0, delta=1e-5)) as again:
        (note,) = again.book.notes
        assert (note.kind, note.who, note.why) == ("policy", *SIGNED.values())


def test_a_lower_cap_holds_at_once(ledger: Ledger, asked: Any) -> None:
    """What was spent stays; nothing more fits."""
    source = ledger.source("ward", IDS)
    asked.exhaust(ledger, source)
    ledger.amend(BudgetPolicy(epsilon=2.0, delta=1e-5), **SIGNED)
    with pytest.raises(BudgetError, match="at most ε = 2"):
        asked.reserve(ledger, source, mechanism=Gaussian(sigma=200.0))


def test_a_first_cap_may_come_later(make: Any, asked: Any) -> None:
    """Its order is chosen then, and what was spent before counts."""
    ledger = make(None)
    source = ledger.source("ward", IDS)
    asked.reserve(ledger, source, mechanism=asked.BITE)
    ledger.amend(BudgetPolicy(epsilon=3.0, delta=1e-5), **SIGNED)
    assert ledger.book.cap == Cap.for_any(3.0, 1e-5, units=1000)
    other = make(3.0)
    assert asked.exhaust(ledger, source) + 1 == asked.exhaust(other, other.source("ward", IDS))


def test_a_cap_that_has_no_room_at_the_ledgers_order_is_refused(ledger: Ledger) -> None:
    """The order stays as it was chosen; nor may δ reach 1/units."""
    with pytest.raises(ConfigError, match="no room at the ledger's order"):
        ledger.amend(BudgetPolicy(epsilon=0.5, delta=1e-5), **SIGNED)
    with pytest.raises(PolicyError, match="too large for so few units"):
        ledger.amend(BudgetPolicy(epsilon=3.0, delta=1e-3), **SIGNED)
