"""The stack on which a thread runs its signal handlers, kept from a library that leaves it in pieces.

OpenVINO gives the thread that compiles a network a signal stack of its own, and puts back the one before when that
network is freed. Networks that are not freed in the reverse order leave the thread with a stack that was given back to
the system: the next signal with a handler (Ctrl-C, a child process that ends) kills the process with SIGSEGV.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of Linux (sigaltstack(2))."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """The calling thread has the signal stack afterwards that it had before. Does nothing but on Linux."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    before = _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
