"""Accounts: what adds up to which epsilon, by which accountant, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import pytest

from wardround.core.errors import BudgetError, ConfigError, PolicyError
from wardround.privacy.accounting import privacy_loss, renyi
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.mechanisms import (
    BoundedMixture,
    Gaussian,
    NoPrivacy,
    SampledDiscreteGaussians,
    SampledGaussian,
)

RUN = SampledGaussian(sample_rate=0.01, sigma=1.0, steps=1000)
MIXTURE = BoundedMixture(sample_rate=0.0025, sigma=2.0, most_examples=4, steps=10)
UNITS = 2_000


def run_python(code: str) -> str:
    """Output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_done_is_nothing_lost() -> None:
    """An empty account has epsilon 0, by either accountant."""
    assert Account().epsilon(1e-5, units=UNITS).value == 0
    assert Account().fixed_schedule_epsilon(1e-5, units=UNITS).value == 0


def test_an_epsilon_says_what_it_stands_on() -> None:
    """Delta, unit and accountant travel with the number."""
    found = Account(unit="site", mechanisms=(Gaussian(sigma=10.0, count=50),)).epsilon(1e-5, units=100)
    assert (found.delta, found.unit, found.accountant) == (1e-5, "site", "renyi")
    assert str(found).startswith("ε = 3")
    assert str(found).endswith("at δ = 1e-05 per site")


def test_without_privacy_epsilon_is_infinite() -> None:
    """One such release is enough, and nothing makes it good."""
    account = Account(mechanisms=(NoPrivacy(), RUN))
    assert account.epsilon(1e-5, units=UNITS).value == math.inf
    assert account.fixed_schedule_epsilon(1e-5, units=UNITS).value == math.inf
    assert account.plus(MIXTURE).epsilon(1e-5, units=UNITS).value == math.inf


@pytest.mark.parametrize(("delta", "units"), [(1e-3, 1_000), (1e-2, 1_000), (0.5, 2), (0.9, 2)])
def test_a_delta_that_publishes_a_unit_is_refused(delta: float, units: int) -> None:
    """At 1/units and above; just below it is allowed."""
    for ask in (Account().epsilon, Account().fixed_schedule_epsilon):
        with pytest.raises(PolicyError, match="below 1/units"):
            ask(delta, units=units)
        assert ask(0.999 / units, units=units).value == 0


@pytest.mark.parametrize(("delta", "units"), [(0.0, 10), (-1e-5, 10), (1.0, 10), (math.nan, 10), (1e-5, 0)])
def test_what_is_no_delta_is_refused(delta: float, units: int) -> None:
    """Not a probability, or nobody to protect."""
    with pytest.raises(ConfigError, match="this is no δ"):
        Account().epsilon(delta, units=units)


def test_one_mixture_moves_the_whole_account_to_losses() -> None:
    """Its Rényi account is unknown, and the two kinds do not add."""
    account = Account(mechanisms=(RUN, MIXTURE))
    with pytest.raises(BudgetError, match="no Rényi bound"):
        account.rdp()
    together = account.epsilon(1e-5, units=UNITS)
    assert together.accountant == "losses"
    alone = Account(mechanisms=(RUN,)).fixed_schedule_epsilon(1e-5, units=UNITS)
    assert alone.value < together.value < alone.value + 1


def test_a_report_says_the_smaller_bound() -> None:
    """Losses, but where shares of a few ring units leave them with less noise than there is."""
    account = Account(mechanisms=(RUN,))
    assert account.reported_epsilon(1e-5, units=UNITS) == account.fixed_schedule_epsilon(1e-5, units=UNITS)
    assert account.reported_epsilon(1e-5, units=UNITS).value < account.epsilon(1e-5, units=UNITS).value
    few = SampledDiscreteGaussians(
        sample_rate=0.5, sigma=2.0, share_sigma=1.2, shares=3, coordinates=10_000, steps=20
    )
    coarse = Account(mechanisms=(few,))
    assert coarse.reported_epsilon(1e-5, units=UNITS) == coarse.epsilon(1e-5, units=UNITS)
    assert coarse.fixed_schedule_epsilon(1e-5, units=UNITS).value > coarse.epsilon(1e-5, units=UNITS).value
    assert Account().reported_epsilon(1e-5, units=UNITS).value == 0
    assert account.plus(NoPrivacy()).reported_epsilon(1e-5, units=UNITS).value == math.inf


