"""The key of a trusted aggregator that is the consortium's server: made there, and it never leaves.

Sites seal their contributions to its public half (`privacy/sealed.py`), which the plan names and each site's
people pin. Whoever gets the private half opens whatever was recorded under it, so it can be made anew for
each run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wardround.core.errors import ConfigError, PeerError, StorageError
from wardround.privacy.sealed import public_key
from wardround.runtime.files import erase_file, storing, write_atomic
from wardround.runtime.membership import spoken
from wardround.runtime.signed_plan import read_signed_plan
from wardround.runtime.small_files import exchange_pem
from wardround.server.consortium.server_folder import AGGREGATOR_KEY, ServerFolder, open_server_folder
from wardround.server.run_record import found_runs
from wardround.server.run_states import RunStatus

RUNS: Final = "runs"


@dataclass(frozen=True)
class AggregatorKey:
    """What a command found or made.

    Attributes:
        public: X25519, 32 bytes.
        made: Whether it is new.
        lost: Runs that stopped or failed under the former key, and can be resumed no more.
    """

    public: bytes
    made: bool
    lost: tuple[str, ...] = ()


def aggregator_key(path: Path, *, new: bool = False) -> AggregatorKey:
    """The key that lies in a server's folder; made where there is none, or where a new one is asked for.

    Args:
        path: Of the server's folder.
        new: Whether to destroy the one that is there.

    Raises:
        StorageError: It is no server's folder, or the key cannot be written; or, where no new one is asked
            for, it is open to others or none.
        ConfigError: A run that has not ended needs the one that is there.
    """
    folder = open_server_folder(path)
    file, key = folder.path / AGGREGATOR_KEY, X25519PrivateKey.generate()
    lost: tuple[str, ...] = ()
    if not new:
        before = folder.aggregator()
        if before is not None:
            return AggregatorKey(public_key(before), made=False)
    elif file.is_symlink() or file.exists():
        lost = _require_unused(folder)
        with storing(file):
            erase_file(file)
    write_atomic(file, exchange_pem(key), private=True)
    return AggregatorKey(key.public_key().public_bytes_raw(), made=True, lost=lost)


def show_aggregator_key(path: Path, *, new: bool) -> None:
    """Make the key where it is due, and say what to do with its public half; raises as `aggregator_key`."""
    found = aggregator_key(path, new=new)
    lines = [
        f"{path / AGGREGATOR_KEY} " + ("is new" if found.made else "was there already")
        + ": it stays on this machine, and opens every site's contribution",
        f"in the plan: secure.mode=trusted secure.aggregator={found.public.hex()}",
        "in each site's site.yaml, once its people have compared the key on the phone:",
        f"  policy: {{modes: [trusted], aggregator: {found.public.hex()}}}",
        f"to read out:\n  {spoken(found.public.hex())}",
        *(f"{run} was made for the former key and cannot be resumed" for run in found.lost),
    ]  # fmt: skip
    sys.stdout.write("\n".join(lines) + "\n")


def _require_unused(folder: ServerFolder) -> tuple[str, ...]:
    """Refuse to destroy a key that a run needs; gives those that stopped or failed under it.

    A key that cannot be used any more may be the one of any run whose contributions are sealed.
    """
    try:
        key = folder.aggregator()
    except StorageError:
        key = None
    own = None if key is None else public_key(key).hex()
    lost: list[str] = []
    for run in found_runs(folder.path / RUNS):
        try:
            named = read_signed_plan(run.signed_plan, folder.consortium_key).plan.secure.aggregator
            status = run.load().status
        except (PeerError, StorageError):  # such a run cannot go on under any key
            continue
        if named is None or own not in (None, named) or status is RunStatus.FINISHED:
            continue
        if not status.ended:
            raise ConfigError(
                "a run that has not ended needs the aggregator's key that is there",
                found=f"{run.run_id} is {status}", expected="runs that have ended",
                remedy="wait for it, or stop it: wardround run stop",
            )  # fmt: skip
        lost.append(run.run_id)
    return tuple(lost)
