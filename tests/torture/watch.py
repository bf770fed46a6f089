"""What a trial may not do: take for ever, or take memory out of all proportion."""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
from collections.abc import Iterator


class TooLong(BaseException):
    """No ``Exception``, so that nothing under test takes it for a damaged file."""


@contextlib.contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    """Raise ``TooLong`` where a trial hangs."""

    def stop(number: int, frame: object) -> None:
        raise TooLong(f"{what} took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_memory() -> int:
    """Return the most memory, in bytes, that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
