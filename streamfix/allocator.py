"""How this process asks the C library for memory. Each call is False, and changes nothing, without glibc."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""
_KEPT, _LARGEST = 128 << 20, 16 << 20


def share_arenas(most: int = 2) -> bool:
    """Have all threads of this process take memory from `most` common pools, so that a long run stays small.

    glibc gives new threads a pool (arena) of their own, up to eight for each core, and a pool keeps what was once asked
    of it. Live, every thread of every stage holds large pictures now and then: resident memory then creeps for ten minutes,
    and stays flat with two pools. To be called before there are threads. False also where MALLOC_ARENA_MAX says what
    the user wants.
    """
    return "MALLOC_ARENA_MAX" not in os.environ and _set(_M_ARENA_MAX, most)


def keep_freed() -> bool:
    """Keep up to 128 MB of freed memory at hand, in blocks below 16 MB: a network asks for the same again at its next layer.

    Else glibc may give each layer's memory back to the system and fetch it anew, page by page: 4,500 page faults a face
    were counted, 4 to 20 ms, in about every second process. False also where the environment says what the user wants.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    return _set(_M_MMAP_THRESHOLD, _LARGEST) and _set(_M_TRIM_THRESHOLD, _KEPT)


def _set(option: int, value: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows
        return False
    return bool(mallopt(option, value))
