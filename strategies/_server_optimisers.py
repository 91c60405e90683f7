"""Server optimisers as pure functions: (mean update, slots, options) → (step, next slots).

The mean update plays the part of a negative gradient. Nothing here knows how it was made, so that any
method whose round ends in an update of fixed layout can take one of these. Slots are float64 and are
made fresh where they are missing, that is in the first round.

Sources: momentum, Hsu, Qi and Brown 2019, arXiv:1909.06335; the adaptive three, Reddi et al., "Adaptive
Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2. As there, Adam has no bias correction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from wardround.core.checked import Frozen
from wardround.core.packed import Array, Packed
from wardround.strategies._mean_update import require_layout

M, V = "m", "v"


class MomentumOptions(Frozen):
    """Options of `heavy_ball`."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """β. In the long run the step is 1/(1 − β) times the mean update."""
    server_learning_rate: float = Field(default=1.0, gt=0)
    """η; 1 in the paper."""


class AdagradOptions(Frozen):
    """Options of `adagrad`; β1 = 0 as in the paper's experiments."""

    server_learning_rate: float = Field(default=0.01, gt=0)
    """η, about the largest change of one coordinate in one round."""
    beta1: float = Field(default=0.0, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)
    """τ, degree of adaptivity: an update is multiplied by at most η/τ."""


class AdaptiveOptions(Frozen):
    """Options of `adam` and `yogi`; defaults are the paper's."""

    server_learning_rate: float = Field(default=0.01, gt=0)
    """η, about the largest change of one coordinate in one round."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)
    """τ, degree of adaptivity: an update is multiplied by at most η/τ."""


class NoOptimiser(Frozen):
    """The mean update itself is the step."""

    optimiser: Literal["none"] = "none"


class Momentum(MomentumOptions):
    """`heavy_ball`."""

    optimiser: Literal["momentum"] = "momentum"


class Adagrad(AdagradOptions):
    """`adagrad`."""

    optimiser: Literal["adagrad"] = "adagrad"


class Adam(AdaptiveOptions):
    """`adam`."""

    optimiser: Literal["adam"] = "adam"


class Yogi(AdaptiveOptions):
    """`yogi`."""

    optimiser: Literal["yogi"] = "yogi"


ServerOptimiser = Annotated[NoOptimiser | Momentum | Adagrad | Adam | Yogi, Field(discriminator="optimiser")]


class ComposedOptions(Frozen):
    """What goes with any method that sums: a proximal term at the sites, an optimiser at the server."""

    proximal: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """μ of FedProx (Li et al. 2020, arXiv:1812.06127, equation 2); 0 adds nothing."""
    server: ServerOptimiser = NoOptimiser()
    """How the server steps along the mean update, by `optimiser`: none, momentum, adagrad, adam or yogi."""


Step = tuple[Packed, dict[str, Packed]]


def server_step(mean: Packed, slots: Mapping[str, Packed], server: ServerOptimiser) -> Step:
    """The server's step along a mean update, float64, and its next slots; other slots stay as they are."""
    match server:
        case Momentum():
            step, own = heavy_ball(mean, slots, server)
        case Adagrad():
            step, own = adagrad(mean, slots, server)
        case Adam():
            step, own = adam(mean, slots, server)
        case Yogi():
            step, own = yogi(mean, slots, server)
        case _:
            step, own = mean, {}
    return step, {**slots, **own}


def heavy_ball(mean: Packed, slots: Mapping[str, Packed], options: MomentumOptions) -> Step:
    """Momentum: m ← β m + d; step = η m. Hsu et al. 2019, section 4.2 (their v is −m)."""
    m = options.momentum * _slot(slots, M, mean, 0.0) + mean.vector
    return mean.with_vector(options.server_learning_rate * m), {M: mean.with_vector(m)}


def adagrad(mean: Packed, slots: Mapping[str, Packed], options: AdagradOptions) -> Step:
    """Adagrad: v ← v + d². Reddi et al. 2021, Algorithm 2, FedAdagrad."""
    return _adaptive(mean, slots, options, lambda v, d2: v + d2)


def yogi(mean: Packed, slots: Mapping[str, Packed], options: AdaptiveOptions) -> Step:
    """Yogi: v ← v − (1 − β2) d² sign(v − d²). Reddi et al. 2021, Algorithm 2, FedYogi."""
    rest = 1.0 - options.beta2
    return _adaptive(
        mean,
        slots,
        options,
        lambda v, d2: v - rest * d2 * np.sign(v - d2),
    )


def adam(mean: Packed, slots: Mapping[str, Packed], options: AdaptiveOptions) -> Step:
    """Adam: v ← β2 v + (1 − β2) d². Reddi et al. 2021, Algorithm 2, FedAdam."""
    beta2 = options.beta2
    return _adaptive(
        mean,
        slots,
        options,
        lambda v, d2: beta2 * v + (1.0 - beta2) * d2,
    )


def _adaptive(
    mean: Packed,
    slots: Mapping[str, Packed],
    options: AdagradOptions | AdaptiveOptions,
    second_moment: Callable[[Array, Array], Array],
) -> Step:
    """Step η m / (√v + τ) with m ← β1 m + (1 − β1) d from 0, and v as given from τ²."""
    eta, beta1, tau = options.server_learning_rate, options.beta1, options.tau
    d = mean.vector
    m = beta1 * _slot(slots, M, mean, 0.0) + (1.0 - beta1) * d
    v = second_moment(_slot(slots, V, mean, tau**2), d**2)
    step = eta * m / (np.sqrt(v) + tau)
    return mean.with_vector(step), {M: mean.with_vector(m), V: mean.with_vector(v)}


def _slot(slots: Mapping[str, Packed], name: str, mean: Packed, initial: float) -> Array:
    slot = slots.get(name)
    if slot is None:
        return np.full(mean.layout.size, initial, dtype=np.float64)
    require_layout(slot, mean.layout, f"the server's slot {name!r}")
    return slot.vector