def test_equal_schedules_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sites of a run often have one; each composition takes about a second."""
    asked = []
    plain = privacy_loss._dominated
    monkeypatch.setattr(privacy_loss, "_dominated", lambda steps: asked.append(1) or plain(steps))
    steps = SampledGaussian(sample_rate=0.02, sigma=4.0, steps=7)
    values = {
        Account(mechanisms=mechanisms).fixed_schedule_epsilon(1e-5, units=UNITS).value
        for mechanisms in ((steps, steps), (steps.model_copy(update={"steps": 14}),))
    }
    assert len(values) == len(asked) == 1
    Account(mechanisms=(steps, steps)).fixed_schedule_epsilon(1e-6, units=UNITS)
    assert len(asked) == 2


def test_noise_too_small_for_arithmetic_is_no_privacy() -> None:
    """Nothing overflows into a finite epsilon, and nothing raises."""
    for mechanism in (
        Gaussian(sigma=1e-200),
        SampledGaussian(sample_rate=0.5, sigma=1e-200),
        SampledGaussian(sample_rate=1e-300, sigma=1e-300, steps=10**9),
    ):
        account = Account(mechanisms=(mechanism,))
        assert account.epsilon(1e-5, units=UNITS).value == math.inf
        assert account.fixed_schedule_epsilon(1e-5, units=UNITS).value == math.inf


def test_steps_that_round_to_nothing_still_cost() -> None:
    """log(1 + 10⁻¹⁷) is 0 in float64; a billion such steps are charged all the same."""
    tiny = Account(mechanisms=(SampledGaussian(sample_rate=1e-9, sigma=1e4, steps=10**9),))
    assert (tiny.rdp() >= 10**9 * renyi.SLACK * 0.999).all()


def test_a_long_account_answers_quickly() -> None:
    """A hundred thousand entries cost a few vectors, each computed once."""
    entries = tuple(SampledGaussian(sample_rate=0.01, sigma=1 + i % 5 / 10) for i in range(100_000))
    account = Account(mechanisms=entries)
    first = account.epsilon(1e-5, units=UNITS)
    before = renyi.rdp_of_step.cache_info().misses
    start = time.perf_counter()
    again = account.plus(Gaussian(sigma=1.0)).epsilon(1e-5, units=UNITS)
    assert time.perf_counter() - start < 10
    assert again.value > first.value
    assert renyi.rdp_of_step.cache_info().misses <= before + 1


def test_cached_vectors_cannot_be_written() -> None:
    """Whoever changed one would change every account."""
    with pytest.raises(ValueError, match="read-only"):
        renyi.rdp_of_step(0.01, 1.0)[0] = 0


def test_importing_costs_nothing_heavy() -> None:
    """Neither torch, Opacus nor Flower come along; the accountant itself only when it is asked."""
    heavy = ("torch", "opacus", "flwr", "dp_accounting", "scipy")
    code = (
        "import sys\n"
        "from wardround.privacy.accounting import account, calibrate, cap, mechanisms, privacy_loss, renyi\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
        "run = mechanisms.SampledGaussian(sample_rate=0.01, sigma=1.0, steps=1000)\n"
        "account.Account(mechanisms=(run,)).epsilon(1e-5, units=2000)\n"
        "account.Account(mechanisms=(run,)).fixed_schedule_epsilon(1e-5, units=2000)\n"
        f"print([name for name in {heavy[:3]!r} if name in sys.modules])\n"
    )
    assert run_python(code).splitlines() == ["[]", "[]"]
