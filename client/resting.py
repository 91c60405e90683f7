"""An idle worker lets the base model go, and takes it back for the next message: the machine is shared.

All else of a run stays in memory: its encoded rows, its keys in sums that are still open. So the site answers
as if nothing had been, to the same bits, and a sum that waits for other sites is not lost.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import torch

from wardround.client.site import Site
from wardround.training.workbench import Workbench

BENCH: Final = "bench"


@dataclass(frozen=True)
class Resting:
    """A site without its base model.

    Attributes:
        rest: Everything else of it.
    """

    rest: Mapping[str, Any]

    @staticmethod
    def of(site: Site) -> Resting:
        """What stays of a site when its model goes."""
        return Resting({part.name: getattr(site, part.name) for part in fields(site) if part.name != BENCH})

    def woken(self, bench: Workbench) -> Site:
        """The site as it was, with the plan's model loaded anew."""
        return Site(bench=bench, **self.rest)


def give_memory_back() -> None:
    """Hand the memory of what nobody refers to any more back to the device, for others to use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
