"""The least noise that keeps a planned run under a target: bisection on σ, over the whole run.

ε falls as σ grows, so that one bracket is enough. Of its two ends the noisier one is returned: it was found
to meet the target, and one tolerance less noise was found not to.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from pydantic import ValidationError

from wardround.core.checked import invalid
from wardround.core.errors import ConfigError
from wardround.privacy.accounting.account import Account, check_delta
from wardround.privacy.accounting.mechanisms import (
    BoundedMixture,
    Mechanism,
    SampledGaussian,
)
from wardround.privacy.accounting.renyi import ORDERS, best_epsilon, epsilon_at, rdp_of_step_at

LEAST_SIGMA: Final = 0.05
MOST_SIGMA: Final = 1e5
"""Where the search stops: less noise is none, and more leaves no signal."""
_SMALL_TOLERANCE: Final = 1e-6


def sample_rate(batch_size: float, units: int) -> float:
    """Rate q at a site: the expected number of units in a batch over the units that it has.

    Both are constants of the plan: q, and with it N, shows in every batch's expected size.

    Raises:
        ConfigError: No units, or more expected in a batch than there are.
    """
    if units < 1 or not 0 < batch_size <= units:
        raise ConfigError(
            "no sample rate gives such batches", found=f"{batch_size} expected of {units} units",
            expected="more than 0, and no more than there are",
            remedy="a smaller batch, or a site with more units",
        )  # fmt: skip
    return batch_size / units


def planned(sample_rate: float, sigma: float, steps: int, most_examples: int | None = None) -> Account:
    """The account of a whole planned run, per patient.

    Args:
        sample_rate: q of patients; of examples where `most_examples` is given.
        sigma: σ over the clip norm of one contribution: a patient's, or an example's where `most_examples`
            is given.
        steps: Of all rounds together.
        most_examples: K, where examples are clipped apart and no patient has more of them.

    Raises:
        ConfigError: A rate, a noise or a number that is none; names it.
    """
    mechanism: Mechanism
    try:
        if most_examples is not None:
            mechanism = BoundedMixture(
                sample_rate=sample_rate, sigma=sigma, most_examples=most_examples, steps=steps
            )
        else:
            mechanism = SampledGaussian(sample_rate=sample_rate, sigma=sigma, steps=steps)
        return Account(mechanisms=(mechanism,))
    except ValidationError as error:
        raise invalid("planned run", error) from error


def least_noise(
    epsilon: float,
    delta: float,
    *,
    units: int,
    sample_rate: float,
    steps: int,
    most_examples: int | None = None,
    spend: Literal["reserve", "report"] = "reserve",
    tolerance: float = 1e-3,
) -> float:
    """The least σ whose whole run stays at or under ε at δ, to a relative tolerance, on the noisy side.

    Args:
        epsilon: Target.
        delta: δ.
        units: Patients at the site.
        sample_rate: q, the site's own.
        steps: Of all rounds together.
        most_examples: As in `planned`; the answer then is a multiple of an example's clip norm.
        spend: `reserve`: ε as `Account.epsilon` has it (Rényi, or losses for mixtures). `report`: by
            losses, which asks for less noise and holds only if nothing of the schedule changes underway.
        tolerance: σ (1 − tolerance) misses the target, unless σ is `LEAST_SIGMA`.

    Raises:
        ConfigError: An argument is none, or even σ = `MOST_SIGMA` does not meet the target.
        PolicyError: δ ≥ 1/units.
    """
    check_delta(delta, units)
    if not (epsilon > 0 and math.isfinite(epsilon)) or not _SMALL_TOLERANCE <= tolerance < 1:
        raise ConfigError(
            "no noise can be searched for", found=f"epsilon {epsilon}, tolerance {tolerance}",
            expected=f"a positive, finite epsilon, and a tolerance from {_SMALL_TOLERANCE:g} to below 1",
        )  # fmt: skip

    renyi = spend == "reserve" and most_examples is None
    best = ORDERS[0]

    def meets(sigma: float) -> bool:
        nonlocal best
        account = planned(sample_rate, sigma, steps, most_examples)
        if renyi:
            # ε is the least over the orders: where the last best one is enough, no other can change it.
            if epsilon_at(best, steps * rdp_of_step_at(best, sample_rate, sigma), delta) <= epsilon:
                return True
            least, best = best_epsilon(account.rdp(), delta)
            return least <= epsilon
        found = (
            account.epsilon(delta, units=units)
            if spend == "reserve"
            else account.fixed_schedule_epsilon(delta, units=units)
        )
        return found.value <= epsilon

    enough, factor = 1.0, 2.0
    if not renyi:
        # Losses take seconds a try: begin where the quick accountant ends, and stay near.
        planned(sample_rate, enough, steps, most_examples)  # names what is nonsense
        enough, factor = least_noise(
            epsilon, delta, units=units, sample_rate=sample_rate, steps=steps, tolerance=max(tolerance, 0.01)
        ), 1.25  # fmt: skip
    while not meets(enough):
        if enough >= MOST_SIGMA:
            raise ConfigError(
                "no noise keeps this run under its target",
                found=f"{steps} steps at rate {sample_rate:g} are above ε = {epsilon:g} at δ = {delta:g}"
                f" even with σ = {MOST_SIGMA:g}",
                expected="a target that some noise meets",
                remedy="fewer steps, smaller batches, or a larger epsilon",
            )  # fmt: skip
        enough = min(factor * enough, MOST_SIGMA)
    too_little = max(enough / factor, LEAST_SIGMA)
    while meets(too_little):
        enough = too_little
        if enough <= LEAST_SIGMA:
            return LEAST_SIGMA
        too_little = max(enough / factor, LEAST_SIGMA)
    while too_little < enough * (1 - tolerance):
        middle = math.sqrt(too_little * enough)
        if meets(middle):
            enough = middle
        else:
            too_little = middle
    return enough
