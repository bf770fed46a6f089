"""Learning rate schedules: functions of the step, one of which also follows the validation loss."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from transferkit.training.phases import Phase

# The learning rate from which "cyclic" rises, as a share of the one to which it rises.
_LOWEST = 1 / 4


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _triangle(progress: float) -> float:
    return _LOWEST + (1 - _LOWEST) * (1 - abs(2 * progress - 1))


def _risen(step: int, rising: float) -> float:
    """Return how far a linear warm-up over ``rising`` steps is; it never gives 0, and 1 comes after it."""
    return (step + 1) / (math.ceil(rising) + 1)


def _rising(phase: Phase, total: int) -> float:
    """Return the number of steps in which the learning rate rises."""
    if phase.warmup is not None:
        return phase.warmup * total
    if phase.schedule == "one-cycle":
        return 0.3 * total
    return 0.0 if phase.head_only or phase.schedule == "cyclic" else 0.1 * total


def lr_factor(phase: Phase, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function from an optimizer step of the phase to the factor on its learning rates.

    Args:
        phase: Its schedule, warm-up, epochs, step size, gamma and cycles are used.
        steps_per_epoch: Optimizer steps in an epoch.

    Returns:
        For ``"plateau"`` a ``Plateau``, which has to be told the validation losses.

    Source:
        One-cycle: Smith and Topin (2018), https://arxiv.org/abs/1708.07120, with the start
        (1/25 of the peak) and end (1e-4 of the start) of torch's ``OneCycleLR``. Cyclic: Smith
        (2017), https://arxiv.org/abs/1506.01186, the triangular policy, from a quarter of the
        peak. Cosine in several cycles: Loshchilov and Hutter (2017),
        https://arxiv.org/abs/1608.03983, with restarts at equal distances.

    >>> factor = lr_factor(Phase(epochs=10, schedule="step", step_size=4, warmup=0), 1)
    >>> [round(factor(step), 4) for step in (0, 3, 4, 8)]
    [1.0, 1.0, 0.1, 0.01]
    >>> factor = lr_factor(Phase(epochs=8, schedule="cyclic", cycles=2), 1)
    >>> [factor(step) for step in range(8)]
    [0.25, 0.625, 1.0, 0.625, 0.25, 0.625, 1.0, 0.625]
    """
    total = phase.epochs * steps_per_epoch
    rising = _rising(phase, total)
    if phase.schedule == "plateau":
        return Plateau(phase.gamma, phase.step_size or 2, rising)
    one_cycle = phase.schedule == "one-cycle"
    step_size = phase.step_size or max(1, math.ceil(phase.epochs / 3))
    cycles = phase.cycles or (3 if phase.schedule == "cyclic" else 1)
    falling = max(1.0, total - rising)

    def factor(step: int) -> float:
        if step < rising:
            risen = _risen(step, rising)
            return 1 / 25 + (1 - 1 / 25) * (1 - _cosine(risen)) if one_cycle else risen
        progress = min(1.0, (step - rising) / falling)
        if one_cycle:
            end = 1 / 25 * 1e-4
            return end + (1 - end) * _cosine(progress)
        if cycles > 1:
            # The remainder of the steps and not of the quotient, which may be rounded below a whole number.
            progress = (step - rising) * cycles % falling / falling
        if phase.schedule == "cosine":
            return _cosine(progress)
        if phase.schedule == "cyclic":
            return _triangle(progress)
        if phase.schedule == "step":
            return phase.gamma ** (step // steps_per_epoch // step_size)
        return 1.0

    return factor


class Plateau:
    """The factor of the schedule ``"plateau"``: it falls where the validation loss does not.

    Its attributes are what ``LambdaLR.state_dict`` holds of it.

    Args:
        gamma: What the factor is multiplied with.
        patience: Epochs without a lower loss after which it is; then they are counted anew.
        rising: Steps of the linear warm-up.

    Attributes:
        best: The lowest loss so far; ``None`` before the first.
        waited: Epochs since then, or since the last fall.
        falls: How often the factor fell.

    >>> plateau = Plateau(gamma=0.5, patience=2, rising=0)
    >>> for loss in (0.9, 0.8, 0.8, 0.85):
    ...     plateau.observe(loss)
    >>> plateau(step=0)
    0.5
    """

    def __init__(self, gamma: float, patience: int, rising: float) -> None:
        self.gamma = gamma
        self.patience = patience
        self.rising = rising
        self.best: float | None = None
        self.waited = 0
        self.falls = 0

    def observe(self, loss: float) -> None:
        """Take note of the validation loss of an epoch."""
        if self.best is None or loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.falls, self.waited = self.falls + 1, 0

    def __call__(self, step: int) -> float:
        """Return the factor on the learning rates at a step."""
        risen = _risen(step, self.rising) if step < self.rising else 1.0
        return float(risen * self.gamma**self.falls)


def build_scheduler(optimizer: Optimizer, phase: Phase, steps_per_epoch: int) -> LambdaLR:
    """Return torch's scheduler for a phase, to be stepped after each step of the optimizer."""
    return LambdaLR(optimizer, lr_factor(phase, steps_per_epoch))


def after_validation(scheduler: LRScheduler, loss: float | None) -> None:
    """Let a schedule that follows the validation loss set the learning rates of the next epoch."""
    factors = getattr(scheduler, "lr_lambdas", ())
    plateaus = [factor for factor in factors if isinstance(factor, Plateau)]
    if not plateaus or loss is None:
        return
    plateaus[0].observe(loss)  # one for all groups
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = rate * plateaus[0](scheduler.last_epoch)
