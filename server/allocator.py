"""What the C library's allocator keeps of what a long-running server has freed."""

from __future__ import annotations

import ctypes
from typing import Final

ARENA_MAX, MMAP_THRESHOLD = -8, -3
"""M_ARENA_MAX and M_MMAP_THRESHOLD of glibc's <malloc.h>."""
ARENAS: Final = 2
LARGE: Final = 128 * 1024


def keep_little() -> bool:
    """Have glibc give back what it can; False where the C library is another one, and nothing is changed.

    By itself it opens an arena for each thread that allocates at the same time as others, and once a block
    of some MB has been freed it keeps such blocks for ever: the memory would follow the most that ever was
    in hand at once. Here blocks above `LARGE` bytes are mapped, and unmapped when they are freed. To be
    called before threads begin.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(ARENA_MAX, ARENAS)) and bool(mallopt(MMAP_THRESHOLD, LARGE))
