"""How the gradient of one unit is shortened, so that no unit moves the sum by more than C.

Each rule gives factors f_g for the groups g of a unit's gradient h = (h_1, …, h_G), most have one group, with
Σ_g (f_g ‖h_g‖)² ≤ C². A factor depends on the norms of its own unit and on constants alone, never on other
units. What comes after (noise of σ C on every coordinate) is the same for all rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias, final

import torch

from wardround.core.errors import ConfigError
from wardround.privacy.clip_norm import next_norm, vector_sigma

Groups: TypeAlias = tuple[tuple[slice, ...], ...]
"""Places in a row by group; together they hold every column once."""

_SUMMING: Final = 2.0**-20
"""How far clipping stays below C, relatively: 10⁴ units in float64 round by less than 10⁻⁷ · C in all."""


class Clipping(Protocol):
    """A rule. Frozen: within a logical batch nothing moves.

    Guarantee: a unit's contribution is no longer than `bound` / (1 + `slack`), whatever its (finite) gradient
    is: what is left is for other units' gradients, which rounding moves with the batch (`rounding.py`).
    """

    @property
    def bound(self) -> float:
        """C, by which noise is scaled."""

    @property
    def slack(self) -> float:
        """How far below C it clips, relatively."""

    @property
    def groups(self) -> Groups | None:
        """What has a factor of its own; None: a row as a whole."""

    @property
    def limits(self) -> tuple[float, ...]:
        """C_g, less the slack: a unit that is longer than one of them counts as clipped."""

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """Norms (groups, units), float64 → what to multiply with, of the same shape."""


@final
@dataclass(frozen=True)
class Flat:
    """f = min(1, C / ‖h‖): Abadi et al. 2016, arXiv:1607.00133v2, Algorithm 1.

    Raises:
        ConfigError: The bound is not positive and finite.
    """

    bound: float
    slack: float = 0.0
    groups: None = None

    def __post_init__(self) -> None:
        _require_positive("clipping norm", self.bound)

    @property
    def limits(self) -> tuple[float, ...]:
        """C."""
        return (_below(self.bound, self.slack),)

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """min(1, C / norm)."""
        return _shortened(norms, self.limits)


@final
@dataclass(frozen=True)
class PerLayer:
    """f_g = min(1, C_g / ‖h_g‖) with C_g = C / √G: McMahan et al. 2018, arXiv:1710.06963v3, § 3.2.

    A layer with long gradients does not shorten the others'. `split_by_layer` makes it.

    Raises:
        ConfigError: The bound is not positive and finite.
    """

    bound: float
    groups: Groups
    slack: float = 0.0

    def __post_init__(self) -> None:
        _require_positive("clipping norm", self.bound)

    @property
    def limits(self) -> tuple[float, ...]:
        """C_g."""
        return (_below(self.bound, self.slack) / math.sqrt(len(self.groups)),) * len(self.groups)

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """min(1, C_g / norm), group by group."""
        return _shortened(norms, self.limits)


def split_by_layer(bound: float, columns: Mapping[str, slice], slack: float = 0.0) -> PerLayer:
    """One group for each layer that trains: a LoRA pair A and B, a weight with its bias, are one.

    Args:
        bound: C of the whole.
        columns: Name of a tensor → its place in a row (`ExampleGradients.columns`).
        slack: As of any rule.

    Raises:
        ConfigError: The bound is not positive and finite.
    """
    layers: dict[str, list[slice]] = {}
    for name, place in columns.items():
        pair = min((at for at in (name.find(".lora_"), name.rfind(".")) if at >= 0), default=len(name))
        layers.setdefault(name[:pair], []).append(place)
    return PerLayer(bound, tuple(tuple(places) for places in layers.values()), slack)


@final
@dataclass(frozen=True)
class Automatic:
    """f = C / (‖h‖ + γ), AUTO-S: Bu et al. 2023, arXiv:2206.07136v3, § 4.

    Every unit is brought to nearly the same length, below C; γ keeps short gradients shorter than long ones.
    C scales gradient and noise alike, so that the learning rate can take its place.

    Attributes:
        bound: C.
        stability: γ; their 0.01 is for C = 1 and gradients of single examples.

    Raises:
        ConfigError: The bound or γ is not positive and finite.
    """

    bound: float
    stability: float = 0.01
    slack: float = 0.0
    groups: None = None

    def __post_init__(self) -> None:
        _require_positive("clipping norm", self.bound)
        _require_positive("stability of automatic clipping", self.stability)

    @property
    def limits(self) -> tuple[float, ...]:
        """C."""
        return (_below(self.bound, self.slack),)

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """C / (norm + γ)."""
        return _below(self.bound, self.slack) / (norms + self.stability)


@final
@dataclass(frozen=True)
class Adaptive:
    """`Flat` with a C that follows a quantile of the norms: Andrew et al. 2021, arXiv:1905.03871v5, Alg. 1.

    Its two formulas are `privacy/clip_norm.py`'s. The noised share of units that are not clipped is ½ + s/B:
    B is the plan's constant, since the batch's own size is exact. (Opacus 1.6's `AdaClipDPOptimizer` counts
    b_u, at the price of b_u − ½, and divides by the batch's size.)

    Guarantee: gradient noise of z_Δ C and the count together cost as much as one sum with noise z C. C is a
        function of what was released, and may be kept.

    Attributes:
        bound: C now.
        expected: B, units that a batch is planned to have.
        count_sigma: σ_b; their choice is B / 20.
        quantile: γ, the share of units that is to stay unclipped.
        rate: η.
        smallest: C never goes below.
        largest: C never goes above.

    Raises:
        ConfigError: A setting is none.
    """

    bound: float
    expected: float
    count_sigma: float
    quantile: float = 0.5
    rate: float = 0.2
    smallest: float = 1e-6
    largest: float = 1e6
    slack: float = 0.0
    groups: None = None

    def __post_init__(self) -> None:
        for name in ("expected", "count_sigma", "rate", "smallest", "largest"):
            _require_positive(f"{name} of adaptive clipping", getattr(self, name))
        if not (0 < self.quantile < 1 and self.smallest <= self.bound <= self.largest):
            raise ConfigError(
                "settings of adaptive clipping do not go together",
                found=f"quantile {self.quantile}, start {self.bound}",
                expected=f"a quantile between 0 and 1, a start in [{self.smallest:g}, {self.largest:g}]",
            )

    @property
    def limits(self) -> tuple[float, ...]:
        """C."""
        return (_below(self.bound, self.slack),)

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """min(1, C / norm)."""
        return _shortened(norms, self.limits)

    def gradient_sigma(self, sigma: float) -> float:
        """z_Δ of a planned z: more noise on the gradient pays for the count.

        Raises:
            ConfigError: The count alone would cost more than was planned.
        """
        return vector_sigma(sigma, self.count_sigma)

    def moved(self, noised_balance: float) -> Adaptive:
        """The rule of the next batch, from s and nothing else."""
        share = 0.5 + noised_balance / self.expected
        bound = next_norm(
            self.bound, share, quantile=self.quantile, rate=self.rate, smallest=self.smallest,
            largest=self.largest,
        )  # fmt: skip
        return replace(self, bound=bound)


def _below(bound: float, slack: float) -> float:
    return bound * (1 - _SUMMING) / (1 + slack)


def _shortened(norms: torch.Tensor, limits: tuple[float, ...]) -> torch.Tensor:
    """min(1, limit / norm), (groups, units)."""
    return (norms.new_tensor(limits).unsqueeze(1) / norms.clamp_min(1e-300)).clamp_max(1)


def _require_positive(name: str, value: float) -> None:
    """Refuse what is no scale.

    Raises:
        ConfigError: It is not positive and finite.
    """
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(
            f"the {name} is no bound", found=value, expected="a finite number above 0",
            remedy=f"set a positive {name}",
        )  # fmt: skip
