"""A worker of the fuzzer that dies at every even input and hangs at every odd one."""

import os
import time
from multiprocessing.connection import Connection


def work(pipe: Connection) -> None:
    """Say ready, take one input, and break."""
    pipe.send(("ready", "", 0.0, 0.0))
    job = pipe.recv()
    if job is None:
        return
    number = int(os.path.basename(job[0]).split("-")[0])
    if number % 2 == 0:
        os._exit(9)
    time.sleep(60)
