"""Exponential moving averages of what trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights:
    """Averages of the parameters that train, and of the running statistics of batch norm.

    After each update an average moves towards the present value by ``1 - decay``. In the first
    updates the decay is lower, ``(1 + n) / (10 + n)`` after ``n`` of them, so that the values from before
    the training do not linger. Everything else in the model, such as what is frozen, is as it is.
    ``torch.optim.swa_utils.AveragedModel`` would copy all of that too, and wait for an
    accelerator in each step.

    Args:
        model: What trains. Its tensors have to stay where they are in memory.
        decay: At least 0 and below 1.

    Attributes:
        state: The averages, by the names that a ``state_dict`` of the model has.
        updates: How many updates they have seen.

    Source:
        Polyak and Juditsky (1992), https://doi.org/10.1137/0330046; the lower decay at first is that of
        TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 0.0)
    >>> averages = AveragedWeights(model, decay=0.5)
    >>> _ = nn.init.constant_(model.weight, 11.0)
    >>> averages.update()
    >>> round(averages.state["weight"].item(), 4)  # the decay of the first update is 2/11
    9.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._own = dict(_averaged(model))
        self._decay = decay
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._own.items()}
        self.updates = 0

    def update(self) -> None:
        """Move the averages towards the present values, after an update of these."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # reason: torch has no types there
        move(list(self.state.values()), list(self._own.values()), self.updates)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the averages in the model for as long as the context lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def leave_in_place(self) -> None:
        """Put the averages into the model for good."""
        for name, value in self._own.items():
            value.copy_(self.state[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._own.items():
            present = value.clone()
            value.copy_(self.state[name])
            self.state[name].copy_(present)


def _averaged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model of which averages are kept."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    for path, module in model.named_modules():
        if isinstance(module, _NormBase):
            for name in ("running_mean", "running_var"):
                buffer = getattr(module, name)
                if buffer is not None:
                    yield f"{path}.{name}".removeprefix("."), buffer
