"""What the phases of a recipe leave open, filled in from the model and the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from transferkit.backbones.spec import find_spec
from transferkit.checks import check_positive, warn_caller
from transferkit.errors import ArgumentError
from transferkit.runtime import Execution
from transferkit.training.batch_size import largest_batch_size
from transferkit.training.data import TrainingData
from transferkit.training.freeze_plan import apply_plan, norms_have_learned
from transferkit.training.linear_phase import why_not_solved
from transferkit.training.optimizers import with_default_rates
from transferkit.training.phases import Phase, epochs_of, share_epochs
from transferkit.training.recipes import by_steps


def with_lr(phases: tuple[Phase, ...], lr: float | None) -> tuple[Phase, ...]:
    """Set the learning rate where backbone parameters train, or everywhere if none do.

    >>> [phase.lr for phase in with_lr((Phase(train="head"), Phase(train="all")), 0.1)]
    [None, 0.1]
    """
    if lr is None:
        return phases
    check_positive("Trainer", "lr", lr)
    only_heads = all(phase.head_only for phase in phases)
    return tuple(
        dataclasses.replace(phase, lr=lr) if only_heads or not phase.head_only else phase for phase in phases
    )


def resolve_phases(
    phases: Sequence[Phase], model: nn.Module, data: TrainingData, *, epochs: int | None, named: bool
) -> list[Phase]:
    """Fill in what phases leave open: solver, share of the epochs, learning rates, batch norm.

    Args:
        phases: As they were asked for.
        model: What is trained.
        data: What it is trained on.
        epochs: Total to be shared; ``None`` leaves each phase its own.
        named: Whether they are those of a recipe, which trains by steps where epochs are given.

    Raises:
        ArgumentError: There are fewer epochs than phases.
    """
    unsolved = why_not_solved(model, data)
    found = tuple(
        dataclasses.replace(phase, solver="sgd") if phase.solver != "sgd" and unsolved else phase
        for phase in phases
    )
    if epochs is not None:
        if named and not epochs_of(found):
            found = by_steps(found)
        found = share_epochs(found, epochs)
        if not epochs_of(found):
            warn_caller(f"epochs={epochs} is not used: no phase trains by steps.")
    found = tuple(
        with_default_rates(phase, model, fitted_head=number > 0) for number, phase in enumerate(found)
    )
    if not norms_have_learned(model):
        found = tuple(dataclasses.replace(phase, freeze_batch_norm=False) for phase in found)
    return list(found)


def resolve_batch_size(
    batch_size: int | str, phases: Sequence[Phase], model: nn.Module, data: TrainingData, execution: Execution
) -> int:
    """Return the number of images in a batch; ``"auto"`` takes the largest that fits in memory.

    Raises:
        ArgumentError: It is ``"auto"``, and the data is ready for the model, so that no size is known.
    """
    if isinstance(batch_size, int):
        return batch_size
    spec = find_spec(model)
    if spec is None or data.train_part is None:
        raise ArgumentError(
            "The 'batch_size' parameter of Trainer must be an int where the data is ready for the model. "
            "Got 'auto' instead."
        )
    largest = next((phase for phase in phases if phase.train == "all"), phases[-1])
    apply_plan(model, largest)
    size = spec.preprocessing.size
    return largest_batch_size(model, (3, size, size), execution, images=len(data.train_part))
