"""A phase of training, as a frozen record that JSON can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import nn

from transferkit.checks import (
    check_between,
    check_choice,
    check_int,
    check_non_negative,
    check_positive,
    is_number,
    require,
)

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine", "one-cycle", "cyclic", "plateau")
SOLVERS = ("sgd", "lbfgs")
SAMPLINGS = ("shuffle", "balanced")
MIXES = ("mixup", "cutmix")

# What ``train="last:2"`` begins with: the head and so many stages before it.
LAST_STAGES = "last:"

Selectors = str | Sequence[str | Callable[..., bool]] | Callable[..., bool]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of training: what trains, for how long, and how.

    Args:
        train: ``"head"``, ``"all"``, ``"last:2"`` (the head and the last two stages of the backbone,
            or all of them where it has fewer), or selectors as ``freeze`` takes them: a name, a
            glob, a callable, or several.
        epochs: Passes over the training part.
        solver: ``"sgd"`` trains step by step with ``optimizer``. ``"lbfgs"`` fits a linear head to
            convergence on the stored outputs of the backbone, its regularisation chosen on the
            validation part or, without one, by folds; of the other fields only ``views``,
            ``augmentation``, ``class_weights`` and ``label_smoothing`` then play a role, and no
            epoch passes. Where that cannot be done, such as with a head of several layers, the
            phase trains by ``"sgd"`` and says why.
        views: ``1`` stands for images as the epoch gives them. A larger number stores so many
            augmented views of each image, of which each epoch draws one, so that what is frozen
            is computed once though the images vary.
        freeze_batch_norm: Whether batch norm keeps its statistics, scale and shift though the
            rest of its stage trains. With few images its statistics would be noise, and a head
            that was fitted before them would no longer fit. Without effect where batch norm
            has seen no image yet, as in random weights.
        lr: Learning rate of the backbone's last stage; ``None`` takes a default that fits
            the optimizer, the kind of backbone and what trains.
        head_lr: Learning rate of the head; ``None`` takes ``lr``, or a default with it.
        layer_decay: Factor on the learning rate from each stage to the one before it.
        optimizer: ``"sgd"`` (Nesterov momentum 0.9), ``"adam"`` or ``"adamw"``.
        weight_decay: Weight decay of matrices and kernels; biases and norms get none.
        schedule: ``"constant"``, ``"step"``, ``"cosine"``, ``"one-cycle"``, ``"cyclic"`` or
            ``"plateau"``; each is stepped with the optimizer, and ``"plateau"`` also looks at the
            validation part, which it needs.
        warmup: Share of the phase's steps in which the learning rate rises linearly; with
            ``"one-cycle"``, the share in which it rises to its peak. ``None`` takes 0.3 for
            ``"one-cycle"``, 0 for ``"cyclic"`` and for a head, and 0.1 where backbone parameters train.
        step_size: Epochs between two steps of ``"step"``; ``None`` takes a third of the phase. With
            ``"plateau"``, epochs without a lower validation loss after which the learning rate
            falls; ``None`` takes 2.
        gamma: Factor of each step of ``"step"`` and ``"plateau"``.
        cycles: How often ``"cyclic"`` rises from a quarter of the learning rate to all of it and
            falls again, and how often ``"cosine"`` starts anew from its peak; the cycles are
            equally long. ``None`` takes 3 for ``"cyclic"`` and 1 for ``"cosine"``.
        augmentation: A registered name; ``None`` shows plain images. Phases of the head alone
            see plain images in any case, unless ``views`` is larger than 1.
        mix: ``"mixup"`` trains on pairs of images laid over each other, ``"cutmix"`` on images into
            which a piece of another is pasted; both classes count, each by its share. ``None``
            leaves images whole. What the training accuracy then counts is the class with the larger
            share. Only for phases that train backbone parameters, on images.
        mix_alpha: The shares are drawn from the distribution Beta(alpha, alpha); ``None`` takes 0.2
            for ``"mixup"`` and 1 for ``"cutmix"``.
        sampling: ``"shuffle"`` shows each image once in an epoch. ``"balanced"`` shows as many
            images, but of each class the same number, give or take one: those of small classes
            several times, augmented differently each time, and of large ones a part.
        label_smoothing: Share of the target's probability that is spread over all classes.
        class_weights: ``None``, ``"balanced"``, or a float of at least 0 for each class.
        clip_norm: Largest norm of the gradient; ``None`` leaves it alone.
        accumulate: Batches whose gradients are added up for one step of the optimizer.
        ema: Decay of the exponential moving average of the weights, such as 0.999; the average is what
            is validated, kept as the best and left at the end. ``0`` leaves the weights as they are.
        checkpoint_activations: Whether the blocks of the backbone keep only their inputs and are
            computed a second time in the backward pass, which takes less memory and more time,
            and gives the same gradients. On stored outputs it holds for blocks that train whole.
        patience: Epochs without a better validation result after which the phase ends.

    Raises:
        ArgumentError: A field has a value that makes no sense.

    >>> Phase(train="head", epochs=5).optimizer
    'adamw'
    """

    train: Selectors = "all"
    epochs: int = 1
    solver: str = "sgd"
    views: int = 1
    freeze_batch_norm: bool = False
    lr: float | None = None
    head_lr: float | None = None
    layer_decay: float = 1.0
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float | None = None
    step_size: int | None = None
    gamma: float = 0.1
    cycles: int | None = None
    augmentation: str | None = None
    mix: str | None = None
    mix_alpha: float | None = None
    sampling: str = "shuffle"
    label_smoothing: float = 0.0
    class_weights: str | Sequence[float] | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float = 0.0
    checkpoint_activations: bool = False
    patience: int | None = None

    def __post_init__(self) -> None:
        require(_are_selectors(self.train), "Phase", "train", "'head', 'all' or selectors", self.train)
        if isinstance(self.train, (list, tuple)) and len(self.train) == 1:
            object.__setattr__(self, "train", self.train[0])
        # Numbers of other libraries become Python's, which JSON can hold.
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, each.name, value.item())
        object.__setattr__(self, "class_weights", _checked_weights(self.class_weights))
        check_int("Phase", "epochs", self.epochs, 1)
        for field in ("lr", "head_lr", "clip_norm", "mix_alpha"):
            if getattr(self, field) is not None:
                check_positive("Phase", field, getattr(self, field))
        check_positive("Phase", "layer_decay", self.layer_decay)
        check_positive("Phase", "gamma", self.gamma)
        check_choice("Phase", "optimizer", self.optimizer, OPTIMIZERS)
        check_choice("Phase", "schedule", self.schedule, SCHEDULES)
        check_choice("Phase", "solver", self.solver, SOLVERS)
        check_choice("Phase", "sampling", self.sampling, SAMPLINGS)
        check_between("Phase", "ema", self.ema, 0, 1)
        check_int("Phase", "views", self.views, 1)
        check_non_negative("Phase", "weight_decay", self.weight_decay)
        check_between("Phase", "label_smoothing", self.label_smoothing, 0, 1)
        check_int("Phase", "accumulate", self.accumulate, 1)
        if self.warmup is not None:
            check_between("Phase", "warmup", self.warmup, 0, 1)
        for field in ("patience", "step_size", "cycles"):
            if getattr(self, field) is not None:
                check_int("Phase", field, getattr(self, field), 1)
        valid = self.augmentation is None or isinstance(self.augmentation, str)
        require(valid, "Phase", "augmentation", "the name of a registered augmentation", self.augmentation)
        for field in ("freeze_batch_norm", "checkpoint_activations"):
            value = getattr(self, field)
            require(isinstance(value, bool), "Phase", field, "True or False", value)
        valid = self.last_stages is None or self.last_stages > 0
        require(valid, "Phase", "train", "'last:' and a number of stages, such as 'last:2'", self.train)
        self._check_mix()
        fits = self.solver == "sgd" or self.head_only
        require(fits, "Phase", "solver", "'sgd' unless the head alone trains", self.solver)

    def _check_mix(self) -> None:
        if self.mix is None:
            return
        check_choice("Phase", "mix", self.mix, MIXES)
        fits = not self.head_only
        require(fits, "Phase", "mix", "None where the head alone trains, which sees plain images", self.mix)
        require(self.views == 1, "Phase", "mix", "None where views of the images are stored", self.mix)

    @property
    def head_only(self) -> bool:
        """Whether the head alone trains."""
        return self.train == "head"

    @property
    def last_stages(self) -> int | None:
        """How many stages train with the head by ``"last:2"``; ``None`` where something else is said.

        What is no number gives 0.
        """
        if not (isinstance(self.train, str) and self.train.startswith(LAST_STAGES)):
            return None
        number = self.train.removeprefix(LAST_STAGES)
        return int(number) if number.isascii() and number.isdecimal() else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold; a callable is shown by its name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Phase:
        """Build the record from what ``to_dict`` returned."""
        return cls(**fields)


