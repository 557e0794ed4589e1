"""How a server of threads asks the C library for memory."""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def share_arenas(most: int = 2) -> bool:
    """Have all threads of this process take memory from `most` common pools, so that a long run stays small.

    glibc gives new threads a pool (arena) of their own, up to eight for each core, and a pool keeps what was once asked
    of it. Live, every thread of every stage holds large pictures now and then: resident memory then creeps for ten minutes,
    and stays flat with two pools. To be called before there are threads. False, and nothing is changed, without glibc, and
    where MALLOC_ARENA_MAX says what the user wants.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows
        return False
    return bool(mallopt(_M_ARENA_MAX, most))
