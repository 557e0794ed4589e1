"""Work ahead in a thread, a bounded number of results at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
_fed_by: WeakKeyDictionary[threading.Thread, threading.Thread] = WeakKeyDictionary()
"""Which thread's results each thread took last."""


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
            _fed_by[threading.current_thread()] = thread
            more, item = ready.get()
            if more:
                yield item  # type: ignore[misc]  # `more` says that it is a T
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        stopped.set()
        if not _feeds(threading.current_thread(), thread):
            thread.join()


def _feeds(one: threading.Thread, other: threading.Thread | None) -> bool:
    # The garbage collector closes what nobody closed, in whatever thread it runs. One that `other` waits for, or `other`
    # itself, must not wait for it: it ends by itself then, with its next result.
    while other is not None and other is not one:
        other = _fed_by.get(other)
    return other is one
