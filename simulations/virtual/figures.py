"""A figure that differs between sites: a number, a distribution, or a table by site.

What is drawn comes from the seed tree, by site or by site and round: it is the same whoever asks first, in a
resumed run, and on any number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from wardround.core.checked import Frozen
from wardround.core.errors import ConfigError, unknown_name
from wardround.core.seeds import Purpose, generator

Each: TypeAlias = Literal["site", "round"]
"""Drawn once for a site, or anew in every round."""


class _Drawn(Frozen):
    each: Each = "site"
    """`site`: drawn once for each; `round`: anew in every round."""
    least: float = Field(default=0.0, ge=0)
    """Nothing smaller."""
    most: float | None = Field(default=None, ge=0)
    """Nothing larger; None: no bound."""

    @model_validator(mode="after")
    def _in_order(self) -> _Drawn:
        if self.most is not None and self.most < self.least:
            raise ValueError("most is smaller than least")
        return self

    def bounded(self, value: float) -> float:
        """Within `least` and `most`."""
        return max(self.least, value if self.most is None else min(value, self.most))


class Lognormal(_Drawn):
    """A median, and as many times more as less."""

    kind: Literal["lognormal"]
    median: float = Field(gt=0)
    sigma: float = Field(ge=0)
    """Standard deviation of the logarithm: two thirds lie within a factor of e^sigma of the median."""

    def draw(self, source: np.random.Generator) -> float:
        """One value."""
        return self.bounded(self.median * math.exp(self.sigma * float(source.standard_normal())))


class Pareto(_Drawn):
    """Most near the smallest, a few far above it."""

    kind: Literal["pareto"]
    scale: float = Field(gt=0)
    """The smallest."""
    shape: float = Field(gt=0)
    """A value is x times the smallest or more with the probability x^-shape."""

    def draw(self, source: np.random.Generator) -> float:
        """One value."""
        return self.bounded(self.scale * (1.0 - float(source.random())) ** (-1.0 / self.shape))


class Uniform(Frozen):
    """Anything between two bounds."""

    kind: Literal["uniform"]
    low: float = Field(ge=0)
    high: float = Field(ge=0)
    each: Each = "site"

    @model_validator(mode="after")
    def _in_order(self) -> Uniform:
        if self.high < self.low:
            raise ValueError("high is smaller than low")
        return self

    def draw(self, source: np.random.Generator) -> float:
        """One value."""
        return self.low + (self.high - self.low) * float(source.random())


class Table(Frozen):
    """A value by site."""

    kind: Literal["sites"]
    sites: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    other: float | None = Field(default=None, ge=0)
    """Of the sites that are not named; None: all have to be."""


Figure: TypeAlias = (
    Annotated[float, Field(ge=0)]
    | Annotated[Lognormal | Pareto | Uniform | Table, Field(discriminator="kind")]
)


def value_of(figure: Figure, seed: int, purpose: Purpose, *, site: str, round: int) -> float:
    """The figure of a site in a round.

    Raises:
        ConfigError: As `check_names`.
    """
    if isinstance(figure, Table):
        value = figure.sites.get(site, figure.other)
        if value is None:
            raise unknown_name("site in the table", site, figure.sites)
        return value
    if isinstance(figure, int | float):
        return float(figure)
    at = round if figure.each == "round" else 0
    return figure.draw(generator(seed, purpose, round=at, site=site))


def smallest(figure: Figure) -> float:
    """No value of the figure is smaller; of what is drawn without a bound, 0 stands for "above zero"."""
    match figure:
        case Table():
            others = [] if figure.other is None else [figure.other]
            return min([*figure.sites.values(), *others])
        case Uniform():
            return figure.low
        case Lognormal():
            return figure.bounded(math.ulp(0.0))
        case Pareto():
            return figure.bounded(figure.scale)
    return float(figure)


def check_names(setting: str, figure: Figure, sites: Iterable[str]) -> None:
    """Refuse a table that names a site that there is not, or leaves one out.

    Raises:
        ConfigError: It does; the nearest name is proposed.
    """
    if not isinstance(figure, Table):
        return
    names = set(sites)
    for name in figure.sites:
        if name not in names:
            raise unknown_name(f"site in {setting}", name, names)
    if figure.other is None and (left := sorted(names - figure.sites.keys())):
        raise ConfigError(
            f"{setting} leaves sites out", found=f"no value for {', '.join(left[:5])}",
            expected="every site of the run, or `other` for those that are not named",
        )  # fmt: skip
