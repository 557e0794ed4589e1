"""Damage real files and run whole jobs on them: `python tools/fuzz_media.py [DIR] --count 500 --seed 0`.

Files come from DIR, or are made by the tests' own maker in many containers and codecs. Each input is one of them with bits flipped,
bytes overwritten, cut out or doubled, or its end cut off; the same seed makes the same inputs. Every job must end in time, either with
an output that can be read again with the frames that were reported, or refused in one sentence with nothing left behind. Jobs run
in long-lived worker processes, whose memory is watched. Leaves with 1 when anything else happened; failing inputs are kept with --keep.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

TIGHT = 64, 64  # pixels of the files that are made: the smallest that every encoder takes
SUFFIXES = (".mkv", ".mp4", "")  # of the output; the input's own for "", where it is one that is written
UNWRITTEN = (".h264", ".y4m", ".gif", ".wmv")
WARM_UP = 100  # jobs of a worker after which every decoder and encoder has been loaded and its memory should rest
CALM = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # of the workers: an arena for every thread would hide a leak
GROWTH = 60.0  # MB that a worker may gain after that


def damage(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """The bytes with one kind of damage, and its name. Half of it strikes the ends, where headers and indexes lie."""
    out, size = bytearray(data), len(data)
    kind = str(rng.choice(["flip", "flip", "burst", "zeros", "cut", "hole", "double"]))

    def place() -> int:
        where = rng.random()
        near = min(size, 1500)
        return int(
            rng.integers(near) if where < 0.3 else size - 1 - rng.integers(near) if where < 0.5 else rng.integers(size)
        )

    if kind == "flip":
        for _ in range(int(2 ** rng.uniform(0, 6))):
            out[place()] ^= 1 << int(rng.integers(8))
        return bytes(out), kind
    start, length = place(), int(2 ** rng.uniform(1, 11))
    stop = min(start + length, size)
    if kind == "burst":
        out[start:stop] = rng.bytes(stop - start)
    elif kind == "zeros":
        out[start:stop] = bytes(stop - start)
    elif kind == "cut":
        del out[max(int(size * rng.random()), 1) :]
    elif kind == "hole":
        del out[start:stop]
    else:
        out[stop:stop] = out[start:stop]
    return bytes(out), kind


def resident() -> float:
    """Resident memory of this process in MB, after giving back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def work(pipe: Connection) -> None:
    """Restore one input after another; answers each with (kind, words, seconds, MB)."""
    import av
    import torch

    from streamfix import enhance, load_pipeline
    from streamfix.errors import StreamfixError

    torch.set_num_threads(1)
    logging.getLogger("streamfix").addHandler(logging.NullHandler())
    logging.getLogger("streamfix").propagate = False
    pipeline = load_pipeline(model="passthrough", detector="retinaface", protect=False)
    pipe.send(("ready", "", 0.0, resident()))
    while (job := pipe.recv()) is not None:
        source, target, codec = Path(job[0]), Path(job[1]), job[2]
        began, kind, words = time.monotonic(), "restored", ""
        try:
            report = enhance(
                source, target, pipeline=pipeline, codec=codec, preset="ultrafast" if codec == "h264" else None
            )
            with av.open(str(target)) as container:
                frames = sum(1 for _ in container.decode(video=0))
            if frames != report.frames:
                kind, words = "wrong", f"{report.frames} frames were reported, {frames} can be read"
        except StreamfixError as error:
            kind, words = "refused", str(error)
            if "\n" in words or words.endswith("."):
                kind = "wrong"
        except BaseException:
            kind, words = "raised", traceback.format_exc(limit=-4)
        left = {p.name for p in source.parent.iterdir()}
        if left != {source.name} | ({target.name} if kind == "restored" else set()):
            kind, words = "wrong", f"left behind: {sorted(left)}; {words}"
        target.unlink(missing_ok=True)
        pipe.send((kind, words, time.monotonic() - began, resident()))


@dataclass
class Worker:
    """One process, the input it is at, since when, and its memory after each job."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    job: tuple[str, Path] | None = None
    since: float = 0.0
    memory: list[float] = field(default_factory=list)


@dataclass
class Outcome:
    """What came of all inputs. failures: (name, kind, words). memory: for each worker its MB after each job."""

    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    memory: list[list[float]] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """MB gained by the worker that gained most after its warm-up; medians of ten jobs, so that no single one decides."""
        long = [m[WARM_UP:] for m in self.memory if len(m) >= WARM_UP + 20]
        return max((float(np.median(m[-10:]) - np.median(m[:10])) for m in long), default=0.0)


def originals(folder: Path | None, into: Path) -> list[Path]:
    """The files of a folder, or those of the tests' own maker."""
    if folder is not None:
        return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() != ".md")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import media_zoo

    return [media_zoo.make(name, into, TIGHT) for name, case in media_zoo.CASES.items() if case.refused is None]


