"""Mechanisms are values: they refuse nonsense by name, and survive their JSON."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from wardround.core.errors import ConfigError
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.mechanisms import (
    BoundedMixture,
    Gaussian,
    NoPrivacy,
    SampledDiscreteGaussians,
    SampledGaussian,
)

GOOD: dict[type[Any], dict[str, Any]] = {
    SampledGaussian: {"sample_rate": 0.01, "sigma": 1.0, "steps": 10},
    Gaussian: {"sigma": 1.0, "count": 3},
    BoundedMixture: {"sample_rate": 0.01, "sigma": 1.0, "most_examples": 4, "steps": 10},
}
NONSENSE: dict[str, list[Any]] = {
    "sample_rate": [0, -0.1, 1.0000001, 17, math.nan, math.inf, "much", None],
    "sigma": [0, -1.0, math.nan, math.inf, -math.inf, None],
    "steps": [0, -1, 1.5, 10**9 + 1, math.nan, math.inf, None, True],
    "count": [0, -1, 1.5, math.inf, None],
    "most_examples": [0, -1, 1.5, 1_001, math.inf, None],
}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        pytest.param(kind, field, value, id=f"{kind.__name__}-{field}-{value}")
        for kind, fields in GOOD.items()
        for field in fields
        for value in NONSENSE[field]
    ],
)
def test_nonsense_is_refused_by_name(kind: type[Any], field: str, value: Any) -> None:
    """Rates outside (0, 1], noise that is not positive, counts below one, and what is no number."""
    with pytest.raises(ValidationError) as caught:
        kind(**(GOOD[kind] | {field: value}))
    assert [fault["loc"] for fault in caught.value.errors()] == [(field,)]


@pytest.mark.parametrize("kind", GOOD)
def test_edges_are_allowed(kind: type[Any]) -> None:
    """The whole data set may be sampled, once, with little noise."""
    edges = {"sample_rate": 1, "sigma": 1e-6, "steps": 1, "count": 1, "most_examples": 1}
    fields = {name: edges[name] for name in GOOD[kind]}
    assert kind(**fields).model_dump(exclude={"kind"}) == fields


@pytest.mark.parametrize("kind", GOOD)
def test_values_do_not_change(kind: type[Any]) -> None:
    """Frozen, hashable, and strict about keys that nobody knows."""
    value = kind(**GOOD[kind])
    assert value == kind(**GOOD[kind])
    assert len({value, kind(**GOOD[kind])}) == 1
    with pytest.raises(ValidationError):
        value.sigma = 2.0
    with pytest.raises(ValidationError):
        kind(**GOOD[kind], clip=1.0)


def test_the_written_form_keeps_its_bytes() -> None:
    """What a ledger of years ago holds: it may grow new kinds, and this may not change."""
    account = Account(
        mechanisms=(
            SampledGaussian(sample_rate=0.01, sigma=1.0, steps=10),
            Gaussian(sigma=2.5),
            BoundedMixture(sample_rate=0.002, sigma=1.5, most_examples=4, steps=7),
            NoPrivacy(),
            SampledDiscreteGaussians(
                sample_rate=0.01, sigma=1.0, share_sigma=40.0, shares=4, coordinates=300, steps=2
            ),
        )
    )
    assert account.canonical() == (
        b'{"mechanisms":[{"kind":"sampled_gaussian","sample_rate":0.01,"sigma":1.0,"steps":10},'
        b'{"count":1,"kind":"gaussian","sigma":2.5},'
        b'{"kind":"bounded_mixture","most_examples":4,"sample_rate":0.002,"sigma":1.5,"steps":7},'
        b'{"kind":"no_privacy"},'
        b'{"coordinates":300,"kind":"sampled_discrete_gaussians","sample_rate":0.01,"share_sigma":40.0,'
        b'"shares":4,"sigma":1.0,"steps":2}],"unit":"patient"}'
    )
    assert Account.parse(account.canonical()) == account


@pytest.mark.parametrize(
    ("mechanism", "place"),
    [
        ('{"kind":"laplace","sigma":1.0}', "mechanisms.0"),
        ('{"sigma":1.0}', "mechanisms.0"),
        ('{"kind":"gaussian","sigma":NaN}', "mechanisms.0.gaussian.sigma"),
        ('{"kind":"gaussian","sigma":Infinity}', "mechanisms.0.gaussian.sigma"),
        ('{"kind":"gaussian","sigma":1.0,"noise":2.0}', "mechanisms.0.gaussian.noise"),
        ('{"kind":"sampled_gaussian","sample_rate":1.5,"sigma":1.0}', "sampled_gaussian.sample_rate"),
        ('{"kind":"sampled_gaussian","sample_rate":0.5,"sigma":1.0,"steps":0}', "sampled_gaussian.steps"),
    ],
)
def test_a_broken_account_is_refused_at_its_place(mechanism: str, place: str) -> None:
    """An unknown kind is never guessed."""
    with pytest.raises(ConfigError, match=place):
        Account.parse('{"unit":"patient","mechanisms":[' + mechanism + "]}")


@pytest.mark.parametrize(("rate", "most"), [(0.01, 1), (0.3, 4), (0.999, 50), (1e-6, 1_000), (1.0, 7)])
def test_the_draws_of_a_unit_are_binomial(rate: float, most: int) -> None:
    """Probabilities that add up, with mean K q."""
    drawn = BoundedMixture(sample_rate=rate, sigma=1.0, most_examples=most).probabilities()
    assert len(drawn) == most + 1
    assert math.fsum(drawn) == pytest.approx(1, abs=1e-11)
    assert math.fsum(j * p for j, p in enumerate(drawn)) == pytest.approx(most * rate, rel=1e-9)


def test_an_example_owns_no_examples() -> None:
    """A mixture in an account per example is a mistake about the unit."""
    mixture = BoundedMixture(sample_rate=0.01, sigma=1.0, most_examples=4)
    with pytest.raises(ValidationError, match="owner of several examples"):
        Account(unit="example", mechanisms=(mixture,))
