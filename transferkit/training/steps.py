"""One training step and one evaluation step, short enough for a loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.classification import count_correct, logits_of, loss_of
from transferkit.errors import DataError, NonFiniteError
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
    model: Callable[[Tensor], Any],
    batch: Sequence[Any],
    optimizer: torch.optim.Optimizer,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    execution: Execution | None = None,
    clip_norm: float | None = None,
    weight: float = 1.0,
    update: bool = True,
    scaler: torch.amp.GradScaler | None = None,
    failed: Tensor | None = None,
) -> StepResult:
    """Go forward and backward through one batch and, unless told otherwise, update.

    On the CPU a loss or gradient that is not finite is an error at once. On an accelerator looking
    at it would wait for the device at every step, so that nothing is checked unless ``failed`` is given.

    Args:
        model: What trains; its mode (``model.train()``) is the caller's.
        batch: Inputs and class indices ``[N]``, on the model's device; more fields are ignored.
        optimizer: Takes the step; its gradients are cleared after it.
        criterion: From float32 logits ``[N, C]`` and targets ``[N]`` to the mean loss; the losses of
            auxiliary classifiers are added to that of the logits, see ``loss_of``.
        execution: Its precision holds for the forward pass; ``None`` stands for the model's own.
        clip_norm: Largest norm of all gradients together; ``None`` leaves them alone.
        weight: Factor on the loss before going backward: with accumulation, the batch's share
            of the images of one update.
        update: Whether the optimizer steps; ``False`` only adds to the gradients.
        scaler: Scales the loss, which float16 needs; it leaves out an update whose gradients overflow.
        failed: A float32 scalar on the device, 0 at first. It becomes 1 with the first loss or
            gradient that is not finite; nothing is raised, and while it is 1 nothing is updated.
            The optimizer has to be a fused one. With a scaler, which sees to the gradients, the
            loss alone is looked at.

    Raises:
        NonFiniteError: The loss or a gradient is NaN or infinite; nothing was updated.

    >>> model = nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> train_step(model, (torch.zeros(3, 4), torch.tensor([0, 1, 1])), optimizer).count
    3
    """
    inputs, targets = batch[0], batch[1]
    with execution.autocast() if execution is not None else nullcontext():
        output = _output(model, inputs)
    loss = loss_of(output, targets, criterion)
    _check_finite("loss", loss.detach(), failed)
    total = loss if weight == 1.0 else loss * weight
    if scaler is not None:
        # Divided by 0 after a failure, so that the scaler leaves out the later updates too.
        total = scaler.scale(total if failed is None else total / (1 - failed))
    total.backward()  # type: ignore[no-untyped-call]  # reason: torch has no types there
    if update:
        try:
            _step(optimizer, clip_norm, scaler, failed)
        finally:
            optimizer.zero_grad(set_to_none=True)
    return StepResult(loss.detach(), count_correct(logits_of(output).detach(), targets), len(targets))


def _output(model: Callable[[Tensor], Any], inputs: Tensor) -> Any:
    try:
        return model(inputs)
    except ValueError as error:
        if len(inputs) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            "Batch norm cannot train on a batch of one image; give the DataLoader drop_last=True "
            "or another batch_size."
        ) from error


def _step(
    optimizer: torch.optim.Optimizer,
    clip_norm: float | None,
    scaler: torch.amp.GradScaler | None,
    failed: Tensor | None,
) -> None:
    """Check and clip the gradients, then update."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if scaler is not None:
        if clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        scaler.step(optimizer)
        scaler.update()
        return
    norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    _check_finite("norm of the gradient", norm, failed)
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    # By this name torch's scaler too tells a fused optimizer to leave an update out.
    optimizer.found_inf = failed  # type: ignore[attr-defined]  # reason: read by name, undeclared
    optimizer.step()


def _check_finite(name: str, value: Tensor, failed: Tensor | None) -> None:
    if failed is not None:
        failed.logical_or_(~value.isfinite())
    elif value.device.type == "cpu" and not math.isfinite(value.item()):
        raise NonFiniteError(f"The {name} is {value.item()}; lower the learning rate or look at the inputs.")


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
