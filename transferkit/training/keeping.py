"""When a run is saved: as often as it was asked for, and when a signal ends it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

from transferkit.checks import check_int, check_positive
from transferkit.training.run_state import Progress

# Saving takes at most this share of the time.
_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """How often a run with a run directory is saved, so that it can be resumed.

    Args:
        seconds: Time between two checkpoints; it becomes longer where writing one takes more than
            2% of it. ``None`` leaves time out.
        steps: Steps of the optimizer between two checkpoints, however long writing takes; ``None``
            leaves steps out.
        keep: How many checkpoints are kept.

    Raises:
        ArgumentError: A field has a value that makes no sense.

    >>> Checkpoints(steps=500).keep
    2
    """

    seconds: float | None = 120.0
    steps: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        if self.seconds is not None:
            check_positive("Checkpoints", "seconds", self.seconds)
        if self.steps is not None:
            check_int("Checkpoints", "steps", self.steps, 1)
        check_int("Checkpoints", "keep", self.keep, 1)


class Keeper:
    """Told by the loop how far it is. This one keeps nothing."""

    def interruptible(self) -> AbstractContextManager[None]:
        """Where nothing of the run changes, so that a signal may end it at once."""
        return nullcontext()

    def reached(self, progress: Progress, check: Callable[[], None] | None = None) -> None:
        """After an update or an epoch, where the run can be saved.

        Args:
            progress: How far the epoch is.
            check: Raises if what was done so far must not be saved; asked only before saving.
        """

    def phase_over(self) -> None:
        """After a phase, with the best weights back in the model."""


class Interrupted(BaseException):
    """A signal has ended a run where nothing changes; it becomes what the signal means."""


class Interrupts:
    """Holds SIGINT and SIGTERM back until a run can be saved, in the main thread.

    The first of them waits; the second ends the program at once, as it would have without this.
    Handlers are put back on leaving. One of the user's own is called after the run was saved; if it
    returns, the run goes on.
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._at_once = False
        self._process = os.getpid()
        self.pending: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                # None: a handler that Python does not know, which could not be put back.
                if previous not in (None, signal.SIG_IGN):
                    self._previous[number] = previous
        self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if kind is None and self.pending is not None:
            self.deliver("")

    def _install(self) -> None:
        for number in self._previous:
            signal.signal(number, self._receive)

    def _restore(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.pending is not None or os.getpid() != self._process:
            # The second, or in a child that has inherited this: as it would be without.
            self._restore()
            signal.raise_signal(number)
            if os.getpid() == self._process:
                self._install()  # a handler of the user's own has returned
            return
        self.pending = number
        if self._at_once and self._is_default(number):
            raise Interrupted

    def _is_default(self, number: int) -> bool:
        return self._previous[number] in (signal.default_int_handler, signal.SIG_DFL)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Where a signal need not wait."""
        if self.pending is not None and self._is_default(self.pending):
            raise Interrupted
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def deliver(self, note: str) -> None:
        """Do what the pending signal asks for: raise ``KeyboardInterrupt`` or ``SystemExit``."""
        number = self.pending
        assert number is not None
        previous = self._previous[number]
        if previous is signal.default_int_handler:
            raise KeyboardInterrupt(note)
        if previous is signal.SIG_DFL:
            ended = SystemExit(128 + number)
            ended.add_note(note)
            raise ended
        self.pending = None
        previous(number, None)


class RunKeeper(Keeper):
    """Saves a run as often as its policy says, and when a signal ends it.

    Args:
        policy: How often.
        interrupts: The signals.
        write: Writes a checkpoint for a place in the run and returns where it stands.
        size: Bytes of a checkpoint, roughly, from which the time of the first is estimated.
    """

    # What a slow disk writes in a second.
    _BYTES_PER_SECOND = 2e8

    def __init__(
        self,
        policy: Checkpoints,
        interrupts: Interrupts,
        write: Callable[[Progress | None], str],
        *,
        size: int,
    ) -> None:
        self._policy = policy
        self._interrupts = interrupts
        self._write = write
        self._cost = size / self._BYTES_PER_SECOND
        self._last = time.perf_counter()
        self._updates = 0
        self._progress: Progress | None = None
        self._changed = False
        self._where = ""

    def interruptible(self) -> AbstractContextManager[None]:
        """Let a signal end the run at once."""
        return self._interrupts.at_once()

    def reached(self, progress: Progress, check: Callable[[], None] | None = None) -> None:
        """Save the run if it is time, or if a signal has come."""
        self._updates += progress.updates > 0
        self._look(progress, check)

    def phase_over(self) -> None:
        """Say that a phase is over, and the best weights are back in the model."""
        self._look(None)

    def _look(self, progress: Progress | None, check: Callable[[], None] | None = None) -> None:
        self._progress, self._changed = progress, True
        if self._interrupts.pending is not None or self._is_due():
            if check is not None:
                check()
            self._save()
        if self._interrupts.pending is not None:
            self._interrupts.deliver(self._note())

    def interrupted(self) -> None:
        """Save the run where it was last, and do what the signal asks for."""
        self._save()
        self._interrupts.deliver(self._note())

    def _is_due(self) -> bool:
        policy = self._policy
        if policy.steps is not None and self._updates >= policy.steps:
            return True
        waited = time.perf_counter() - self._last
        return policy.seconds is not None and waited >= max(policy.seconds, self._cost / _SHARE)

    def _save(self) -> None:
        if not self._changed:
            return
        started = time.perf_counter()
        self._where = self._write(self._progress)
        self._last = time.perf_counter()
        self._cost = self._last - started
        self._updates, self._changed = 0, False

    def _note(self) -> str:
        return (
            f"The run was saved in {self._where}; --resume, or resume=True, goes on from there."
            if self._where
            else ""
        )
