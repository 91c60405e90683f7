"""`wardround simulate`: hands the arguments to Hydra's own main, so that -m, --cfg job and --help work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from wardround.core.errors import ConfigError
from wardround.runtime.events import EventSink
from wardround.runtime.sinks import RichSink
from wardround.simulations.config import RunConfig
from wardround.simulations.first_checks import check_first
from wardround.simulations.hydra_main import plain_values, run_hydra
from wardround.simulations.own_modules import own_modules

if TYPE_CHECKING:
    from wardround.simulations.simulate import SimulationResult

SETTINGS = frozenset(RunConfig.model_fields)


def main(arguments: Sequence[str]) -> None:
    """Run `wardround simulate` with Hydra's arguments.

    Raises:
        ConfigError: Hydra cannot compose the configuration.
        WardroundError: As `run_simulation`.
    """
    own_modules()
    run_hydra(arguments, _job, program="wardround simulate", config="config", settings=SETTINGS)


def _job(composed: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    if composed.get("resume"):
        refuse_changes(hydra_config.overrides.task)
    if hydra_config.mode == RunMode.MULTIRUN:
        named = any(override.lstrip("+").startswith("output=") for override in hydra_config.overrides.task)
        folder = (
            Path(composed.output) / str(hydra_config.job.num) if named else hydra_config.runtime.output_dir
        )
        composed.output = str(folder)  # each job of a sweep has a folder of its own
    result = run_composed(composed)
    best = result.federated.outcome.selection.best
    return best[1] if best else None


def refuse_changes(overrides: Sequence[str]) -> None:
    """A resumed run keeps the configuration that it began with; what would be passed over is refused.

    Raises:
        ConfigError: There are overrides beside `resume`.
    """
    others = [
        override.lstrip("+") for override in overrides if not override.lstrip("+").startswith("resume=")
    ]
    if others:
        raise ConfigError(
            "a resumed run keeps the configuration that it began with",
            found=", ".join(others),
            expected="resume=FOLDER alone",
            remedy="start a new run with these settings; adapter.start_from goes on from a saved adapter",
        )


def run_composed(
    composed: DictConfig, *, console: Console | None = None, sinks: tuple[EventSink, ...] = ()
) -> SimulationResult:
    """Run what Hydra composed, with progress on the terminal; `resume` takes the run's own configuration.

    Args:
        composed: What Hydra composed.
        console: Where to show progress and result.
        sinks: More readers of the event stream.

    Raises:
        ConfigError: A setting is still to be filled in, or as `config_of` and `check_first`.
        WardroundError: As `run_simulation`.
    """
    config = config_of(plain_values(composed, open_allowed=bool(composed.get("resume"))))
    check_first(config)
    # Only now, since torch comes with them: what is wrong so far is told without waiting for it.
    from wardround.simulations.report import print_result
    from wardround.simulations.simulate import run_simulation

    console = console or Console()
    sink = RichSink(console)
    try:
        result = run_simulation(config, sinks=(sink, *sinks))
    except KeyboardInterrupt:
        folder = Path(config.resume or config.output)
        if (folder / "run.json").exists():
            console.print(f"interrupted; go on with: wardround simulate resume={folder}", soft_wrap=True)
        raise
    print_result(result, console)
    return result


def config_of(values: dict[str, Any]) -> RunConfig:
    """The checked configuration; with `resume`, the one that the run began with.

    Raises:
        ConfigError: As `RunConfig.parse`, or the run to resume is not there.
    """
    resume = values.get("resume")
    if not resume:
        return RunConfig.parse(values)
    saved = Path(str(resume)) / "config.yaml"
    try:
        began_with = yaml.safe_load(saved.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"there is no run to resume in {resume}",
            found=type(error).__name__,
            expected=f"{saved}",
            remedy="correct the folder; where the run ended before this file was written, start it again",
        ) from error
    if not isinstance(began_with, dict):
        raise ConfigError(f"{saved} holds no configuration", found=type(began_with).__name__)
    return RunConfig.parse({**began_with, "resume": str(resume)})
