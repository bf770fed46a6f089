"""Where a run is, as data: positions and sums as JSON, weights and the optimizer's state as tensors."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.errors import NonFiniteError, ResumeMismatchError
from transferkit.training.steps import StepResult


@dataclass
class Progress:
    """How far an epoch has come.

    Attributes:
        epoch: Its number, counted over the run from 1.
        updates: Updates of the optimizer that are done.
        waited: Epochs of the phase without a better validation result.
        lr: Learning rate of the fastest group at the epoch's start.
        loss: Sum of the losses of all samples so far, a scalar on the device; ``None`` before the first.
        correct: Samples so far whose highest logit was the target's.
        count: Samples so far.
        random: States of random number generators that are not transferkit's, at the epoch's start.
    """

    epoch: int = 1
    updates: int = 0
    waited: int = 0
    lr: float | None = None
    loss: Tensor | None = None
    correct: Tensor | None = None
    count: int = 0
    random: dict[str, Any] = field(default_factory=dict)

    def begin(self, device: torch.device, lr: float) -> None:
        """Start counting, unless that was done before an interruption."""
        if self.loss is None or self.correct is None:
            self.lr = lr
            self.loss = torch.zeros((), device=device)
            self.correct = torch.zeros((), device=device, dtype=torch.int64)

    def add(self, result: StepResult) -> None:
        """Count a batch."""
        assert self.loss is not None
        assert self.correct is not None
        self.loss.add_(result.loss, alpha=result.count)
        self.correct.add_(result.correct)
        self.count += result.count

    def means(self) -> dict[str, float]:
        """Return mean loss and accuracy of the samples so far.

        Raises:
            NonFiniteError: The loss is NaN or infinite.
        """
        assert self.loss is not None
        assert self.correct is not None
        loss = float(self.loss) / max(1, self.count)
        if not math.isfinite(loss):
            raise NonFiniteError(f"The loss became {loss} in epoch {self.epoch}; lower the learning rate.")
        return {"train_loss": loss, "train_accuracy": float(self.correct) / max(1, self.count)}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold; reading them waits for the device."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        # A float32 goes through a Python float, and through JSON, without a loss.
        return values | {
            "loss": None if self.loss is None else float(self.loss),
            "correct": None if self.correct is None else int(self.correct),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], device: torch.device) -> Progress:
        """Build the record from what ``to_dict`` returned, its sums on a device."""
        progress = cls(**values)
        if values["loss"] is not None:
            progress.loss = torch.tensor(values["loss"], device=device)
            progress.correct = torch.tensor(values["correct"], device=device, dtype=torch.int64)
        return progress


def packed(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict as safetensors takes them, under names with a prefix.

    They are copied to the CPU, contiguous; tied ones are written as often as they have names.
    """
    return {
        f"{prefix}{name}": value.detach().cpu().contiguous().clone()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def unpacked(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name has a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def put_back(own: Mapping[str, Any], saved: Mapping[str, Tensor], *, what: str) -> None:
    """Copy saved values into tensors of the same names, which keep their memory.

    Raises:
        ResumeMismatchError: Names, shapes or types differ.
    """
    tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    wrong = sorted(tensors.keys() ^ saved.keys()) + [
        name
        for name in sorted(tensors.keys() & saved.keys())
        if (tensors[name].shape, tensors[name].dtype) != (saved[name].shape, saved[name].dtype)
    ]
    if wrong:
        raise ResumeMismatchError(f"The checkpoint does not fit the {what}, first at {wrong[0]!r}.")
    for name, value in tensors.items():
        value.copy_(saved[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Return an optimizer's state as tensors, named by the place of their parameter and their own name."""
    flat = {
        f"{place}.{name}": value
        for place, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    return packed(flat, prefix)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rates: Iterable[float]
) -> None:
    """Give a newly built optimizer the state and the learning rates of another over the same parameters.

    Raises:
        ResumeMismatchError: The state is of other parameters.
    """
    whole = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        place, _, key = name.partition(".")
        state.setdefault(int(place), {})[key] = value
    fits = all(
        place < len(parameters) and (not value.ndim or value.shape == parameters[place].shape)
        for place, values in state.items()
        for value in values.values()
    )
    if not fits:
        raise ResumeMismatchError("The checkpoint does not fit the optimizer.")
    for group, rate in zip(whole["param_groups"], rates, strict=True):
        group["lr"] = rate
    optimizer.load_state_dict(whole | {"state": state})


def copy_of(model: nn.Module, saved: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a state dict of a model with saved values in it; the model stays as it is."""
    state = copy.deepcopy(model.state_dict())
    put_back(state, saved, what="model")
    return state


def random_state(*loaders: object) -> dict[str, Any]:
    """Return the states of generators that data sets, loaders and samplers of the user's own may draw from.

    torch's global generator is not among them: it is seeded before every batch.
    """
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # reason: the user's own state
    return {
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
        "torch": [generator.get_state().tolist() for generator in _generators_of(loaders)],
    }


def restore_random_state(state: Mapping[str, Any], *loaders: object) -> None:
    """Set what ``random_state`` returned, also after JSON made lists of its tuples."""
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002  # reason: puts the user's own state back
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    for generator, saved in zip(_generators_of(loaders), state["torch"], strict=True):
        generator.set_state(torch.tensor(saved, dtype=torch.uint8))


def _generators_of(loaders: Iterable[object]) -> list[torch.Generator]:
    """Return the generators that loaders and their samplers have of their own, each once."""
    owners: list[object] = []
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        owners += [loader, getattr(loader, "sampler", None), batch_sampler]
        owners.append(getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())
