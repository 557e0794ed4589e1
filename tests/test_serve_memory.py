"""A live server's threads share their memory."""

import os
import subprocess
import sys

import pytest

ARENAS = """
import ctypes, sys, threading
from streamfix.serve.memory import share_arenas
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
