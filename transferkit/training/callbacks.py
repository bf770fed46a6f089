"""Callbacks: what may watch a run without being part of its loop."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from transferkit.training.phases import Phase
from transferkit.training.steps import StepResult

if TYPE_CHECKING:
    from torch import nn
    from tqdm import tqdm

    from transferkit.training.loop import PhaseTools


class Callback:
    """Every hook does nothing; override the ones that are needed.

    >>> class Print(Callback):
    ...     def epoch_end(self, row):
    ...         print(row["epoch"], row["train_loss"])
    """

    def phase_start(self, number: int, phase: Phase, note: str) -> None:
        """Before a phase: its number from 0, its record, and how it runs, in one line."""

    def phase_ready(self, model: nn.Module, tools: PhaseTools) -> None:
        """After ``phase_start``, before the first epoch: the model, and what the phase trains with."""

    def epoch_start(self, epoch: int, samples: int | None, steps: int) -> None:
        """Before an epoch: its number from 1, its samples (where known) and its batches."""

    def epoch_resumed(self, steps: int) -> None:
        """After ``epoch_start`` of an epoch that was interrupted: the batches of it that are done."""

    def step_end(self, result: StepResult) -> None:
        """After a batch. Reading ``result.loss`` waits for the device."""

    def epoch_end(self, row: dict[str, Any]) -> None:
        """After an epoch and its validation, or a solver's fit: the row that goes into the history."""


class ProgressBar(Callback):
    """A bar on standard error with loss, accuracy, images per second and the time left."""

    # The device is waited for this many times in an epoch at most.
    _READS = 20

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._steps = self._every = self._seen = 0
        self._loss = self._correct = 0.0

    def phase_start(self, number: int, phase: Phase, note: str) -> None:
        """Print how the phase runs."""
        print(f"phase {number + 1}: {note}", file=sys.stderr)

    def epoch_start(self, epoch: int, samples: int | None, steps: int) -> None:
        """Open a bar."""
        from tqdm import tqdm

        # Without a terminal, disable=None leaves the lines of the epochs only.
        self._bar = tqdm(
            total=samples, desc=f"epoch {epoch}", unit="img", leave=False, disable=None, file=sys.stderr
        )
        self._steps, self._every = 0, max(1, -(-steps // self._READS))

    def step_end(self, result: StepResult) -> None:
        """Move the bar on."""
        if self._bar is None:
            return
        if self._steps % self._every == 0:
            accuracy = float(result.correct) / result.count
            self._bar.set_postfix(loss=f"{float(result.loss):.3f}", acc=f"{accuracy:.0%}", refresh=False)
        self._steps += 1
        self._bar.update(result.count)

    def epoch_end(self, row: dict[str, Any]) -> None:
        """Close the bar and print the epoch's line."""
        if self._bar is not None:
            self._bar.close()
        if row.get("c") is None:
            line = f"epoch {row['epoch']}/{row['epochs']}: loss {row['train_loss']:.4f}"
        else:
            line = f"head fitted in {row['seconds']:.1f} s (C {row['c']:.3g}): loss {row['train_loss']:.4f}"
        line += f", accuracy {row['train_accuracy']:.1%}"
        if row["val_loss"] is not None:
            line += f"; val loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.1%}"
        if row["images_per_second"] is not None:
            line += f"; {row['images_per_second']:.0f} img/s"
        print(f"{line} *" if row["best"] else line, file=sys.stderr)
