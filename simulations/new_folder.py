"""Whether a folder can hold a new run; read before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from wardround.core.errors import ConfigError
from wardround.runtime.files import PART

OPENING = frozenset({"config.yaml", "config.json", "plan.json", "environment.json"})
"""What stands in the folder before `run.json`, with which a run begins."""


def never_began(path: Path) -> bool:
    """Whether a run was killed while its folder was opened: `run.json`, which comes last, is missing."""
    return (path / "config.yaml").exists() and set(_names(path)) <= OPENING


def _names(path: Path) -> list[str]:
    """What stands in a folder, without what a killed process left under temporary names."""
    if not path.is_dir():
        return []
    return [entry.name for entry in path.iterdir() if not is_temporary(entry)]


def is_temporary(path: Path) -> bool:
    """Whether a killed process left it while it wrote."""
    return path.name.startswith(".") and path.name.endswith(PART)


def require_new(path: Path) -> None:
    """Refuse a folder that can hold no new run.

    Raises:
        ConfigError: It holds something, or is a file.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(
            f"the output folder {path} is a file", remedy="choose another with output=…, or move it away"
        )
    if _names(path):
        run = (path / "run.json").exists() or never_began(path)
        raise ConfigError(
            f"the output folder {path} is not empty",
            remedy="choose another with output=…"
            + (f", or go on with that run: resume={path}" if run else ""),
        )
