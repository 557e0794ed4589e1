"""The batches of a run on a GPU: made there, ahead of time, but for what real encoders do, which the CPU's processes bring."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from streamfix.train.data import FacePairs, Item, Plan, loader
from streamfix.train.device_pairs import DevicePairs

Batch = dict[str, Tensor]

_APART = 1 << 16
"""Between the sample numbers of one batch and the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Due:
    number: int
    size: int
    calm: float
    made: int
    coded: int


def device_batches(
    pairs: FacePairs,
    plan: Callable[[int], Plan],
    *,
    device: torch.device,
    batch: int = 0,
    share: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches of single frames as `Batches` and `loader` give them, on `device`, from batch number `batch` on.

    pairs.mixture.footage is the share of each batch, rounded at random, that `workers` processes make. share: (k, n), the
    k-th of n equal parts of each batch. A batch depends on the seed of `pairs` and its number alone.
    """
    m = pairs.mixture
    chance = m.footage / sum(m.weights)
    coded = copy(pairs)
    coded.mixture = replace(m, paper=0.0, heavy=0.0, footage=1.0, mild=0.0, none=0.0)
    waiting: deque[_Due] = deque()

    def plans() -> Iterator[_Due]:
        for step in count(batch):
            size, total, _, calm = plan(step)
            number, mine = step * share[1] + share[0], total // share[1]
            rounding = np.random.default_rng([pairs.seed, number, 3]).random()
            others = min(mine, int(mine * chance + rounding))
            yield _Due(number=number, size=size, calm=calm, made=mine - others, coded=others)

    def footage() -> Iterator[list[Item]]:
        for due in plans():
            waiting.append(due)
            if due.coded:
                yield [Item(due.number * _APART + i, due.size, 1, due.calm) for i in range(due.coded)]

    def batches() -> Iterator[Batch]:
        faces = DevicePairs(pairs, device)

        def joined(due: _Due, part: Batch) -> Batch:
            parts = [{k: v.to(device) for k, v in part.items()}] if due.coded else []
            parts += [faces.batch(due.number, due.size, due.made, calm=due.calm)] if due.made else []
            return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

        if not chance:
            yield from (joined(due, {}) for due in plans())
        for part in loader(coded, footage(), workers=workers):
            while not (due := waiting.popleft()).coded:  # between one that has some and the next
                yield joined(due, {})
            yield joined(due, part)

    return ahead(batches(), device)


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, made by a thread on a stream of its own while the one before is learnt from."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(2)
    over = threading.Event()

    def hand(item: Batch | BaseException) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.stream(stream), torch.no_grad():
                for batch in batches:
                    if stream is not None:
                        stream.synchronize()
                    hand(batch)
                    if over.is_set():
                        return
        except BaseException as error:
            hand(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            if device.type == "cuda":  # its memory may be given away once the trainer, too, is through with it
                for tensor in item.values():
                    tensor.record_stream(torch.cuda.current_stream(device))
            yield item
    finally:
        over.set()
        thread.join()
