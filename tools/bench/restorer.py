"""How fast `lite` is here: `python tools/bench/restorer.py [WEIGHTS] [--threads N] [--rounds 5]`.

Faces a second at batch 1, 2, 4 and 8 on every engine of this machine, in turns so that other work hits all alike (medians; the last column
is the time of a batch over that of as many single faces), and how long loading takes in a fresh process (least of three: importing
torch, load_restorer, the first face, which converts the network where OpenVINO runs it).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from streamfix.models import embedded
from streamfix.restore.base import describe, fast_bfloat16
from streamfix.restore.lite import openvino_engine
from streamfix.restore.lite.restorer import WEIGHTS, LiteRestorer

BATCHES = (1, 2, 4, 8)
FRESH = """
import sys, time
marks = [(time.perf_counter(), time.process_time())]
def mark(): marks.append((time.perf_counter(), time.process_time()))
import torch; mark()
from streamfix.restore.base import load_restorer
restorer = load_restorer(sys.argv[1]); mark()
restorer.restore(torch.zeros(1, 3, 512, 512)); mark()
print(*(b[k] - a[k] for a, b in zip(marks, marks[1:]) for k in (0, 1)))
"""


def engines(weights: Path) -> list[LiteRestorer]:
    found = [LiteRestorer(weights, dtype=torch.float32, openvino=False)]
    if openvino_engine.available():
        found.append(LiteRestorer(weights, dtype=torch.float32, openvino=True))
    if fast_bfloat16():
        found.append(LiteRestorer(weights, dtype=torch.bfloat16))
    if torch.cuda.is_available():
        found.append(LiteRestorer(weights, device=torch.device("cuda")))
    return found


def seconds(restorer: LiteRestorer, crops: torch.Tensor) -> float:
    restorer.restore(crops[:1])  # its weights come back into the caches, as they are in a job
    began = time.perf_counter()
    restorer.restore(crops)  # the answer comes back to the CPU: nothing is left running
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="?", default=embedded(WEIGHTS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    restorers = engines(options.weights)
    crops = torch.rand(max(BATCHES), 512, 512, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    crops = crops.permute(0, 3, 1, 2)  # laid out as frames are
    times: dict[tuple[int, int], list[float]] = {}
    for batch in BATCHES:
        for restorer in restorers:
            restorer.restore(crops[:batch])  # warm
        for _ in range(options.rounds):
            for number, restorer in enumerate(restorers):
                times.setdefault((number, batch), []).append(seconds(restorer, crops[:batch]))
    print("| engine | batch | ms a face | faces/s | ratio to the first engine | batch / that many single faces |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number, restorer in enumerate(restorers):
        single = statistics.median(times[number, 1])
        for batch in BATCHES:
            median = statistics.median(times[number, batch])
            ratio = median / statistics.median(times[0, batch])
            print(
                f"| {describe(restorer)} | {batch} | {1e3 * median / batch:.1f} | {batch / median:.1f} | {ratio:.2f} "
                f"| {median / (batch * single):.2f} |"
            )
    runs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", FRESH, str(options.weights)], capture_output=True, text=True, check=True
        )
        runs.append([float(v) for v in done.stdout.split()])
    least = [min(column) for column in zip(*runs, strict=True)]
    print("\n| fresh process | wall s | CPU s |\n| --- | --- | --- |")
    for name, wall, cpu in zip(("import torch", "load_restorer", "first face"), least[::2], least[1::2], strict=True):
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
