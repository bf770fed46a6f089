"""Learning rate schedules, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from transferkit.training.phases import Phase


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def lr_factor(phase: Phase, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function from an optimizer step of the phase to the factor on its learning rates.

    Args:
        phase: Its schedule, warm-up, epochs, step size and gamma are used.
        steps_per_epoch: Optimizer steps in an epoch.

    Source:
        One-cycle: Smith and Topin (2018), https://arxiv.org/abs/1708.07120, with the start
        (1/25 of the peak) and end (1e-4 of the start) of torch's ``OneCycleLR``.

    >>> factor = lr_factor(Phase(epochs=10, schedule="step", step_size=4, warmup=0), 1)
    >>> [round(factor(step), 4) for step in (0, 3, 4, 8)]
    [1.0, 1.0, 0.1, 0.01]
    """
    total = phase.epochs * steps_per_epoch
    one_cycle = phase.schedule == "one-cycle"
    warmup = phase.warmup
    if warmup is None:
        warmup = 0.3 if one_cycle else 0.0 if phase.head_only else 0.1
    rising = warmup * total
    step_size = phase.step_size or max(1, math.ceil(phase.epochs / 3))

    def factor(step: int) -> float:
        if step < rising:
            risen = (step + 1) / (math.ceil(rising) + 1)
            return 1 / 25 + (1 - 1 / 25) * (1 - _cosine(risen)) if one_cycle else risen
        progress = min(1.0, (step - rising) / max(1.0, total - rising))
        if one_cycle:
            end = 1 / 25 * 1e-4
            return end + (1 - end) * _cosine(progress)
        if phase.schedule == "cosine":
            return _cosine(progress)
        if phase.schedule == "step":
            return phase.gamma ** (step // steps_per_epoch // step_size)
        return 1.0

    return factor


def build_scheduler(optimizer: Optimizer, phase: Phase, steps_per_epoch: int) -> LambdaLR:
    """Return torch's scheduler for a phase, to be stepped after each step of the optimizer."""
    return LambdaLR(optimizer, lr_factor(phase, steps_per_epoch))
