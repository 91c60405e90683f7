"""What `auto` stands for, and that nobody is refused for it."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from wardround.core.errors import ConfigError
from wardround.simulations.config import RunConfig
from wardround.training.chosen_strategy import with_strategy


def checked(*overrides: str) -> RunConfig:
    """The shipped configuration with these overrides."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = compose("config", overrides=["output=x", *overrides])
    values: Any = OmegaConf.to_container(composed, resolve=True)
    values.pop("realism", None)
    return RunConfig.parse(values)


@pytest.mark.parametrize(
    ("overrides", "name", "state"),
    [
        ((), "tangent", "keep"),
        (("experiment=demo",), "fedavg", "reset"),
        (("strategy.options.proximal=0.1",), "tangent", "keep"),
        (("+compression=int4", "secure.mode=off"), "tangent", "keep"),
        (
            ("strategy.options.server.optimiser=momentum", "+strategy.options.server.momentum=0.5"),
            "tangent",
            "keep",
        ),
        (("strategy=tangent",), "tangent", "keep"),
        (("local.optimiser_state=reset",), "tangent", "reset"),
        (("strategy=fedavg",), "fedavg", "reset"),
        (("strategy=fedavg", "local.optimiser_state=keep"), "fedavg", "keep"),
        (("strategy=scaffold",), "scaffold", "reset"),
        (("strategy.options.server.optimiser=adam",), "fedavg", "reset"),
        (("adapter.options.targets=none",), "fedavg", "reset"),
        (("adapter=lora_sb",), "fedavg", "reset"),
        (("+compression=top_k", "secure.mode=off"), "fedavg", "reset"),
        (("experiment=heart_head",), "fedavg", "reset"),
        (("experiment=heart_head", "privacy=distributed"), "fedavg", "reset"),
        (("privacy=patient",), "fedavg", "reset"),
        (("privacy=patient", "strategy=tangent"), "tangent", "reset"),
        (("privacy=client",), "fedavg", "reset"),
        (("privacy=banded",), "fedavg", "reset"),
    ],
)
def test_the_shipped_settings_name_a_strategy(overrides: tuple[str, ...], name: str, state: str) -> None:
    """Tangent aggregation with kept moments where it can be; else FedAvg, or what was asked for."""
    config = checked(*overrides)
    assert (config.strategy.name, config.local.optimiser_state) == (name, state)


def test_what_was_written_beside_it_stays() -> None:
    """Options and weighting are the chosen strategy's."""
    found = checked("strategy.options.proximal=0.1", "strategy.weighting=uniform").strategy
    assert (found.options["proximal"], found.weighting) == (0.1, "uniform")


@pytest.mark.parametrize(
    "values", [None, 3, "auto", [], {"strategy": "auto"}, {"strategy": None, "local": 3}]
)
def test_what_is_no_configuration_is_left_to_the_checks(values: Any) -> None:
    """Unchanged, without a fault of its own."""
    assert with_strategy(values) == values


def test_an_unknown_state_is_still_refused() -> None:
    """Only the word itself is replaced."""
    with pytest.raises(ConfigError, match=r"local\.optimiser_state"):
        checked("local.optimiser_state=automatic")
