"""A researcher's own `module:attribute`: the folder that a command is started in can be imported from.

For simulations and the commands that read their folders; a site runs what it has installed and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path


def own_modules() -> None:
    """Let the working folder be imported from, before everything that is installed, as `python -m` does."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
