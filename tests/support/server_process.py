"""A consortium's server in a process of its own, for tests that kill it: asks sites what it is told to.

    python server_process.py FOLDER ADDRESS '{"SITE": "KEY IN HEX"}'

Prints its address; then takes one JSON line `{"site": ..., "seconds": ..., "ask": {...}}` after the other and
prints `{"answer": ...}` or `{"error": ...}`; null where none came in time. It ends with its standard input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deployed import Pair, ask


def say(line: str) -> None:
    """To the test."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(folder: str, address: str, sites: str) -> None:
    """Serve."""
    with Pair(Path(folder)).server(address) as link:
        for site, key in json.loads(sites).items():
            link.admit(site, bytes.fromhex(key))
        say(link.address)
        run = link.open_run("killed")
        for line in sys.stdin:
            order = json.loads(line)
            if order == "online":
                say(json.dumps(dict(link.online())))
                continue
            reply = ask(run, order["site"], order["seconds"], **order["ask"])
            if reply is None:
                answered = None
            elif reply.has_error():
                answered = {"error": reply.error.reason}
            else:
                answered = {"answer": dict(reply.content.config_records["answer"])}
            say(json.dumps(answered))


if __name__ == "__main__":
    main(*sys.argv[1:])
