"""The main of the node's process: `python -m wardround.client.supernode_process`, started by processes.py."""

from __future__ import annotations

import os
import sys

from wardround.client.child import QUIET, NodeSettings, read_settings, show_life
from wardround.client.quiet_log import log_quietly
from wardround.core.errors import WardroundError


def main() -> int:
    """Read settings from standard input and be the site's node; gives the exit code."""
    os.environ.update(QUIET)  # Flower reads these when it is imported
    log_quietly("node")
    try:
        settings = read_settings(NodeSettings)
        show_life(settings.beats)
        from wardround.client.supernode import serve_node

        return serve_node(settings)
    except WardroundError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
