"""`wardround init`: a commented configuration for one's own data and model, outside any clone."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rich.console import Console

from wardround.core.errors import ConfigError
from wardround.runtime.files import write_atomic

FILE = "wardround.yaml"


def write_starter(folder: Path) -> Path:
    """Write `wardround.yaml` into a folder.

    Raises:
        ConfigError: There is one already.
        StorageError: It cannot be written.
    """
    target = folder / FILE
    if target.exists():
        raise ConfigError(f"{target} is there already", remedy="edit it, or choose another folder")
    template = resources.files("wardround.conf").joinpath("starter.yaml").read_bytes()
    write_atomic(target, template)
    Console().print(
        f"Wrote [bold]{target}[/bold]. Fill in the paths and columns at its top, then run\n"
        f"  wardround data check YOUR_FILE\n"
        f"  wardround simulate --config-dir {folder}"
    )
    return target
