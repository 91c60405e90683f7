"""Every YAML under conf/ composes, recursively, and the count is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from wardround.simulations.config import RunConfig

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
PRIMARY = [name for name in NAMES if "/" not in name]
GROUPED = [name for name in NAMES if "/" in name]
ENTRY = "config"
COUNT = 64
"""A new YAML raises it; one that no test finds cannot hide."""


def defaults_of(name: str) -> set[str]:
    """Groups that a primary config's defaults list already has."""
    entries = (yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")) or {}).get("defaults", [])
    return {
        key.replace("optional ", "").replace("override ", "").strip("/").partition("@")[0]
        for entry in entries
        if isinstance(entry, dict)
        for key in entry
    }


def test_the_count() -> None:
    """Nobody adds or drops a YAML unseen."""
    assert len(NAMES) == COUNT, NAMES


@pytest.mark.parametrize("name", PRIMARY)
def test_primary_config_composes(name: str) -> None:
    """A YAML at the top composes by itself."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        assert OmegaConf.to_container(compose(config_name=name))


@pytest.mark.parametrize("name", GROUPED)
def test_group_config_composes_under_the_entry(name: str) -> None:
    """A YAML of a group composes as an override of what `simulate` starts from, and the whole is valid."""
    group, _, option = name.rpartition("/")
    plus = "" if group in defaults_of(ENTRY) else "+"
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = OmegaConf.to_container(
            compose(config_name=ENTRY, overrides=[f"{plus}{group}={option}"]), resolve=True
        )
    assert isinstance(composed, dict)
    assert RunConfig.parse({str(key): value for key, value in composed.items()})


@pytest.mark.parametrize("name", [name for name in GROUPED if name.startswith("experiment/")])
def test_no_experiment_leaves_its_bounds_to_plain_steps(name: str) -> None:
    """Where the federation's optimiser is the server's, the runs beside it bring one of their own."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = OmegaConf.to_container(
            compose(config_name=ENTRY, overrides=[f"experiment={name.rpartition('/')[2]}"]), resolve=True
        )
    config = RunConfig.parse(composed)  # type: ignore[arg-type]  # a mapping
    bounds = config.bounds
    if config.strategy.name in {"fedadam", "fedyogi", "fedadagrad"}:
        assert bounds.optimiser in {"adam", "adamw"}
        assert bounds.local_learning_rate is not None
        assert bounds.centralised_learning_rate is not None


@pytest.mark.parametrize("name", NAMES)
def test_every_yaml_opens_with_a_comment(name: str) -> None:
    """A YAML says what it is for before its first key."""
    first = (CONF / f"{name}.yaml").read_text(encoding="utf-8").lstrip()
    comment = next(line for line in first.splitlines() if not line.startswith("# @package"))
    assert comment.startswith("# "), comment
