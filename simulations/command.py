"""`wardround simulate`: hands the arguments to Hydra's own main, so that -m, --cfg job and --help work."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from wardround.core.errors import ConfigError, WardroundError, nearest, unknown_name
from wardround.runtime.events import EventSink
from wardround.runtime.sinks import RichSink
from wardround.simulations.config import RunConfig
from wardround.simulations.first_checks import check_first
from wardround.simulations.own_modules import own_modules
from wardround.simulations.starter import FILE

if TYPE_CHECKING:
    from wardround.simulations.simulate import SimulationResult


def main(arguments: Sequence[str]) -> None:
    """Run `wardround simulate` with Hydra's arguments.

    Raises:
        ConfigError: Hydra cannot compose the configuration.
        WardroundError: As `run_simulation`.
    """
    own_modules()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would swallow our error and its exit code
    taken = for_hydra(arguments)
    failed: list[Exception] = []

    def job(composed: DictConfig) -> float | None:
        """Keeps what fails, so that it is told apart from what Hydra itself cannot do."""
        try:
            return _job(composed)
        except Exception as error:
            failed.append(error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # Hydra runs the other jobs and says which one it was
            return None  # Hydra would print every override before our message

    program, sys.argv = sys.argv, ["wardround simulate", *taken]
    try:
        hydra.main(version_base="1.3", config_path="pkg://wardround.conf", config_name="config")(job)()
    except (
        HydraException,
        OmegaConfBaseException,
        yaml.YAMLError,
        ValueError,
        OSError,
        WardroundError,
    ) as error:
        if not failed:
            raise not_composed(error, taken) from error
    finally:
        sys.argv = program
    if failed:
        raise failed[0]


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra's parser takes them: flags first, and settings with Hydra's `++`.

    With it a mapping that is empty so far takes any key, and a key that nobody knows reaches `RunConfig`,
    which names the nearest known one. Choices of a group (`strategy=fedadam`) stay as they are.
    Where a folder alone is given, the name of the file that `wardround init` writes is added.

    Raises:
        ConfigError: An override has no name.
    """
    overrides = [argument for argument in arguments if argument[:1] != "-" and "=" in argument]
    if any(not override.partition("=")[0].strip("+~ ") for override in overrides):
        raise ConfigError("an override has no name", expected="section.key=value, such as rounds.rounds=5")
    flags = [argument for argument in arguments if argument not in overrides]
    named = any(flag.split("=")[0] in ("--config-name", "-cn") for flag in flags)
    folder = any(flag.split("=")[0] in ("--config-dir", "-cd") for flag in flags)
    name = ["--config-name", Path(FILE).stem] if folder and not named else []
    settings = set(RunConfig.model_fields) - _groups()
    return [*name, *flags, *(_forced(override, settings) for override in overrides)]


def _forced(override: str, settings: set[str]) -> str:
    """`section.key=value` or `setting=value` as Hydra's "add or override"; anything else as it is."""
    key = override.partition("=")[0].lstrip("+")
    ours = "." in key and not key.startswith(("~", "hydra.")) and not {"/", "@"} & set(key)
    return "++" + override.lstrip("+") if ours or key in settings else override


def _groups() -> set[str]:
    """Names that choose a file of `conf/`."""
    return {entry.name for entry in resources.files("wardround.conf").iterdir() if entry.is_dir()}


def not_composed(error: Exception, arguments: Sequence[str]) -> WardroundError:
    """What keeps Hydra from composing, with the nearest known name where a name is wrong."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if error.options:
            return unknown_name(f"choice of {group}", choice, error.options)
        return ConfigError(
            "the configuration cannot be composed",
            found=f"no file {error.missing_cfg_file}.yaml",
            expected="one in the folder that --config-dir names, or in conf/",
            remedy="write one with `wardround init DIR`, or correct --config-dir and --config-name",
        )
    known = set(RunConfig.model_fields) | _groups()
    keys = [
        argument.partition("=")[0].strip("+~")
        for argument in arguments
        if argument[:1] != "-" and "=" in argument
    ]
    unknown = [key for key in keys if key and key.split(".")[0] not in known | {"hydra"}]
    guess = nearest(unknown[0], known) if unknown else None
    return ConfigError(
        "the configuration cannot be composed",
        found=str(error).strip().split("\n\n")[0],
        remedy=f"did you mean {guess!r} instead of {unknown[0]!r}?" if guess else None,
    )


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
    if not composed.get("resume") and (open_settings := sorted(OmegaConf.missing_keys(composed))):
        raise ConfigError(
            "some settings are still to be filled in",
            found=", ".join(f"{key}: ???" for key in open_settings),
            remedy=f"write them into the configuration, or give them here: {open_settings[0]}=…",
        )
    values = OmegaConf.to_container(composed, resolve=True)
    if not isinstance(values, dict):
        raise ConfigError("the configuration is not a mapping", found=type(values).__name__)
    config = config_of({str(key): value for key, value in values.items()})
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
