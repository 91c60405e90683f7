"""Hydra's own main for our commands, so that -m, --cfg job and --help work; its errors say what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wardround.core.errors import ConfigError, WardroundError, nearest, unknown_name
from wardround.simulations.starter import FILE


def run_hydra(
    arguments: Sequence[str],
    work: Callable[[DictConfig], float | None],
    *,
    program: str,
    config: str,
    settings: Collection[str],
) -> None:
    """Compose a configuration of `conf/` with a person's arguments, and do the work with it.

    Args:
        arguments: Hydra's own, as they came.
        work: What the command does; under -m its value is what a sweep optimises.
        program: The command, for Hydra's help.
        config: The primary configuration.
        settings: Keys of its top level.

    Raises:
        ConfigError: Hydra cannot compose the configuration.
        WardroundError: What the work raises.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would swallow our error and its exit code
    taken = for_hydra(arguments, settings)
    failed: list[Exception] = []

    def job(composed: DictConfig) -> float | None:
        """Keeps what fails, so that it is told apart from what Hydra itself cannot do."""
        try:
            return work(composed)
        except Exception as error:
            failed.append(error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # Hydra runs the other jobs and says which one it was
            return None  # Hydra would print every override before our message

    before, sys.argv = sys.argv, [program, *taken]
    try:
        hydra.main(version_base="1.3", config_path="pkg://wardround.conf", config_name=config)(job)()
    except (
        HydraException,
        OmegaConfBaseException,
        yaml.YAMLError,
        ValueError,
        OSError,
        WardroundError,
    ) as error:
        if not failed:
            raise not_composed(error, taken, settings) from error
    finally:
        sys.argv = before
    if failed:
        raise failed[0]


def plain_values(composed: DictConfig, *, open_allowed: bool = False) -> dict[str, Any]:
    """What Hydra composed as a plain mapping.

    Args:
        composed: What Hydra composed.
        open_allowed: Whether settings may still be `???`.

    Raises:
        ConfigError: A setting is still to be filled in, or it is no mapping.
    """
    if not open_allowed and (open_settings := sorted(OmegaConf.missing_keys(composed))):
        raise ConfigError(
            "some settings are still to be filled in",
            found=", ".join(f"{key}: ???" for key in open_settings),
            remedy=f"write them into the configuration, or give them here: {open_settings[0]}=…",
        )
    values = OmegaConf.to_container(composed, resolve=True)
    if not isinstance(values, dict):
        raise ConfigError("the configuration is not a mapping", found=type(values).__name__)
    return {str(key): value for key, value in values.items()}


def for_hydra(arguments: Sequence[str], settings: Collection[str]) -> list[str]:
    """The arguments as Hydra's parser takes them: flags first, and settings with Hydra's `++`.

    With it a mapping that is empty so far takes any key, and a key that nobody knows reaches our own check,
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
    own = set(settings) - _groups()
    return [*name, *flags, *(_forced(override, own) for override in overrides)]


def _forced(override: str, settings: set[str]) -> str:
    """`section.key=value` or `setting=value` as Hydra's "add or override"; anything else as it is."""
    key = override.partition("=")[0].lstrip("+")
    ours = "." in key and not key.startswith(("~", "hydra.")) and not {"/", "@"} & set(key)
    return "++" + override.lstrip("+") if ours or key in settings else override


def _groups() -> set[str]:
    """Names that choose a file of `conf/`."""
    return {entry.name for entry in resources.files("wardround.conf").iterdir() if entry.is_dir()}


def not_composed(error: Exception, arguments: Sequence[str], settings: Collection[str]) -> WardroundError:
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
    known = set(settings) | _groups()
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
