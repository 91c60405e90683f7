"""A site's supervisor in a process of its own, for tests that kill it; prints its children's process ids.

python site_process.py FOLDER ADDRESS SITE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from deployed import Pair, for_children

from wardround.client.processes import SiteProcesses


def main(folder: str, address: str, site: str) -> None:
    """Until it is killed."""
    pair = Pair(Path(folder), {site: b""})  # its key is there
    with for_children(), SiteProcesses(pair.settings(address, site)) as processes:
        before: object = None
        while True:
            now = [[state.pid, state.code] for state in processes.states()]
            if now != before:
                sys.stdout.write(json.dumps(now) + "\n")
                sys.stdout.flush()
                before = now
            time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
