"""docs/realism.md and the presets say what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from wardround.simulations.config import RunConfig
from wardround.simulations.hydra_main import for_hydra
from wardround.simulations.virtual.availability import ByTime, presence_of
from wardround.simulations.virtual.figures import Figure
from wardround.simulations.virtual.settings import Availability, Realism

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "realism.md").read_text(encoding="utf-8")
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "realism").glob("*.yaml"))


def composed(arguments: list[str]) -> RunConfig:
    """What `wardround simulate` makes of its arguments."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        overrides = for_hydra(arguments, RunConfig.model_fields)
        values: Any = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    return RunConfig.parse(values)


def flows(text: str) -> list[Any]:
    """The YAML mappings with a kind that stand in a text."""
    return [yaml.safe_load(found) for found in re.findall(r"\{kind: [^{}]*(?:\{[^{}]*\}[^{}]*)*\}", text)]


@pytest.mark.parametrize("place", ["docs/realism.md", "docs/configuration.md", "conf/config.yaml"])
def test_every_example_of_a_figure_or_of_hours_is_one(place: str) -> None:
    """As it stands there."""
    found = flows((ROOT / place).read_text(encoding="utf-8"))
    assert len(found) >= 2
    for flow in found:
        hours = flow["kind"] in ("trace", "diurnal")
        kind: Any = TypeAdapter(Availability if hours else Figure)
        assert kind.validate_python(flow)


def test_every_kind_is_explained() -> None:
    """Of figures and of hours, each on the page."""
    schema = str(Realism.model_json_schema())
    kinds = set(re.findall(r"'const': '(\w+)'", schema))
    assert kinds == {"lognormal", "pareto", "uniform", "sites", "trace", "diurnal"}
    assert {flow["kind"] for flow in flows(PAGE)} == kinds


def test_the_commands_of_the_page_and_the_presets_compose() -> None:
    """Each gives a run a clock; every preset is named on the page, and says itself what its figures are."""
    commands = re.findall(r"^(?:# )?wardround simulate (.*)$", PAGE, flags=re.MULTILINE)
    for name in PRESETS:
        text = (ROOT / "conf" / "realism" / f"{name}.yaml").read_text(encoding="utf-8")
        assert "Illustrative" in text
        (own,) = re.findall(r"^# wardround simulate (.*)$", text, flags=re.MULTILINE)
        assert f"+realism={name}" in own
        commands += [own, f"+realism={name}"]
        assert f"`{name}`" in PAGE or f"+realism={name}" in PAGE
    assert len(commands) == 2 + 2 * len(PRESETS)
    for command in commands:
        assert composed(command.split()).simulation.realism.on
    assert not composed([]).simulation.realism.on
    tail = composed(["+realism=stragglers", "simulation.realism.compute_s=2"]).simulation.realism
    assert tail.compute_s == 2.0


def test_the_trace_of_the_page_is_one(tmp_path: Path) -> None:
    """Two stays of one site, and one that is always there; the JSON line says the same as the first."""
    (text,) = re.findall(r"^site,from,to\n(?:.+\n)+?(?=```)", PAGE, flags=re.MULTILINE)
    line = re.search(r'\{"site".*?\}', PAGE)
    assert line is not None
    for name, content in (("csv", text), ("jsonl", line.group() + "\n")):
        (tmp_path / name).write_text(content)
    settings: Any = TypeAdapter(Availability)
    given = {"kind": "trace", "unit": "h", "path": str(tmp_path / "csv")}
    csv = presence_of(settings.validate_python(given), ["ward_a", "ward_b"], 0)
    json = presence_of(settings.validate_python(given | {"path": str(tmp_path / "jsonl")}), ["ward_a"], 0)
    assert isinstance(csv, ByTime)
    assert isinstance(json, ByTime)
    assert csv.sites["ward_a"].spans == ((0.0, 8 * 3600.0), (20 * 3600.0, 32 * 3600.0))
    assert csv.sites["ward_b"].spans == ((0.0, float("inf")),)
    assert json.sites["ward_a"].spans == ((0.0, 8 * 3600.0),)
