"""A live server's threads share their memory; a network's layers use it again."""

import os
import subprocess
import sys

import pytest

ARENAS = """
import ctypes, sys, threading
from streamfix.allocator import share_arenas
print(share_arenas())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc_stats.restype = None
gate = threading.Barrier(12)
def ask():
    gate.wait()
    for _ in range(200):
        libc.malloc(5000)
    gate.wait()
threads = [threading.Thread(target=ask) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_stats()
"""

FAULTS = """
import resource
import numpy as np
from streamfix.allocator import keep_freed
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        layers = [np.ones(side << 20, np.uint8) for side in (2, 4, 8)]
        del layers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
said = keep_freed()
faults()
print(said, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_threads_share_two_arenas_unless_the_user_says_otherwise() -> None:
    def run(**more: str) -> tuple[str, int]:
        environment = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"} | more
        done = subprocess.run(
            [sys.executable, "-c", ARENAS], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip(), done.stderr.count("Arena ")

    said, arenas = run()
    assert (said, arenas) == ("True", 2)
    said, arenas = run(MALLOC_ARENA_MAX="6")
    assert said == "False"
    assert 2 < arenas <= 6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_used_again_without_asking_the_system_unless_the_user_says_otherwise() -> None:
    def run(**more: str) -> tuple[str, int]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | more
        done = subprocess.run(
            [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
        )
        said, faults = done.stdout.split()
        return said, int(faults)

    said, kept = run()
    assert said == "True"
    said, asked = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert said == "False"
    assert asked > 10_000  # most of the 20 x 14 MB, page by page
    assert kept < asked / 20, (kept, asked)
