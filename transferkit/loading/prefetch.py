"""Making the next items in a thread while the present one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_END = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetched(items: Iterable[T], *, ahead: int = 2) -> Iterator[T]:
    """Yield the same items, made in a thread that keeps ahead of the consumer.

    The thread ends when the items do, and also when the consumer stops early, whether it closes
    the iterator, drops it or raises. What the items raise is raised here, at the place of the
    item that failed.

    Args:
        items: Made one after another, in one thread.
        ahead: How many, at least 2, are made before they are asked for.

    >>> list(prefetched(number * number for number in range(4)))
    [0, 1, 4, 9]
    """
    # One more waits in the thread's hands until there is room.
    ready: queue.Queue[Any] = queue.Queue(ahead - 1)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, stopped), name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stopped.set()
        # The thread may be waiting for room; after this it puts at most one item more, and there is room.
        while not ready.empty():
            ready.get_nowait()
        thread.join()


def _fill(items: Iterable[Any], ready: queue.Queue[Any], stopped: threading.Event) -> None:
    last: Any = _END
    try:
        for item in items:
            ready.put(item)
            if stopped.is_set():
                return
    except BaseException as error:  # whatever it is, the consumer has to see it
        last = _Failure(error)
    ready.put(last)