def _are_selectors(value: object) -> bool:
    several = isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping, nn.Module))
    each_of: list[object] = list(value) if several else [value]  # type: ignore[call-overload]  # reason: a collection
    return bool(each_of) and all(
        (isinstance(each, str) and each != "") or (callable(each) and not isinstance(each, nn.Module))
        for each in each_of
    )


def _checked_weights(value: Any) -> str | tuple[float, ...] | None:
    """Return class weights as floats, which JSON can hold."""
    if value is None or (isinstance(value, str) and value == "balanced"):
        return value
    # A set or mapping has no order of the classes; arrays and tensors have numbers of their own.
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Set, Mapping))
    listed = value.tolist() if hasattr(value, "tolist") else value
    weights = list(listed) if several and isinstance(listed, Iterable) else []
    valid = all(is_number(each) and each >= 0 for each in weights) and any(weights)
    wanted = "None, 'balanced' or finite floats of at least 0, not all 0"
    require(valid, "Phase", "class_weights", wanted, value)
    return tuple(float(each) for each in weights)


def _plain(value: Any) -> Any:
    if callable(value):
        return getattr(value, "__qualname__", repr(value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def share_epochs(phases: Sequence[Phase], total: int) -> tuple[Phase, ...]:
    """Give each phase its share of ``total`` epochs, in proportion to its own, at least one each.

    Phases that a solver fits without epochs have no share.

    Raises:
        ArgumentError: ``total`` is smaller than the number of phases with epochs.

    >>> [phase.epochs for phase in share_epochs([Phase(epochs=1), Phase(epochs=3)], 8)]
    [2, 6]
    """
    check_int("Trainer.fit", "epochs", total, 1)
    stepwise = [phase for phase in phases if phase.solver == "sgd"]
    enough = total >= len(stepwise)
    require(enough, "Trainer.fit", "epochs", f"at least {len(stepwise)}, one for each phase", total)
    weights = [phase.epochs for phase in stepwise]
    shares = _most_of_each(total, weights)
    for _ in range(total - sum(shares) if stepwise else 0):
        # The next epoch goes to the phase that is furthest below its proportion.
        short = [total * weight / sum(weights) - share for weight, share in zip(weights, shares, strict=True)]
        shares[short.index(max(short))] += 1
    left = iter(shares)
    return tuple(
        dataclasses.replace(phase, epochs=next(left)) if phase.solver == "sgd" else phase for phase in phases
    )


def _most_of_each(total: int, weights: Sequence[int]) -> list[int]:
    """Return what each phase gets at least, if the one furthest below its proportion is always next.

    At most a few epochs for each phase are then left.
    """
    left = total - len(weights)
    exact = [Fraction(total * weight, sum(weights)) for weight in weights]
    ordered = sorted(exact, reverse=True)
    # The last epochs are given at this distance below the proportion; what is further below is sure.
    level = max((sum(ordered[:count]) - left) / count for count in range(1, len(exact) + 1)) if exact else 0
    return [1 + max(0, int(each - level) - 1) for each in exact]


def epochs_of(phases: Sequence[Phase]) -> int:
    """Return how many epochs phases have together; those that a solver fits have none.

    >>> epochs_of([Phase(train="head", solver="lbfgs", epochs=5), Phase(epochs=3)])
    3
    """
    return sum(phase.epochs for phase in phases if phase.solver == "sgd")