def start() -> Worker:
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(there,), daemon=True)
    process.start()
    there.close()
    return Worker(process, here, since=time.monotonic())


def fuzz(
    files: list[Path],
    scratch: Path,
    *,
    count: int,
    seed: int,
    workers: int = 2,
    timeout: float = 60.0,
    keep: Path | None = None,
    only: int | None = None,
) -> Outcome:
    """Run that many damaged inputs, or that one of them only; timeout: seconds a job may take."""
    outcome, numbers = Outcome(), iter(range(count) if only is None else [only])
    crew = [start() for _ in range(workers)]

    def next_job(worker: Worker) -> None:
        number = next(numbers, None)
        if number is None:
            worker.job = None
            worker.pipe.send(None)
            return
        rng = np.random.default_rng([seed, number])
        original = files[int(rng.integers(len(files)))]
        data, kind = damage(original.read_bytes(), rng)
        name = f"{number:04d}-{kind}-{original.name}"
        folder = scratch / name
        folder.mkdir()
        source = folder / name
        source.write_bytes(data)
        suffix = SUFFIXES[int(rng.integers(len(SUFFIXES)))] or original.suffix
        suffix = ".mkv" if suffix in UNWRITTEN else suffix
        codec = "auto" if suffix == original.suffix else "h264"  # auto is often slow
        target = folder / f"out{suffix}"
        worker.job, worker.since = (name, folder), time.monotonic()
        worker.pipe.send((str(source), str(target), codec))

    def settle(worker: Worker, kind: str, words: str, seconds: float) -> None:
        assert worker.job is not None
        name, folder = worker.job
        outcome.kinds[kind] += 1
        outcome.slowest = max(outcome.slowest, (seconds, name))
        if kind == "refused":
            outcome.reasons[words.replace(str(folder / name), "FILE").replace(str(folder), "")[:110]] += 1
        elif kind != "restored":
            outcome.failures.append((name, kind, words))
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / name, keep)
        shutil.rmtree(folder, ignore_errors=True)

    running = list(crew)
    while running:
        for pipe in wait([w.pipe for w in running], timeout=1.0):
            worker = next(w for w in running if w.pipe is pipe)
            try:
                kind, words, seconds, memory = worker.pipe.recv()
            except (EOFError, ConnectionError):
                worker.process.join()
                running.remove(worker)
                if worker.job is None:  # it was told to leave
                    continue
                settle(worker, "crashed", f"exit code {worker.process.exitcode}", time.monotonic() - worker.since)
                crew.append(start())
                running.append(crew[-1])
                continue
            if kind != "ready":
                worker.memory.append(memory)
                settle(worker, kind, words, seconds)
            next_job(worker)
        for worker in [w for w in running if w.job is not None and time.monotonic() - w.since > timeout]:
            worker.process.kill()
            worker.process.join()
            running.remove(worker)
            settle(worker, "hung", f"no end after {timeout:g} s", timeout)
            crew.append(start())
            running.append(crew[-1])
    outcome.memory = [w.memory for w in crew]
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="files to damage; made by the tests' maker without it")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that one job may take")
    parser.add_argument("--only", type=int, help="number of the one input to run, as it stands before its name")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that failed")
    options = parser.parse_args()
    os.environ |= CALM
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "originals").mkdir()
        files = originals(options.folder, scratch / "originals")
        print(f"{len(files)} files, {options.count} inputs, seed {options.seed}", flush=True)
        outcome = fuzz(
            files, scratch, count=options.count, seed=options.seed,
            workers=options.workers, timeout=options.timeout, keep=options.keep, only=options.only,
        )  # fmt: skip
    print(", ".join(f"{n} {kind}" for kind, n in outcome.kinds.most_common()), f"in {time.monotonic() - began:.0f} s")
    for reason, n in outcome.reasons.most_common(25):
        print(f"  {n:4d} refused: {reason}")
    print(f"slowest: {outcome.slowest[0]:.1f} s, {outcome.slowest[1]}")
    for number, memory in enumerate(outcome.memory):
        if memory:
            words = f"{memory[0]:.0f} MB after the first, {max(memory):.0f} at most, {memory[-1]:.0f} at the end"
            print(f"worker {number}: {len(memory)} jobs, {words}; every 25th: {[round(m) for m in memory[::25]]}")
    print(f"growth after {WARM_UP} jobs: {outcome.growth:+.1f} MB")
    for name, kind, words in outcome.failures:
        print(f"FAILED ({kind}) {name}: {words}")
    return int(bool(outcome.failures) or outcome.growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
