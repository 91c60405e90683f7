"""Every setting stands in the composed configuration, so that it can be overridden without a plus sign."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from wardround.core.checked import known_keys
from wardround.simulations.config import RunConfig

# A source, a template and a strategy's or adapter's options are values of their own; so is privacy.
WHOLE = ("data.source", "data.test", "data.template", "data.sites", "data.site_tests", "privacy")


def test_every_key_of_the_run_configuration_is_in_the_composed_one() -> None:
    """No key of RunConfig is missing, whatever its section."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("config"), resolve=False)
    missing = []
    for section, keys in known_keys(RunConfig).items():
        if section.startswith(WHOLE):
            continue
        place = composed
        for part in filter(None, section.split(".")):
            place = (place or {}).get(part, {})
        missing += [f"{section}.{key}" for key in keys if key not in place]
    assert missing == []


def test_what_the_commands_choose_by_themselves() -> None:
    """The page says `auto under conf/config.yaml` of four settings, and of no others."""
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
    told = re.findall(r"^\| `([\w.]+)` \| [^|]*, auto under `conf/config.yaml` \|", page, flags=re.MULTILINE)
    assert told == [
        "local.optimiser_state", "strategy.name", "simulation.backend", "simulation.together",
    ]  # fmt: skip
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = compose("config")
    assert [OmegaConf.select(composed, key) for key in told] == ["auto"] * 4
