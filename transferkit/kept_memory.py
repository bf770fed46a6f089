"""Keep the memory of freed tensors for the next batch, instead of giving it back to the system each time."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# While memory is kept: no block has a mapping of its own, and the heap never shrinks.
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
# What glibc comes to by itself once a large tensor has been freed.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}
# After so many seconds there may be much to give back; looking for it takes a while.
_LONG = 1.0

_LOCK = threading.Lock()
_users = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep the memory that is freed in this process for as long as the context lasts, where it can be kept.

    glibc maps each large tensor anew and unmaps it when it is freed, and the system fills every page with
    zeros when it is first touched, which takes about a tenth of the time of a batch. Where memory is managed
    in another way, by another library or by the environment, nothing is changed.

    >>> with freed_memory_kept():
    ...     pass
    """
    library = _glibc()
    if library is None:
        yield
        return
    started = time.monotonic()
    _count(library, 1)
    try:
        yield
    finally:
        if _count(library, -1) == 0 and time.monotonic() - started > _LONG:
            library.malloc_trim(0)


def _count(library: ctypes.CDLL, change: int) -> int:
    """Begin with the first user and end with the last; return how many there are now."""
    global _users
    with _LOCK:
        before, _users = _users, _users + change
        if 0 in (before, _users):
            for parameter, value in (_KEEPING if _users else _USUAL).items():
                library.mallopt(parameter, value)
        return _users


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    """Return the C library, if it is glibc and nobody has told it how to manage memory."""
    told = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if not sys.platform.startswith("linux") or told:
        return None
    library = ctypes.CDLL(None)
    needed = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in needed) else None
