"""What a study tunes: Hydra's grammar as Optuna's distributions, and what it refuses."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from wardround.core.errors import ConfigError
from wardround.simulations.tuning.space import split


@pytest.mark.parametrize(
    ("argument", "distribution"),
    [
        ("local.learning_rate=interval(1e-4,1e-2)", FloatDistribution(1e-4, 1e-2)),
        ("local.learning_rate=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("rounds.rounds=int(interval(2,9))", IntDistribution(2, 9)),
        ("rounds.rounds=tag(log,int(interval(2,9)))", IntDistribution(2, 9, log=True)),
        ("rounds.rounds=range(1,9)", IntDistribution(1, 8)),
        ("rounds.rounds=range(1,9,3)", IntDistribution(1, 7, step=3)),
        ("adapter.options.r=choice(4,8,16)", CategoricalDistribution(["4", "8", "16"])),
        ("strategy=fedavg,tangent", CategoricalDistribution(["fedavg", "tangent"])),
        ("x=choice([q,v],[q])", CategoricalDistribution(["[q,v]", "[q]"])),
    ],
)
def test_hydras_distributions_are_optunas(argument: str, distribution: object) -> None:
    """Interval, range without its end, choice; `tag(log, …)` for a logarithmic scale."""
    tuned, rest = split([argument, "seed=3", "--config-dir", "study"])
    assert [one.distribution for one in tuned] == [distribution]
    assert rest == ["seed=3", "--config-dir", "study"]


def test_a_value_becomes_the_override_that_a_person_would_write() -> None:
    """With the `+` that they wrote; a step leaves no trace of binary fractions; every choice is probed."""
    (stepped, chosen, free), _ = split(
        ["local.weight_decay=range(0.1,0.5,0.1)", "+x.y=choice('a b',c)", "z=interval(1,2)"]
    )
    assert stepped.override(0.1 + 0.2) == "local.weight_decay=0.3"
    assert [chosen.override(value) for value in chosen.probes()] == ["+x.y=a\\ b", "+x.y=c"]
    assert chosen.name == "x.y"
    assert free.probes()[::2] == [1.0, 2.0]
    assert not float(free.probes()[1]).is_integer()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=1"], "nothing is tuned"),
        (["a=log(1,2)"], "tag(log,interval(LOW,HIGH))"),
        (["a=glob(*)"], "pattern"),
        (["a=choice(1,1)"], "a choice is there twice"),
        (["a=interval(2,1)"], "its ends"),
        (["a=tag(log,interval(0,1))"], "begins above 0"),
        (["a=range(3,1)"], "its ends or its step"),
        (["a=1,2", "+a=3,4"], "a setting is tuned twice"),
        (["output=x", "a=1,2"], "--output"),
        (["resume=x", "a=1,2"], "repeat the command"),
        (["-m", "a=1,2"], "simulate -m"),
        (["hydra.verbose=true,false"], "only settings of a run"),
    ],
)
def test_what_cannot_be_tuned_is_refused(arguments: list[str], said: str) -> None:
    """With what was found, what was expected, or what to do."""
    with pytest.raises(ConfigError) as refused:
        split(arguments)
    assert said in str(refused.value)
