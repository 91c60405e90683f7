"""A worker on a machine that others use: how far it stands back for them, and how much memory it may take."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from wardround.client.site_settings import SiteSettings
from wardround.core.errors import WardroundError

LOG = logging.getLogger(__name__)
GIB: Final = 2**30
AUTOGROUP: Final = Path("/proc/self/autogroup")
"""Where Linux groups processes by session, it is the group's niceness that counts."""


def stand_back(niceness: int, autogroup: Path = AUTOGROUP) -> None:
    """Let other processes of this machine go first.

    Args:
        niceness: 0 to 19, as of nice(1); this process never goes back to less.
        autogroup: Of this process.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    with suppress(OSError):  # there is none, or it is not ours
        if autogroup.exists():
            autogroup.write_text(str(niceness))


def cap_memory(gib: float | None, device: Literal["cpu", "cuda"]) -> None:
    """Refuse this process more memory than so much: of a CUDA device where it trains on one, else of its own.

    What does not fit then fails as where a machine has no more: a microbatch is halved, a model is refused.

    Args:
        gib: 2³⁰ bytes; None: as much as there is.
        device: Where it trains.
    """
    if gib is None:
        return
    if device == "cuda":
        import torch

        for index in range(torch.cuda.device_count()):
            whole = torch.cuda.get_device_properties(index).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / whole), index)
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(gib * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def share(settings: Callable[[], SiteSettings]) -> None:
    """Both, as `site.yaml` says, for the rest of this process' life.

    Where it cannot be read nothing is trained either: each offer is refused for that.
    """
    import torch

    try:
        said = settings()
    except WardroundError as error:
        LOG.warning("niceness and memory are as they were: %s", error)
        return
    cuda = said.machine.device in ("auto", "cuda") and torch.cuda.is_available()
    stand_back(said.niceness)
    cap_memory(said.memory_gib, "cuda" if cuda else "cpu")
    LOG.info("niceness %d, memory %s", said.niceness, said.memory_gib or "as much as there is")
