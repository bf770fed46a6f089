"""One training step and one evaluation step, short enough for a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.classification import count_correct, logits_of
from transferkit.errors import NonFiniteError
from transferkit.runtime import Execution


@dataclass(frozen=True)
class StepResult:
    """What a step measured; tensors stay on the device, so that reading them can wait.

    Attributes:
        loss: Mean loss of the batch, a scalar.
        correct: Number of images whose highest logit is the target's, a scalar.
        count: Number of images.
    """

    loss: Tensor
    correct: Tensor
    count: int


def train_step(
    model: nn.Module,
    batch: Sequence[Any],
    optimizer: torch.optim.Optimizer,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    execution: Execution | None = None,
    clip_norm: float | None = None,
    weight: float = 1.0,
    update: bool = True,
) -> StepResult:
    """Go forward and backward through one batch and, unless told otherwise, update.

    Args:
        model: What trains; its mode (``model.train()``) is the caller's.
        batch: Inputs and class indices ``[N]``, on the model's device; more fields are ignored.
        optimizer: Takes the step; its gradients are cleared after it.
        criterion: From float32 logits ``[N, C]`` and targets ``[N]`` to the mean loss.
        execution: Its precision holds for the forward pass; ``None`` stands for the model's own.
        clip_norm: Largest norm of all gradients together; ``None`` leaves them alone.
        weight: Factor on the loss before going backward: with accumulation, the batch's share
            of the images of one update.
        update: Whether the optimizer steps; ``False`` only adds to the gradients.

    Raises:
        NonFiniteError: The loss is NaN or infinite; nothing was updated.

    >>> model = nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> train_step(model, (torch.zeros(3, 4), torch.tensor([0, 1, 1])), optimizer).count
    3
    """
    inputs, targets = batch[0], batch[1]
    with execution.autocast() if execution is not None else nullcontext():
        logits = logits_of(model(inputs))
    loss = criterion(logits.float(), targets)
    # On an accelerator reading the loss would wait for the device at every step.
    if loss.device.type == "cpu" and not torch.isfinite(loss):
        raise NonFiniteError(f"The loss is {loss.item()}; lower the learning rate or look at the inputs.")
    (loss * weight if weight != 1.0 else loss).backward()  # type: ignore[no-untyped-call]
    if update:
        if clip_norm is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return StepResult(loss.detach(), count_correct(logits.detach(), targets), len(targets))


@torch.no_grad()
def eval_step(model: nn.Module, batch: Sequence[Any], *, execution: Execution | None = None) -> Tensor:
    """Return the float32 logits ``[N, C]`` of one batch, without gradients.

    Args:
        model: In the mode that the caller chose; ``model.eval()`` is meant.
        batch: Inputs, and whatever follows them, which is ignored.
        execution: Its precision holds for the forward pass; ``None`` stands for the model's own.

    >>> eval_step(nn.Linear(4, 2), (torch.zeros(3, 4),)).shape
    torch.Size([3, 2])
    """
    with execution.autocast() if execution is not None else nullcontext():
        return logits_of(model(batch[0])).float()
