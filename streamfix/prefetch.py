"""Work ahead in a thread, a bounded number of results at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], size: int) -> Generator[T, None, None]:
    """Run `items` in a thread of its own, at most `size` results ahead of the consumer.

    An exception in the thread is raised here; closing this generator ends the thread and closes `items`.
    """
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=size)
    stopped = threading.Event()

    def hand_over(entry: tuple[bool, T | BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        source: Iterator[T] | None = None
        try:
            source = iter(items)
            for item in source:
                hand_over((True, item))
                if stopped.is_set():
                    break
            else:
                hand_over((False, None))
        except BaseException as error:
            hand_over((False, error))
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item  # type: ignore[misc]  # `more` says that it is a T
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        stopped.set()
        thread.join()
