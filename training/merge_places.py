"""Where a merge reads from and writes to; looked at before torch is imported."""

from __future__ import annotations

from pathlib import Path

from wardround.core.errors import ConfigError, ModelError
from wardround.training.adapters.contract import CONFIG_FILE, WEIGHTS_FILE


def check_places(adapter_folder: Path, out: Path) -> None:
    """Refuse a merge that has nothing to read, or no free place to write.

    Raises:
        ModelError: There is no adapter in the folder.
        ConfigError: `out` holds something already.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (adapter_folder / name).is_file():
            raise ModelError(
                f"no adapter in {adapter_folder}", found=f"no {name}",
                expected="a folder with PEFT's two files", remedy="give the run's adapter folder",
            )  # fmt: skip
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"{out} is already there",
            expected="a new folder",
            remedy="choose another one, or remove it first",
        )
