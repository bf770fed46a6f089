"""The loop of a phase: ``run_phase`` → ``run_epoch`` → ``train_step``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from transferkit.errors import NonFiniteError
from transferkit.evaluation.scoring import collect_logits
from transferkit.loading.batches import Batch, BatchSource
from transferkit.runtime import Execution
from transferkit.seeding import stream
from transferkit.training.callbacks import Callback
from transferkit.training.phases import Phase
from transferkit.training.steps import StepResult, train_step

T = TypeVar("T")


@dataclass(frozen=True)
class PhaseTools:
    """What one phase trains with.

    Attributes:
        module: What takes the batches: the model, or its trainable suffix on stored features.
        train: The training batches.
        val: The validation batches, if there are any.
        optimizer: Holds the parameters that train.
        scheduler: Stepped after each step of the optimizer.
        criterion: From logits and targets to the mean loss.
        execution: Device and precision.
    """

    module: nn.Module
    train: BatchSource
    val: BatchSource | None
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    criterion: Callable[[Tensor, Tensor], Tensor]
    execution: Execution


def steps_of(source: BatchSource, phase: Phase) -> int:
    """Return the number of optimizer steps in an epoch."""
    return -(-len(source) // phase.accumulate)


def run_phase(
    phase: Phase,
    tools: PhaseTools,
    *,
    first_epoch: int,
    seed: int,
    callbacks: Sequence[Callback],
    finish_epoch: Callable[[dict[str, Any]], bool],
) -> None:
    """Train for the epochs of a phase, or until its patience is over.

    Args:
        phase: Its epochs, accumulation, clipping and patience are used.
        tools: What it trains with.
        first_epoch: Number of the first epoch, counted over the run from 1.
        seed: What the random numbers of every step follow from.
        callbacks: Told of epochs and steps.
        finish_epoch: Takes the row of an epoch, completes and records it, and returns whether
            the epoch gave the best weights so far.
    """
    waited = 0
    for epoch in range(first_epoch, first_epoch + phase.epochs):
        started = time.perf_counter()
        row = {"epoch": epoch, "lr": max(group["lr"] for group in tools.optimizer.param_groups)}
        row |= run_epoch(phase, tools, epoch=epoch, seed=seed, callbacks=callbacks)
        row |= validate(tools)
        row["seconds"] = time.perf_counter() - started
        better = finish_epoch(row)
        waited = 0 if better or row["val_loss"] is None else waited + 1
        if phase.patience is not None and waited >= phase.patience:
            break


def run_epoch(
    phase: Phase, tools: PhaseTools, *, epoch: int, seed: int, callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Train on every batch once.

    Returns:
        ``train_loss``, ``train_accuracy`` and ``images_per_second`` of the epoch.

    Raises:
        NonFiniteError: A loss is NaN or infinite; the message names epoch, step and samples.
    """
    for callback in callbacks:
        callback.epoch_start(epoch, tools.train.samples(), len(tools.train))
    started = time.perf_counter()
    loss_sum = correct = torch.zeros((), device=tools.execution.device)
    count = 0
    tools.module.train()
    device = torch.device(tools.execution.device)
    # Dropout draws from a stream of its own for each step, and the caller's state is left alone.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for update, batches in enumerate(_grouped(tools.train.epoch(epoch), phase.accumulate)):
            torch.manual_seed(int(stream(seed, "step", epoch, update).integers(2**63)))
            for result in _update(phase, tools, batches, f"epoch {epoch}, step {update + 1}"):
                loss_sum = loss_sum + result.loss * result.count
                correct = correct + result.correct
                count += result.count
                for callback in callbacks:
                    callback.step_end(result)
            tools.scheduler.step()
    mean_loss = float(loss_sum) / max(1, count)
    if mean_loss != mean_loss:
        raise NonFiniteError(f"The loss became NaN in epoch {epoch}; lower the learning rate.")
    seconds = time.perf_counter() - started
    return {
        "train_loss": mean_loss,
        "train_accuracy": float(correct) / max(1, count),
        "images_per_second": count / seconds,
    }


def _update(phase: Phase, tools: PhaseTools, batches: list[Batch], where: str) -> Iterator[StepResult]:
    """Add up the gradients of some batches, each by its share of the images, and step once."""
    total = sum(len(batch.targets) for batch in batches)
    for number, batch in enumerate(batches):
        try:
            yield train_step(
                tools.module,
                batch,
                tools.optimizer,
                criterion=tools.criterion,
                execution=tools.execution,
                clip_norm=phase.clip_norm,
                weight=len(batch.targets) / total,
                update=number == len(batches) - 1,
            )
        except NonFiniteError as error:
            samples = ", ".join(str(index) for index in batch.indices[:16])
            raise NonFiniteError(f"{error} It was met in {where}, samples {samples}.") from None


def _grouped(batches: Iterator[T], size: int) -> Iterator[list[T]]:
    while group := list(islice(batches, size)):
        yield group


def validate(tools: PhaseTools) -> dict[str, Any]:
    """Return ``val_loss`` (log loss) and ``val_accuracy``; both ``None`` without validation batches.

    Raises:
        NonFiniteError: The log loss is NaN or infinite.
    """
    if tools.val is None:
        return {"val_loss": None, "val_accuracy": None}
    logits, targets = collect_logits(tools.module, tools.val, tools.execution)
    loss = float(F.cross_entropy(logits, targets))
    if not math.isfinite(loss):
        raise NonFiniteError(f"The log loss of the validation part is {loss}; lower the learning rate.")
    return {
        "val_loss": loss,
        "val_accuracy": float((logits.argmax(dim=1) == targets).double().mean()),
    }
