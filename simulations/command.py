"""`wardround simulate`: hands the arguments to Hydra's own main, so that -m, --cfg job and --help work."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from wardround.core.errors import ConfigError
from wardround.runtime.sinks import RichSink
from wardround.simulations.config import RunConfig
from wardround.simulations.report import print_result
from wardround.simulations.simulate import SimulationResult, run_simulation
from wardround.simulations.starter import FILE


def main(arguments: Sequence[str]) -> None:
    """Run `wardround simulate` with Hydra's arguments.

    Raises:
        ConfigError: Hydra cannot compose the configuration.
        WardroundError: As `run_simulation`.
    """
    sys.path.insert(0, str(Path.cwd()))  # a researcher's own module:attribute lies beside them
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would swallow our error and its exit code
    program, sys.argv = sys.argv, ["wardround simulate", *for_hydra(arguments)]
    try:
        hydra.main(version_base="1.3", config_path="pkg://wardround.conf", config_name="config")(_job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError("the configuration cannot be composed", found=str(error).strip()) from error
    finally:
        sys.argv = program


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra's parser takes them: flags first.

    Where a folder alone is given, the name of the file that `wardround init` writes is added.
    """
    overrides = [argument for argument in arguments if argument[:1] != "-" and "=" in argument]
    flags = [argument for argument in arguments if argument not in overrides]
    named = any(flag.split("=")[0] in ("--config-name", "-cn") for flag in flags)
    folder = any(flag.split("=")[0] in ("--config-dir", "-cd") for flag in flags)
    name = ["--config-name", Path(FILE).stem] if folder and not named else []
    return [*name, *flags, *overrides]


def _job(composed: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        named = any(override.startswith("output=") for override in hydra_config.overrides.task)
        folder = (
            Path(composed.output) / str(hydra_config.job.num) if named else hydra_config.runtime.output_dir
        )
        composed.output = str(folder)  # each job of a sweep has a folder of its own
    result = run_composed(composed)
    best = result.federated.outcome.selection.best
    return best[1] if best else None


def run_composed(composed: DictConfig, *, console: Console | None = None) -> SimulationResult:
    """Run what Hydra composed, with progress on the terminal; `resume` takes the run's own configuration."""
    values = OmegaConf.to_container(composed, resolve=True)
    if not isinstance(values, dict):
        raise ConfigError("the configuration is not a mapping", found=type(values).__name__)
    config = config_of({str(key): value for key, value in values.items()})
    console = console or Console()
    sink = RichSink(console)
    result = run_simulation(config, sinks=(sink,))
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
    except OSError as error:
        raise ConfigError(
            f"there is no run to resume in {resume}", found=type(error).__name__, expected=f"{saved}"
        ) from error
    return RunConfig.parse({**began_with, "resume": str(resume)})
